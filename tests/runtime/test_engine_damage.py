"""Damaged packages under ASan and UBSan: refused with a sentence, never a crash. Needs a compiler with sanitizers.

The sanitized engine runs in a program that opens and runs many packages in one process, so that thousands of
damaged ones are a matter of seconds.
"""

import random
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.errors import PackageError
from stic.runtime.format import HEADER, MODEL, PLAN, REGION, offset_of
from stic.runtime.gpu_format import GPU, GPU_REGIONS, LAUNCH
from stic.runtime.package import Package


@pytest.fixture(scope="module")
def damage(sanitized: Callable[[str], Path]) -> Path:
    """tests/runtime/damage.c with the engine, both under sanitizers."""
    return sanitized("damage.c")


def call(program: Path, *arguments: str | Path) -> list[str]:
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout.splitlines()


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy.stic"))


def test_good_package_runs(damage: Path, package: Path) -> None:
    assert call(damage, "run", package, "index.bin") == ["ok"]


def test_index_truncated_at_every_byte(damage: Path, copy: Path) -> None:
    assert call(damage, "truncate", copy, "index.bin", "1") == ["0 accepted"]


@pytest.mark.parametrize("name", ("trunk.bin", "embeddings.bin", "shards.bin", "kernels.so", "plan.json"))
def test_files_truncated(damage: Path, copy: Path, name: str) -> None:
    step = max(1, (copy / name).stat().st_size // 40)
    assert call(damage, "truncate", copy, name, str(step)) == ["0 accepted"]


@pytest.mark.parametrize("name", ("index.bin", "trunk.bin", "kernels.so"))
def test_bit_flips_are_refused(damage: Path, copy: Path, name: str) -> None:
    assert call(damage, "flip", copy, name, "400") == ["0 accepted"]


def test_bit_flips_in_shards_are_refused_before_use(damage: Path, copy: Path) -> None:
    package = Package.open(copy)
    chance = random.Random(4)
    good = (copy / "shards.bin").read_bytes()
    for extent in package.extents[::3]:
        record = package.records[extent["block"], extent["level"], extent["first"]]
        at = int(record["offset"]) + chance.randrange(int(record["bytes"]))
        data = bytearray(good)
        data[at] ^= 1 << chance.randrange(8)
        (copy / "shards.bin").write_bytes(data)
        (message,) = call(damage, "run", copy, "index.bin")
        assert f"corrupt at block {extent['block']}" in message and "checksum" in message


def test_newer_format(damage: Path, copy: Path, with_header: Callable[..., bytes]) -> None:
    index = copy / "index.bin"
    index.write_bytes(with_header(index.read_bytes(), minor=9))
    (message,) = call(damage, "run", copy, "index.bin")
    assert "format 3.9" in message and "update stic" in message


@pytest.mark.parametrize("name", (*(HEADER.names or ())[5:], *(MODEL.names or ())))
def test_hostile_fields(damage: Path, copy: Path, name: str, with_header: Callable[..., bytes]) -> None:
    """Any value in any field of the header or of the model, with a right checksum: the engine may refuse or run, but
    not crash."""
    good, package = (copy / "index.bin").read_bytes(), Package.open(copy)
    structure = package.header if name in (HEADER.names or ()) else package.model
    size = structure.dtype[name].itemsize
    old, top = int.from_bytes(structure[name].tobytes(), "little"), (1 << (8 * size)) - 1
    for value in {0, 1, max(0, old - 1), old + 1, old * 2, 64, 4096, 1 << 20, 1 << 31, top}:
        if value <= top and value != old:
            (copy / "index.bin").write_bytes(with_header(good, **{name: value}))
            call(damage, "survive", copy, "index.bin")


def test_hostile_tables(damage: Path, copy: Path, with_header: Callable[..., bytes]) -> None:
    """Random bytes of the tables changed, with a right checksum."""
    good = (copy / "index.bin").read_bytes()
    chance = random.Random(5)
    for _ in range(60):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(HEADER.itemsize, len(data))] = chance.randrange(256)
        (copy / "index.bin").write_bytes(with_header(bytes(data)))
        call(damage, "survive", copy, "index.bin")


