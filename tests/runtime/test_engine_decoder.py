"""The engine gives a decoder's reference's answer bit for bit: kinds of models, bits, chunks, placements; also for
aarch64, under QEMU. Needs a C compiler; the aarch64 case needs a cross compiler and qemu-aarch64."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.runtime.architecture import Attention, FeedForward, Norms
from stic.runtime.errors import PackageError
from stic.runtime.package import Package
from stic.runtime.reference_decoder import ReferenceDecoder
from stic.runtime.sampling import Sampling
from stic.runtime.session import Session
from stic.targets.target import load
from stic.targets.toolchain import build_engine
from tests.runtime.decoder_cases import ARCHITECTURES, CONTEXT, RMS, ROWS, decoder
from tests.runtime.decoder_layout import Made, shapes_of, uniform
from tests.runtime.random_decoders import write_decoder

MakeDecoder = Callable[..., Path]
IDS = np.random.default_rng(5).integers(0, 75, CONTEXT)
MIXED = ((4, 4), (3, 2), (8, 5), (16, 6), (16, 2))  # of the model "llama"


@cache
def wanted(package: Path, plan: int = 0) -> np.ndarray:
    """Logits of every token of IDS, (CONTEXT, vocabulary)."""
    return ReferenceDecoder(Package.open(package).with_plan(plan)).extend(IDS)


def mixed_bits(name: str) -> tuple[tuple[int, ...], ...]:
    """Bits that differ between slices and blocks, with full precision among them, for any model."""
    every = ((8, 4, 3, 2), (16, 6, 4, 2), (5, 5, 5, 2), (16, 16, 3, 3))
    shapes = shapes_of(ARCHITECTURES[name], Made(plans=()))
    return tuple(every[b % len(every)][: shape.slices] for b, shape in enumerate(shapes))


@pytest.mark.parametrize("store", ["float16", "int8"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_model(name: str, store: str, make_decoder: MakeDecoder) -> None:
    package = make_decoder(name, Made(plans=(mixed_bits(name),), cache=store))
    want = wanted(package)
    assert want.std() > 0.1 and np.isfinite(want).all()
    with Session(package) as session:
        assert np.array_equal(session.score(IDS[:21]), want[:21])
        for n in range(21, CONTEXT):
            session.extend(IDS[n : n + 1])
            assert np.array_equal(session.logits(), want[n])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
def test_every_width(bits: int, make_decoder: MakeDecoder) -> None:
    package = make_decoder("llama", Made(plans=(uniform(ARCHITECTURES["llama"], Made(()), bits),)))
    with Session(package) as session:
        assert np.array_equal(session.score(IDS[:19]), wanted(package)[:19])
        session.extend(IDS[19:20])
        assert np.array_equal(session.logits(), wanted(package)[19])


OTHERS: dict[str, Made] = {
    "all resident": Made((MIXED,), (frozenset(range(5)),), table_resident=True),
    "partly resident": Made((MIXED,), (frozenset({0, 3}),), threads=1, lanes=1),
    "read first": Made((MIXED,), (frozenset({1}),), load_first=True),
    "nested": Made((MIXED,), nested=True),
    "32 bits": Made((tuple(tuple(32 if b == 16 else b for b in block) for block in MIXED),), full_bits=32),
    "rows of float16": Made((MIXED,), row_type="float16"),
    "two key heads a slice": Made(((((4,), (3, 2), (8,), (16, 6), (16, 2))),), key_heads_per_slice=2),
    "more slices": Made((((4, 4), (3, 3, 2, 2, 2), (4, 4), (4, 4, 4, 4, 4), (4, 4, 4)),), ffn_slices=5, head_slices=3),
    "four threads": Made((MIXED,), threads=4, lanes=4, chunk=48),
}


@pytest.mark.parametrize("name", OTHERS)
def test_placement_and_slices(name: str, make_decoder: MakeDecoder) -> None:
    package = make_decoder("llama", OTHERS[name])
    with Session(package) as session:
        assert np.array_equal(session.score(IDS[:37]), wanted(package)[:37])
        for n in (37, 38):
            session.extend(IDS[n : n + 1])
            assert np.array_equal(session.logits(), wanted(package)[n])


@pytest.mark.parametrize("chunk", [1, 7, 16, 24, 48])
def test_chunks_do_not_change_the_answer(chunk: int, make_decoder: MakeDecoder) -> None:
    package = make_decoder("llama", replace(Made((MIXED,)), chunk=chunk))
    want = wanted(package)
    with Session(package) as session:
        for n in (*range(1, 18), 31, 32, 33, 40):
            session.rewind(0)
            session.extend(IDS[:n])
            assert session.position == n
            assert np.array_equal(session.logits(), want[n - 1])
        session.rewind(0)
        for first, count in ((0, 3), (3, 9), (12, 20), (32, 8), (40, 8)):
            assert np.array_equal(session.score(IDS[first : first + count]), want[first : first + count])


def test_plans_of_one_package(make_decoder: MakeDecoder) -> None:
    llama = ARCHITECTURES["llama"]
    plans = (MIXED, uniform(llama, Made(()), 4), uniform(llama, Made(()), 8))
    package = make_decoder("llama", Made(plans, (frozenset({1, 4}), frozenset(), frozenset(range(5)))))
    with Session(package) as session:
        for number in (0, 2, 1, 2, 0):
            assert session.set_budget(session.plans[number].predicted_us).number == number
            session.rewind(0)
            session.extend(IDS[:30])
            assert np.array_equal(session.logits(), wanted(package, number)[29])
        session.set_budget(session.plans[1].predicted_us)  # keeps text and logits
        assert session.position == 30 and np.array_equal(session.logits(), wanted(package, 0)[29])
        session.extend(IDS[30:31])
        assert session.position == 31


def test_values_beyond_float16(make_decoder: MakeDecoder) -> None:
    """They become its greatest number, and logits stay finite."""
    package = make_decoder("huge", Made((MIXED,)))
    reference = ReferenceDecoder(Package.open(package))
    want = reference.extend(IDS[:20])
    assert np.isfinite(want).all() and max(np.abs(head.values).max() for head in reference.cache[0]) == 65504
    with Session(package) as session:
        assert np.array_equal(session.score(IDS[:18]), want[:18])
        for n in (18, 19):
            session.extend(IDS[n : n + 1])
            assert np.array_equal(session.logits(), want[n])


def test_norms_over_all_heads_want_no_padding(tmp_path: Path) -> None:
    """Whose kernel takes heads that lie together: both readers refuse others."""
    norms = Norms(input=RMS)
    attention = Attention(4, 2, 12, norms, head_norm="whole", head_norm_kind=RMS)
    model = decoder(attention, FeedForward(32, "silu", True, norms), rotaries=())
    folder = tmp_path / "model.stic"
    folder.mkdir()
    write_decoder(model, Made((uniform(model, Made(()), 4),)), load("host"), folder, compiled=False)
    with pytest.raises(PackageError, match="flags 2") as refused:
        Package.open(folder)
    assert refused.value.check == "block_flags"
    with pytest.raises(PackageError, match="flags 2"):
        Session(folder)


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command that runs an aarch64 stic_run under QEMU."""
    if shutil.which("qemu-aarch64") is None or shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs qemu-aarch64 and aarch64-linux-gnu-gcc (Debian: qemu-user, gcc-aarch64-linux-gnu)")
    runner = build_engine(load("aarch64-dotprod"), tmp_path_factory.mktemp("aarch64")).runner
    return ["qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu", str(runner)]


