"""Embedding rows that are the vocabulary's: engine and reference agree bit for bit, wherever the vocabulary lies; what
is read for a row; damaged records. Needs a C compiler."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.errors import PackageError
from stic.runtime.format import ALIGN, BLOCK
from stic.runtime.package import Package
from stic.runtime.reference_decoder import ReferenceDecoder
from stic.runtime.session import Session
from tests.runtime.decoder_cases import ARCHITECTURES, CONTEXT
from tests.runtime.decoder_layout import Bits, Made, shapes_of, uniform

MakeDecoder = Callable[..., Path]
IDS = np.random.default_rng(6).integers(0, 75, CONTEXT)
HEAD = len(ARCHITECTURES["llama"].blocks) - 1
ALL = frozenset(range(HEAD + 1))


def of_head(name: str, *bits: int) -> Bits:
    """4 bits everywhere, and those of each slice of the vocabulary."""
    shapes = shapes_of(ARCHITECTURES[name], Made((), head_slices=len(bits)))
    return (*((4,) * shape.slices for shape in shapes[:-1]), bits)


CASES: dict[str, tuple[str, Made]] = {
    "streamed, a multiplier": ("capped", Made((of_head("capped", 16, 8, 3, 2),), head_slices=4, cache="int8", chunk=7)),
    "resident, positions": ("learned", Made((of_head("learned", 6, 5),), (ALL,), chunk=48, threads=4, lanes=4)),
    "nested, sizes that fill no tile": (
        "odd",
        Made((of_head("odd", 32, 7, 4),), (frozenset({HEAD}),), head_slices=3, full_bits=32, nested=True),
    ),
    "read first, one lane": ("odd", Made((of_head("odd", 8, 2),), load_first=True, threads=1, lanes=1, chunk=20)),
}


@pytest.mark.parametrize("case", CASES)
def test_engine_gives_the_references_answer(case: str, make_decoder: MakeDecoder) -> None:
    name, made = CASES[case]
    path = make_decoder(name, replace(made, row_type="tied"))
    package = Package.open(path)
    package.verify()
    assert package.row_type == "tied" and (path / "embeddings.bin").stat().st_size == package.regions["rows"][1] == 0
    want = ReferenceDecoder(package).extend(IDS)
    assert want.std() > 0.1
    with Session(path) as session:
        for evicted in (False, True):  # then rows are read although the plan keeps the vocabulary
            if evicted:
                session.evict()
            session.rewind(0)
            assert np.array_equal(session.score(IDS[:37]), want[:37])
            for n in (37, 38):
                session.extend(IDS[n : n + 1])
                assert np.array_equal(session.logits(), want[n])


def test_rows_are_what_the_head_multiplies_with(make_decoder: MakeDecoder) -> None:
    package = Package.open(make_decoder("capped", replace(CASES["streamed, a multiplier"][1], row_type="tied")))
    head, tokens = ReferenceDecoder(package).blocks[-1], np.arange(100)
    shape, found = head.shape, head.tied_rows(tokens, np.float32(8.0))
    scales = head.floats("head_scale", shape.slices, shape.head_width)
    assert scales is not None
    for token in tokens:
        s, r = divmod(int(token), shape.rows_per_slice)
        matrix = package.matrix(HEAD, s, "head", int(package.bits[HEAD, s]))
        if matrix.weight is not None:
            row = matrix.weight[r].astype(np.float64)
        else:
            row = float(scales[s, r]) * matrix.ratios[r].astype(float).repeat(64)[: shape.padded_hidden]
            row *= matrix.table[matrix.codes[r]]
        np.testing.assert_allclose(found[token], 8 * row[: shape.hidden], rtol=3e-7)


def test_plans_with_other_vocabularies(make_decoder: MakeDecoder) -> None:
    plans = tuple(of_head("llama", *bits) for bits in ((4, 4), (8, 3), (16, 6)))
    held = (ALL, frozenset({0, 2}), ALL)
    path = make_decoder("llama", Made(plans, held, row_type="tied"))
    package = Package.open(path)
    want = [ReferenceDecoder(package.with_plan(number)).extend(IDS[:20]) for number in range(3)]
    with Session(path) as session:
        for number in (0, 1, 2, 1, 0):
            session.set_budget(session.plans[number].predicted_us)
            session.rewind(0)
            assert np.array_equal(session.score(IDS[:20]), want[number])


@pytest.mark.parametrize("resident", [True, False])
def test_what_is_read_for_a_row(resident: bool, make_decoder: MakeDecoder) -> None:
    """Nothing of a vocabulary in memory; else, once for each of the tokens, its planes, ratios and table."""
    made = Made((uniform(ARCHITECTURES["llama"], Made(()), 4),), (ALL if resident else frozenset(),), row_type="tied")
    with Session(make_decoder("llama", made)) as session:
        session.extend(np.array([3, 60, 3, 3]))
        rows = [event for event in session.trace() if event.name == "rows"]
        assert sum(event.bytes for event in session.trace()) >= session.stats().io_bytes
        assert [event.count for event in sorted(rows, key=lambda event: event.count)] == ([] if resident else [1, 3])
        for event in rows:
            assert (4 + 2) * BLOCK <= event.bytes <= (4 + 2) * 2 * BLOCK


@pytest.mark.parametrize("resident", [True, False])
def test_a_damaged_row_fails_the_call(resident: bool, make_decoder: MakeDecoder, tmp_path: Path) -> None:
    """No checksum covers a row alone, but logits need the whole vocabulary: the text stays as it was."""
    made = Made((uniform(ARCHITECTURES["llama"], Made(()), 4),), (ALL if resident else frozenset(),), row_type="tied")
    copy = Path(shutil.copytree(make_decoder("llama", made), tmp_path / "copy.stic"))
    at = int(Package.open(copy).records[HEAD, 2, 0]["offset"])
    with Session(copy) as session:
        session.extend(IDS[:5])
        if resident:
            session.evict()
        with (copy / "shards.bin").open("r+b") as file:
            file.seek(at + ALIGN)
            file.write(b"\xaa" * ALIGN)
        with pytest.raises(PackageError, match=rf"corrupt at block {HEAD}, slice 0, level 2"):
            session.extend(np.arange(40))
        assert session.position == 5
    with pytest.raises(PackageError, match="corrupt at block"):
        Package.open(copy).verify()
    if resident:
        with pytest.raises(PackageError, match="corrupt at block"):
            Session(copy)