def test_hostile_outliers(damage: Path, copy: Path, with_header: Callable[..., bytes]) -> None:
    """Records with wrong block starts or entries and right checksums are refused."""
    package = Package.open(copy)
    extent = next(e for e in package.extents if e["level"] == 0)
    layer, s = int(extent["block"]), int(extent["first"])
    record = package.records[layer, 0, s]
    shards = bytearray((copy / "shards.bin").read_bytes())
    start, size = int(record["offset"]), int(record["bytes"])
    index = bytearray((copy / "index.bin").read_bytes())
    number = package.record_number(layer, 0, s)
    crc_at = int(package.header["records_at"]) + number * 16 + 12
    refused = 0
    for at in range(start + size // 2 // 4 * 4, start + size - 4, 64):
        data = bytearray(shards)
        data[at : at + 4] = b"\xff\xff\xff\xff"
        (copy / "shards.bin").write_bytes(data)
        index[crc_at : crc_at + 4] = struct.pack("<I", zlib.crc32(data[start : start + size]))
        (copy / "index.bin").write_bytes(with_header(bytes(index)))
        refused += "outlier" in call(damage, "survive", copy, "index.bin")[0]
    assert refused > 0


@pytest.fixture
def family_copy(family: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(family, tmp_path / "family.stic"))


def test_a_family_runs_under_every_plan(damage: Path, family: Path) -> None:
    assert call(damage, "run", family, "index.bin") == ["ok"]


def test_index_of_a_family_damaged(damage: Path, family_copy: Path) -> None:
    assert call(damage, "truncate", family_copy, "index.bin", "7") == ["0 accepted"]
    assert call(damage, "flip", family_copy, "index.bin", "200") == ["0 accepted"]


@pytest.mark.parametrize("number", [0, 3])
def test_hostile_plans(damage: Path, family_copy: Path, number: int, with_header: Callable[..., bytes]) -> None:
    """Any value in any field of a plan: refused, or run without a crash."""
    good = (family_copy / "index.bin").read_bytes()
    start = int(Package.open(family_copy).header["plans_at"]) + number * PLAN.itemsize
    for at in range(0, PLAN.itemsize, 4):
        old = int.from_bytes(good[start + at : start + at + 4], "little")
        for value in {0, 1, max(0, old - 1), old + 1, old * 2, old + 64, old + 4096, 1 << 20, 1 << 31, (1 << 32) - 1}:
            if value < 1 << 32 and value != old:
                data = bytearray(good)
                data[start + at : start + at + 4] = value.to_bytes(4, "little")
                (family_copy / "index.bin").write_bytes(with_header(bytes(data)))
                call(damage, "survive", family_copy, "index.bin")


def test_hostile_tables_of_plans(damage: Path, family_copy: Path, with_header: Callable[..., bytes]) -> None:
    """Random bytes of the bits and extents of plans changed: refused, or another plan that can be run."""
    good = (family_copy / "index.bin").read_bytes()
    package = Package.open(family_copy)
    chance, refused = random.Random(7), 0
    for turn in range(90):
        plan = package.plans[1 + turn % (len(package.plans) - 1)]
        tables = ((plan.bits_at, 16), (plan.extents_at, 32 * plan.extents), (plan.extents_at, 32 * plan.extents))
        start, size = tables[turn % 3]
        data = bytearray(good)
        data[start + chance.randrange(size)] ^= chance.randrange(1, 256)
        (family_copy / "index.bin").write_bytes(with_header(bytes(data)))
        (message,) = call(damage, "survive", family_copy, "index.bin")
        refused += message.split(": ", 1)[-1].startswith(f"plan {plan.number}: index.bin")
    assert refused > 60


@pytest.mark.parametrize(
    ("values", "words"),
    (
        ({"plans": 0}, "plans is 0"),
        ({"plans": 65}, "plans is 65"),
        ({"plans": 60}, "outside"),
        ({"gpu_at": 256}, "several plans, and layers on a GPU"),
        ({"plans_at": 0}, "outside"),
    ),
)
def test_families_that_contradict_the_header(
    damage: Path, family_copy: Path, values: dict[str, int], words: str, with_header: Callable[..., bytes]
) -> None:
    index = family_copy / "index.bin"
    index.write_bytes(with_header(index.read_bytes(), **values))
    (message,) = call(damage, "run", family_copy, "index.bin")
    assert words in message
    with pytest.raises(PackageError):
        Package.open(family_copy)


@pytest.fixture
def without_opencl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU part is read, and then no device is there: nothing is compiled for each of many packages."""
    monkeypatch.setenv("STIC_OPENCL", "/nowhere/libOpenCL.so")


@pytest.mark.usefixtures("without_opencl")
def test_gpu_part_without_a_gpu(damage: Path, gpu_package: Path) -> None:
    assert call(damage, "run", gpu_package, "index.bin") == ["ok"]


@pytest.mark.usefixtures("opencl")
def test_gpu_layers_run(damage: Path, gpu_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PoCL and the compiler in it keep what they took when they compiled for the first time; the engine must not.
    drivers = tmp_path / "drivers"
    drivers.write_text("".join(f"leak:{name}\n" for name in ("libpocl", "libLLVM", "libclang", "libOpenCL")))
    monkeypatch.setenv("LSAN_OPTIONS", f"suppressions={drivers}:print_suppressions=0")
    monkeypatch.setenv("POCL_CACHE_DIR", str(tmp_path / "cache"))
    assert call(damage, "run", gpu_package, "index.bin") == ["ok"]


@pytest.mark.usefixtures("without_opencl")
@pytest.mark.parametrize("name", GPU.names or ())
def test_hostile_gpu_fields(damage: Path, gpu_copy: Path, name: str, with_header: Callable[..., bytes]) -> None:
    good = (gpu_copy / "index.bin").read_bytes()
    at = int(Package.open(gpu_copy).header["gpu_at"])
    kind, offset = GPU[name], offset_of(GPU, name)
    size = kind.base.itemsize
    old = int.from_bytes(good[at + offset :][:size], "little")
    top = (1 << (8 * size)) - 1
    for value in {0, 1, max(0, old - 1), old + 1, old * 2, 64, 1 << 20, 1 << 31, top}:
        if value <= top and value != old:
            data = bytearray(good)
            data[at + offset : at + offset + size] = value.to_bytes(size, "little")
            (gpu_copy / "index.bin").write_bytes(with_header(bytes(data)))
            call(damage, "survive", gpu_copy, "index.bin")


@pytest.mark.usefixtures("without_opencl")
def test_hostile_gpu_tables(damage: Path, gpu_copy: Path, with_header: Callable[..., bytes]) -> None:
    """Random bytes of launches, places and regions changed: refused, or run on the CPU."""
    good = (gpu_copy / "index.bin").read_bytes()
    at = int(Package.open(gpu_copy).header["gpu_at"])
    gpu = np.frombuffer(good, GPU, 1, at)[0]
    tables = (
        (int(gpu["launches_at"]), int(gpu["launches"]) * LAUNCH.itemsize),
        (int(gpu["places_at"]), 4),
        (int(gpu["state_at"]), len(GPU_REGIONS) * REGION.itemsize),
    )
    chance, refused = random.Random(6), 0
    for turn in range(60):
        start, size = tables[turn % len(tables)]
        data = bytearray(good)
        data[start + chance.randrange(size)] ^= chance.randrange(1, 256)
        (gpu_copy / "index.bin").write_bytes(with_header(bytes(data)))
        (message,) = call(damage, "survive", gpu_copy, "index.bin")
        refused += "index.bin" in message
    assert refused > 20