@pytest.mark.parametrize(("name", "store"), [("capped", "int8"), ("odd", "float16")])
def test_aarch64_gives_the_same_tokens(name: str, store: str, make_decoder: MakeDecoder, aarch64: list[str]) -> None:
    """Drawn from all tokens, so that any other bit of the logits would show."""
    package = make_decoder(name, Made((mixed_bits(name),), cache=store), target="aarch64-dotprod")
    twin = make_decoder(name, Made((mixed_bits(name),), cache=store))
    ids, options = IDS[:11].tolist(), ["--generate", "20", "--temperature", "2", "--seed", "9"]
    line = [*aarch64, str(package), "--ids", ",".join(map(str, ids)), *options, "--json"]
    facts: dict[str, Any] = json.loads(subprocess.run(line, check=True, capture_output=True, timeout=120).stdout)
    with Session(twin) as session:
        want = [one.token for one in session.generate(ids, 20, Sampling(2.0, seed=9))]
    assert facts["ids"] == want and len(set(want)) > 5
    assert max(want) < ROWS


def test_tied_rows_of_which_8_columns_lie_together(
    make_decoder: MakeDecoder, aarch64: list[str], tmp_path: Path
) -> None:
    """Compared by the logits of the last token, with which a saved text ends."""
    path, saved = make_decoder("odd", Made((mixed_bits("odd"),), row_type="tied"), "aarch64-i8mm"), tmp_path / "text"
    package = Package.open(path)
    assert package.interleave == 8
    line = [*aarch64, str(path), "--ids", ",".join(map(str, IDS[:41])), "--generate", "1", "--save", str(saved)]
    subprocess.run(line, check=True, capture_output=True, timeout=120)
    want = ReferenceDecoder(package).extend(IDS[:41])[-1]
    assert saved.read_bytes().endswith(want.tobytes())
