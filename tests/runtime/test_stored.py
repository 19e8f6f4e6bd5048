"""shards.bin holds what the plans read: packages with all planes answer the same, and both readers refuse the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.runtime.errors import PackageError
from stic.runtime.format import BLOCK, FULL, LEVELS, RECORD
from stic.runtime.layout import levels_of
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session
from tests.runtime.conftest import FAMILY

Change = Callable[..., bytes]
LENGTHS = (1, 9, 17, 40)
MIXED = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
CASES: dict[str, dict[str, Any]] = {
    "two bits": dict(bits=((2,) * 4,) * 2),
    "eight bits": dict(bits=((8,) * 4,) * 2),
    "full precision": dict(bits=((16,) * 4,) * 2, table_resident=True),
    "32 bits, some": dict(bits=((32, 32, 3, 3), (5,)), full_bits=32, resident=((32, 0, 3, 2), (4,))),
    "no full precision on offer": dict(bits=((4, 3), (7, 2, 2)), full_bits=0),
    "mixed": dict(bits=MIXED, resident=((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0))),
    "nothing kept": dict(bits=((), ())),
    "odd sizes": dict(bits=((8, 3), (4, 4)), hidden=40, heads=2, head_dim=20, ffn=50, slices=2),
    "copies": dict(bits=((16, 8, 5, 2), (6, 4, 3), ()), resident=((0, 8, 0, 0), (6, 4, 0), ()), quantizer="gobo"),
    "family": dict(bits=FAMILY[0][0], resident=FAMILY[0][1], also=FAMILY[1:]),
    "family of copies": dict(
        bits=((8, 5, 2), (4, 4)), also=((((5, 5, 5), (3,)), ((5, 5, 0), (0,))),), quantizer="gobo"
    ),
}


@pytest.fixture(scope="module", params=CASES)
def pair(make_package: Callable[..., Path], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """Packages of the same plans: (what they read, all planes)."""
    options = CASES[request.param]
    return make_package(**options), make_package(**options, keep_planes=True)


def read_by(package: Package) -> np.ndarray:
    """Records that any plan reads, (layers, LEVELS, slices)."""
    used = np.zeros(package.records.shape, bool)
    for number in range(len(package.plans)):
        for (layer, s), bits in np.ndenumerate(package.with_plan(number).bits):
            used[layer, list(levels_of(int(bits), package.nested)), s] = True
    return used


def test_answers_are_the_same(pair: tuple[Path, Path]) -> None:
    few, every = (Package.open(path) for path in pair)
    rng = np.random.default_rng(1)
    with Session(pair[0]) as session, Session(pair[1]) as whole:
        for number in range(len(few.plans)):
            for one in (session, whole):
                assert one.set_budget(latency_us=1000 * (number + 1)).number == number
            for length in LENGTHS:
                ids = rng.integers(0, int(few.model["vocabulary"]), length)
                answer = session.run(ids)
                np.testing.assert_array_equal(answer, whole.run(ids))
                assert session.stats().io_bytes == whole.stats().io_bytes
    ids = rng.integers(0, int(few.model["vocabulary"]), 7)
    for number in range(len(few.plans)):
        answer = Reference(few.with_plan(number)).run(ids)
        np.testing.assert_array_equal(answer, Reference(every.with_plan(number)).run(ids))


def test_only_what_plans_read_is_stored(pair: tuple[Path, Path]) -> None:
    few, every = (Package.open(path) for path in pair)
    few.verify()
    used, stored = read_by(few), few.records["bytes"] > 0
    for layer, level in np.ndindex(stored.shape[:2]):
        wanted = np.flatnonzero(used[layer, level])
        span = range(wanted[0], wanted[-1] + 1) if len(wanted) else range(0)
        assert list(np.flatnonzero(stored[layer, level])) == list(span)
    same = few.records[stored], every.records[stored]
    assert (same[0]["bytes"] == same[1]["bytes"]).all() and (same[0]["crc"] == same[1]["crc"]).all()
    assert (same[0]["offset"] % BLOCK == same[1]["offset"] % BLOCK).all()
    assert (every.records["bytes"][:, :FULL] > 0).all()
    assert every.records["bytes"][:, FULL].any() == used[:, FULL].any() == (few.header["full_bits"] > 0)
    sizes = [int(package.files["shards.bin"]["bytes"]) for package in (few, every)]
    assert sizes[0] == sizes[1] if stored.all() else sizes[0] <= sizes[1]
    for name in ("arena_bytes", "claimed_bytes", "extents", "resident_extents", "predicted_us"):
        assert getattr(few.entry, name) == getattr(every.entry, name)


def test_four_bits_take_half_the_bytes(make_package: Callable[..., Path]) -> None:
    shape: dict[str, Any] = dict(bits=((4,) * 2,) * 2, hidden=256, heads=4, head_dim=64, ffn=1024, slices=2)
    paths = make_package(**shape, compiled=False), make_package(**shape, compiled=False, keep_planes=True)
    few, every = ((path / "shards.bin").stat().st_size for path in paths)
    assert 0.45 * every < few < 0.55 * every


@pytest.mark.parametrize(
    ("layer", "level"),
    sorted({(layer, level) for layer, row in enumerate(MIXED) for bits in row for level in levels_of(bits, True)}),
)
def test_a_plan_that_reads_what_is_absent(
    layer: int, level: int, package: Path, tmp_path: Path, with_header: Change
) -> None:
    used = read_by(Package.open(package))[layer, level]
    copy = Path(shutil.copytree(package, tmp_path / "copy.stic"))
    index, opened = bytearray((copy / "index.bin").read_bytes()), Package.open(copy)
    records = np.frombuffer(index, RECORD, used.size * LEVELS * len(opened.shapes), int(opened.header["records_at"]))
    records.reshape(-1, LEVELS, used.size)[layer, level, int(np.flatnonzero(used)[-1])] = (0, 0, 0)
    (copy / "index.bin").write_bytes(with_header(bytes(index)))
    for opening in (Package.open, Session):
        with pytest.raises(PackageError, match="does not hold slice"):
            opening(copy)


def test_asking_the_reader_for_what_is_absent(make_package: Callable[..., Path]) -> None:
    package = Package.open(make_package(((3,) * 4,) * 2, compiled=False))
    assert package.matrix(0, 0, "qkv", 2).codes is not None  # a prefix
    for bits in (4, 8, 16):
        with pytest.raises(PackageError, match="is not stored"):
            package.matrix(0, 0, "qkv", bits)
