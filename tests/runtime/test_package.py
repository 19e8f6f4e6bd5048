"""The reader refuses what is missing, truncated, flipped, swapped or newer, and reads back what was written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stic.runtime.errors import InputError, PackageError
from stic.runtime.format import HEADER, MAJOR, MATRICES, MINOR, PLAN, offset_of
from stic.runtime.package import Package
from tests.runtime.conftest import FAMILY


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Path]) -> Path:
    """Every kind of shard, as the fixture of the same name that tests run; nothing here runs kernels."""
    bits = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
    return make_package(bits, ((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0)), compiled=False)


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(package, tmp_path / "copy.stic"))


def test_reads_back_what_was_written(package: Path) -> None:
    opened = Package.open(package)
    opened.verify()
    assert opened.bits[1].tolist() == [6, 4, 3, 0]
    assert opened.plan["plan"]["planner"] == "test"
    matrix = opened.matrix(0, 2, "up", 5)
    assert matrix.codes is not None and matrix.codes.max() < 32
    assert matrix.table is not None and matrix.table.shape == (32,)


def test_a_package_under_each_of_its_plans(make_package: Callable[..., Path]) -> None:
    opened = Package.open(make_package(*FAMILY[0], also=FAMILY[1:], compiled=False))
    opened.verify()
    assert int(opened.header["minor"]) == 0 and len(opened.plans) == len(FAMILY) == len(opened.plan["family"])
    default = opened.with_plan(0)
    assert default.plan == opened.plan and default.header == opened.header
    for number, (bits, resident) in enumerate(FAMILY):
        one, entry = opened.with_plan(number), opened.plans[number]
        assert [tuple(row[row > 0].tolist()) for row in one.bits] == list(bits)
        assert one.kept.tolist() == [len(layer) for layer in bits]
        assert (one.number, len(one.extents)) == (number, entry.extents)
        assert (one.regions["preload"], one.regions["working"]) == (entry.preload, entry.working)
        assert {k: v for k, v in one.regions.items() if k not in ("preload", "working")} == {
            k: v for k, v in opened.regions.items() if k not in ("preload", "working")
        }
        assert one.entry == entry and entry.arena_bytes == sum(one.regions["working"])
        assert entry.predicted_us == 1000 * (number + 1)
        assert [tuple(layer["resident"]) for layer in one.plan["plan"]["layers"]] == list(resident)
        assert one.plan["model"] == opened.plan["model"] and one.plan["claimed_bytes"] == entry.claimed_bytes
    for number in (-1, len(FAMILY)):
        with pytest.raises(InputError, match=f"no plan {number}"):
            opened.with_plan(number)


def test_a_package_with_one_plan(package: Path) -> None:
    opened = Package.open(package)
    (entry,) = opened.plans
    assert (entry.number, entry.quality) == (0, 0.0) and "family" not in opened.plan
    assert entry.claimed_bytes == opened.entry.claimed_bytes
    assert int(opened.header["minor"]) == 0
    with pytest.raises(InputError, match="it has 1, counted from 0"):
        opened.with_plan(1)


@pytest.mark.parametrize("name", PLAN.names or ())
def test_a_plan_that_makes_no_sense_is_refused(
    name: str, make_package: Callable[..., Path], with_header: Callable[..., bytes], tmp_path: Path
) -> None:
    path = make_package(*FAMILY[0], also=FAMILY[1:], compiled=False)
    good = (path / "index.bin").read_bytes()
    at, refused = int(Package.open(path).header["plans_at"]), 0
    kind, offset = PLAN[name], offset_of(PLAN, name)
    for number in (0, 3):
        for value in (bytes(kind.itemsize), b"\xff" * kind.itemsize):
            index, start = bytearray(good), at + number * PLAN.itemsize + offset
            index[start : start + kind.itemsize] = value
            (path / "index.bin").write_bytes(with_header(bytes(index)))
            try:
                Package.open(path)
            except PackageError:
                refused += 1
    # What is only told, of which nothing else follows, may be anything.
    assert refused >= (0 if name in ("deadline_us", "predicted_us", "claimed_bytes") else 1)


def test_nested_codes_are_prefixes(package: Path) -> None:
    opened = Package.open(package)
    eight = opened.matrix(0, 1, "down", 8).codes
    for bits in range(2, 8):
        codes = opened.matrix(0, 1, "down", bits).codes
        assert codes is not None and eight is not None
        np.testing.assert_array_equal(codes, eight >> (8 - bits))


def test_codes_and_outliers_do_not_depend_on_the_interleave(make_package: Callable[..., Path]) -> None:
    four, eight = (
        Package.open(make_package(((8, 8), (8, 8)), target=target, slices=2, compiled=False))
        for target in ("aarch64-dotprod", "aarch64-i8mm")
    )
    assert (four.interleave, eight.interleave) == (4, 8)
    for name in MATRICES["layer"]:
        for bits in range(2, 9):
            a, b = four.matrix(1, 1, name, bits), eight.matrix(1, 1, name, bits)
            assert a.codes is not None and b.codes is not None and len(a.outlier_rows) > 0
            np.testing.assert_array_equal(a.codes, b.codes)
            values = []
            for matrix in (a, b):
                dense = np.zeros(a.codes.shape, np.float32)
                dense[matrix.outlier_rows, matrix.outlier_columns] = matrix.outlier_values
                values.append(dense)
                assert (matrix.codes[matrix.outlier_rows, matrix.outlier_columns] == 1 << (bits - 1)).all()
            np.testing.assert_array_equal(*values)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_truncation_of_any_file_is_refused(copy: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(p.name for p in copy.iterdir())))
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(PackageError):
        Package.open(copy)
    (copy / name).write_bytes(whole)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_that_is_used_is_refused(copy: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(("index.bin", "trunk.bin", "kernels.so", "plan.json")))
    whole = bytearray((copy / name).read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    whole[at] ^= bit
    (copy / name).write_bytes(whole)
    with pytest.raises(PackageError):
        Package.open(copy).verify()
    whole[at] ^= bit
    (copy / name).write_bytes(whole)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_of_a_record_or_row_is_refused(copy: Path, data: st.DataObject) -> None:
    opened = Package.open(copy)
    if data.draw(st.booleans()):
        name = "shards.bin"
        records = opened.records[opened.records["bytes"] > 0]
        record = records[data.draw(st.integers(0, len(records) - 1))]
        at = int(record["offset"]) + data.draw(st.integers(0, int(record["bytes"]) - 1))
    else:
        name = "embeddings.bin"
        row = data.draw(st.integers(0, int(opened.model["vocabulary"]) - 1))
        at = row * int(opened.header["row_stride"]) + data.draw(st.integers(0, opened.hidden + 7))
    whole = bytearray((copy / name).read_bytes())
    bit = 1 << data.draw(st.integers(0, 7))
    whole[at] ^= bit
    (copy / name).write_bytes(whole)
    with pytest.raises(PackageError, match="checksum"):
        opened.verify()
    whole[at] ^= bit
    (copy / name).write_bytes(whole)


def test_a_newer_format_says_so(copy: Path) -> None:
    index = bytearray((copy / "index.bin").read_bytes())
    at = offset_of(HEADER, "minor")
    index[at] = MINOR + 1
    (copy / "index.bin").write_bytes(index)
    with pytest.raises(PackageError, match=rf"format {MAJOR}\.{MINOR + 1}"):
        Package.open(copy)


def test_weights_of_another_model_are_refused(copy: Path, make_package: Callable[..., Path]) -> None:
    other = make_package(((4, 4, 4, 4),) * 4, seed=1, compiled=False)
    shutil.copy(other / "trunk.bin", copy / "trunk.bin")
    with pytest.raises(PackageError):
        Package.open(copy).verify()


def test_missing_file_is_named(copy: Path) -> None:
    (copy / "trunk.bin").unlink()
    with pytest.raises(PackageError, match=r"trunk\.bin is missing"):
        Package.open(copy)


def test_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="not a stic package"):
        Package.open(tmp_path)
