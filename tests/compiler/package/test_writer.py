"""Packages appear whole or not at all, and hold what the compiler made."""

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.memory.placement import place_extents
from stic.compiler.package.assembly import Planned, assemble_package, claim, collect
from stic.compiler.package.index import Parts
from stic.compiler.package.kernels import generate
from stic.compiler.package.writer import record, write_package
from stic.compiler.quantization.quantize import dequantize
from stic.compiler.sharding import shard_matrices
from stic.runtime.errors import InputError
from stic.runtime.format import BLOCK, FULL, MATRICES
from stic.runtime.layout import levels_of
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session
from stic.targets.target import load
from tests.compiler.packaging import BITS, MAX_LENGTH, RESIDENT, contents, materials_for, other, parts, plan_of

__all__ = ["other", "parts"]


@pytest.fixture
def small_disk(parts: Parts, tmp_path: Path) -> Iterator[Path]:
    """A file system that holds one package, but not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = (parts.store.total_bytes + len(parts.embeddings) + len(parts.trunk.data)) * 3 // 2
    try:
        options = f"size={size}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_every_record_reads_back(parts: Parts, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_package(parts, tmp_path / "a" / "model.stic", lambda *step: steps.append(step))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model.stic"]
    package = Package.open(tmp_path / "a" / "model.stic")
    package.verify()
    present = np.argwhere(parts.store.bytes > 0)
    assert len(present) == 2 * 8 * 4
    assert steps == [(i, len(present)) for i in range(1, len(present) + 1)]
    for layer, level, s in present.tolist():
        assert package.record(layer, level, s) == record(parts.quantized, parts.store, layer, level, s, 4)
    assert package.bits.tolist() == [[16, 8, 5, 2], [6, 4, 3, 0]]
    assert package.kept.tolist() == [4, 3]
    assert (package.path / "shards.bin").stat().st_size % BLOCK == 0


def test_the_target_decides_on_interleave_and_cores(parts: Parts, tmp_path: Path) -> None:
    for name, q, cores in (("x86-64-v3", 4, 0), ("odroid-n2plus", 4, 0b111100), ("snapdragon-8-gen2", 8, 0b11111000)):
        write_package(replace(parts, target=load(name)), tmp_path / "m")
        header = Package.open(tmp_path / "m").header
        assert (int(header["interleave"]), int(header["cores"])) == (q, cores)


def test_equal_parts_make_equal_packages(parts: Parts, tmp_path: Path) -> None:
    write_package(parts, tmp_path / "one")
    write_package(parts, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("target", ["x86-64-v3", "aarch64-i8mm"])
@pytest.mark.parametrize("quantizer", ["nested", "gobo"])
def test_weights_read_back(quantizer: str, target: str, tmp_path: Path, parts: Parts) -> None:
    materials = materials_for(quantizer)
    quantized, store = materials.encoder, materials.store
    assert store.nested == (quantizer == "nested")
    planned = (Planned(plan_of(BITS, RESIDENT)),)
    write_package(assemble_package(materials, planned, load(target), parts.kernels, keep_planes=True), tmp_path / "m")
    package = Package.open(tmp_path / "m")
    package.verify()
    assert package.nested == store.nested and package.plan["quantizer"] == quantizer
    for name in MATRICES["layer"]:
        exact = package.matrix(1, 2, name, 16).weight
        np.testing.assert_array_equal(exact, shard_matrices(quantized.sharded, 1, 2)[name].astype("<f2"))
        matrix = quantized.matrix(1, 2, name)
        for bits in range(2, 9):
            stored = package.matrix(1, 2, name, bits)
            assert stored.codes is not None and stored.table is not None
            values = matrix.scale[:, None] * stored.table[stored.codes]
            values[stored.outlier_rows, stored.outlier_columns] = stored.outlier_values
            np.testing.assert_allclose(values, dequantize(quantized, 1, 2, name, bits), rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(stored.codes, matrix.codes_at(bits))
            at = np.lexsort((stored.outlier_columns, stored.outlier_rows))  # as the compiler sorts them
            np.testing.assert_array_equal(stored.outlier_rows[at], matrix.outliers.rows)
            np.testing.assert_array_equal(stored.outlier_columns[at], matrix.outliers.columns)
            np.testing.assert_array_equal(stored.outlier_values[at], matrix.outliers.values)
    used = sum(
        int(store.bytes[0, level, s]) for s, bits in enumerate(BITS[0]) for level in levels_of(bits, store.nested)
    )
    assert used == sum(store.shard_bytes(0, s, bits) for s, bits in enumerate(BITS[0]))


@pytest.mark.parametrize("quantizer", ["nested", "gobo"])
def test_the_engine_runs_what_was_written(quantizer: str, tmp_path: Path) -> None:
    materials, target = materials_for(quantizer), load("host")
    generate(materials.kernel_shape, target, tmp_path / "kernels.so")
    plan = plan_of(BITS, RESIDENT)
    parts = assemble_package(materials, (Planned(plan),), target, tmp_path / "kernels.so")
    assert parts.default.claimed_bytes == claim(materials, plan, place_extents(plan, materials.store))
    write_package(parts, tmp_path / "model.stic")
    reference = Reference(Package.open(tmp_path / "model.stic"))
    random = np.random.default_rng(3)
    errors = []
    with Session(tmp_path / "model.stic") as session:
        assert session.info.claimed_bytes == parts.default.claimed_bytes
        for tokens in (1, 15, 16, 17, 40):
            ids = random.integers(0, 1024, tokens)
            want = reference.run(ids)
            errors.append(float(np.abs(session.run(ids) - want).max() / np.abs(want).max()))
        assert session.stats().peak_bytes <= parts.default.claimed_bytes
    assert max(errors) < 1e-5


def test_an_old_package_is_replaced(parts: Parts, other: Parts, tmp_path: Path) -> None:
    output = tmp_path / "model.stic"
    write_package(parts, output)
    write_package(other, output)
    package = Package.open(output)
    package.verify()
    assert package.entry.predicted_us == 123
    assert [path.name for path in tmp_path.iterdir()] == ["model.stic"]


def test_an_empty_folder_becomes_a_package(parts: Parts, tmp_path: Path) -> None:
    output = tmp_path / "model.stic"
    output.mkdir()
    write_package(parts, output)
    Package.open(output).verify()


@pytest.mark.parametrize("name", ["letter.txt", "index.bin"])
def test_a_folder_of_something_else_is_left_alone(name: str, parts: Parts, tmp_path: Path) -> None:
    output = tmp_path / "home"
    output.mkdir()
    (output / name).write_text("dear reader")
    with pytest.raises(InputError, match="home exists and is not a stic package: choose another output, or remove it"):
        write_package(parts, output)
    assert contents(output) == {name: b"dear reader"}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_file_is_left_alone(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "model.stic").write_text("a file")
    with pytest.raises(InputError, match="is not a stic package"):
        write_package(parts, tmp_path / "model.stic")
    assert contents(tmp_path) == {"model.stic": b"a file"}


def test_a_damaged_package_is_replaced(parts: Parts, tmp_path: Path) -> None:
    output = tmp_path / "model.stic"
    write_package(parts, output)
    (output / "trunk.bin").unlink()
    (output / "index.bin").write_bytes((output / "index.bin").read_bytes()[:100])
    write_package(parts, output)
    Package.open(output).verify()


@pytest.mark.parametrize("there", [False, True])
def test_a_failing_write_leaves_what_was_there(
    there: bool, parts: Parts, other: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model.stic"
    if there:
        write_package(parts, output)
    before = contents(output) if there else {}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_package(other, output)
    assert [path.name for path in tmp_path.iterdir()] == (["model.stic"] if there else [])
    assert not there or contents(output) == before


def test_a_full_disk_leaves_the_old_package(parts: Parts, other: Parts, small_disk: Path) -> None:
    output = small_disk / "model.stic"
    write_package(parts, output)
    before = contents(output)
    with pytest.raises(OSError) as caught:
        write_package(other, output)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in small_disk.iterdir()] == ["model.stic"]
    assert contents(output) == before
    Package.open(output).verify()


def test_leftovers_of_a_killed_run_are_no_obstacle(parts: Parts, other: Parts, tmp_path: Path) -> None:
    output = tmp_path / "model.stic"
    write_package(parts, output)
    for suffix in ("partial", "old"):
        leftover = tmp_path / f".model.stic.{os.getpid()}.{suffix}"
        leftover.mkdir()
        (leftover / "shards.bin").write_bytes(b"half")
    write_package(other, output)
    assert [path.name for path in tmp_path.iterdir()] == ["model.stic"]
    assert Package.open(output).entry.predicted_us == 123


def test_an_interrupted_run_leaves_nothing(parts: Parts, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_package(parts, tmp_path / "model.stic", interrupt)
    assert not list(tmp_path.iterdir())


def test_the_old_package_comes_back_if_the_new_one_cannot_stand(
    parts: Parts, other: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model.stic"
    write_package(parts, output)
    before = contents(output)
    really = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write_package(other, output)
    assert [path.name for path in tmp_path.iterdir()] == ["model.stic"]
    assert contents(output) == before


def test_full_precision_is_stored_only_where_a_plan_uses_it(parts: Parts, tmp_path: Path) -> None:
    materials, target = materials_for("nested"), load("host")
    coarse = plan_of(((8, 8, 5, 2), (6, 4, 3)), ((8, 8, 5, 0), (6, 0, 0)))
    one, both = (Planned(coarse),), (Planned(coarse), Planned(plan_of(BITS, RESIDENT)))
    write_package(assemble_package(materials, one, target, parts.kernels, keep_planes=True), tmp_path / "coarse")
    write_package(parts, tmp_path / "fine")
    write_package(assemble_package(materials, both, target, parts.kernels, keep_planes=True), tmp_path / "both")
    stored = {name: (tmp_path / name / "shards.bin").read_bytes() for name in ("coarse", "fine", "both")}
    assert stored["fine"] == stored["both"] and len(stored["fine"]) > len(stored["coarse"])
    assert stored["fine"].startswith(stored["coarse"])
    without = Package.open(tmp_path / "coarse")
    without.verify()
    assert int(without.header["full_bits"]) == 0 and not without.records["bytes"][:, FULL].any()
    assert int(Package.open(tmp_path / "both").header["full_bits"]) == 16


def test_a_store_without_full_precision_has_no_such_records(parts: Parts, tmp_path: Path) -> None:
    materials = collect(parts.quantized, 0, MAX_LENGTH, 2, 2)
    assert not materials.store.bytes[:, FULL].any()
    plan = plan_of(((8, 8, 5, 2), (6, 4, 3)), ((8, 8, 5, 0), (6, 0, 0)))
    parted = assemble_package(materials, (Planned(plan),), load("host"), parts.kernels, keep_planes=True)
    write_package(parted, tmp_path / "m")
    Package.open(tmp_path / "m").verify()
    assert (tmp_path / "m" / "shards.bin").stat().st_size == materials.store.total_bytes < parts.store.total_bytes
