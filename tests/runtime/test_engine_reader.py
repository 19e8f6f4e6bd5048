"""The engine's reader of packages on its own: what the compiler wrote it accepts, what was altered it refuses.

Needs a C compiler, and uses its sanitizers where it has them. No kernels are compiled.
"""

import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.runtime.errors import PackageError, ToolchainError
from stic.runtime.format import FEATURES, LEVELS, MAJOR, MINOR, RECORD, REGION, REGIONS, TILE
from stic.runtime.layout import record_layout
from stic.runtime.package import Package
from stic.targets.target import load
from stic.targets.toolchain import find_c_compiler

ROOT = Path(__file__).resolve().parents[2]
READER = (
    "package package_model package_memory package_extents package_plans package_gpu record tied trunk crc error".split()
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MIXED = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
Change = Callable[..., bytes]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("reader") / "reader"
    sources = [Path(__file__).with_name("reader.c"), *(ROOT / "runtime" / "src" / f"{name}.c" for name in READER)]
    includes = [f"-I{ROOT / 'runtime' / part}" for part in ("src", "include")]
    line = ["-std=c11", "-g", "-O1", "-pthread", *includes, *map(str, sources), "-o", str(program)]
    compiler = find_c_compiler(load("host"))
    try:
        compiler.run([*SANITIZERS, *line], "reader")
    except ToolchainError:
        compiler.run(line, "reader")
    return program


@pytest.fixture(scope="module", params=["x86-64-v3", "aarch64-i8mm"])
def written(request: pytest.FixtureRequest, make_package: Callable[..., Path]) -> Path:
    """A package of either interleave."""
    return make_package(MIXED, target=request.param, compiled=False)


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may alter."""
    return Path(shutil.copytree(written, tmp_path / "copy.stic"))


def read(program: Path, package: Path) -> str:
    """What the engine's reader says of a package."""
    line = [program, package / "index.bin", package / "shards.bin"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


@pytest.mark.parametrize(
    "options",
    [
        dict(bits=MIXED),
        dict(bits=((8, 3), (4, 4)), hidden=40, heads=2, head_dim=20, ffn=50, slices=2),
        dict(bits=((4,),), hidden=4096, heads=1, head_dim=16, ffn=32, slices=1, threads=3),
        dict(bits=((4, 2),), hidden=160, heads=2, head_dim=80, ffn=64, slices=2, table_resident=True),
    ],
)
@pytest.mark.parametrize("target", ["x86-64-v3", "aarch64-i8mm", "odroid-n2plus"])
def test_accepts_what_the_compiler_writes(
    target: str, options: dict[str, Any], reader: Path, make_package: Callable[..., Path]
) -> None:
    package = make_package(**options, target=target, compiled=False)
    header = Package.open(package).header
    assert header["interleave"] == (8 if "i8mm" in load(target).features else 4)
    assert header["cores"] == load(target).core_bits
    assert read(reader, package) == "ok"


@pytest.mark.parametrize("value", [0, 1, 2, 3, 5, 12, 16, 1 << 31, (1 << 32) - 1])
def test_other_interleaves(value: int, reader: Path, copy: Path, with_header: Change) -> None:
    (copy / "index.bin").write_bytes(with_header((copy / "index.bin").read_bytes(), interleave=value))
    assert f"interleave is {value}" in read(reader, copy)
    with pytest.raises(PackageError, match=f"interleave is {value}"):
        Package.open(copy)


@pytest.mark.parametrize("value", [0, 1, 0b111100, 1 << 63, (1 << 64) - 1])
def test_any_set_of_cores(value: int, reader: Path, copy: Path, with_header: Change) -> None:
    (copy / "index.bin").write_bytes(with_header((copy / "index.bin").read_bytes(), cores=value))
    assert read(reader, copy) == "ok"
    assert int(Package.open(copy).header["cores"]) == value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row_lanes": 1}, "1 lanes read rows and 2 extents"),
        ({"row_lanes": 17}, "row_lanes is 17"),
        ({"padding": 8193}, "the padding is token 8192 of 8192"),
        ({"features": 1 << len(FEATURES)}, "features is"),
        ({"major": 2}, f"format 2.0 and this engine reads {MAJOR}.0"),
        ({"minor": MINOR + 1}, f"format {MAJOR}.{MINOR + 1}"),
    ],
)
def test_what_another_engine_may_write(
    change: dict[str, int], words: str, reader: Path, copy: Path, with_header: Change
) -> None:
    (copy / "index.bin").write_bytes(with_header((copy / "index.bin").read_bytes(), **change))
    assert words in read(reader, copy)


def test_a_scratch_region_too_small_for_attention(reader: Path, copy: Path, with_header: Change) -> None:
    index, number = bytearray((copy / "index.bin").read_bytes()), REGIONS.index("scratch")
    table = np.frombuffer(index, REGION, len(REGIONS), int(Package.open(copy).header["regions_at"]))
    table["bytes"][number] -= 64
    (copy / "index.bin").write_bytes(with_header(bytes(index)))
    assert f"memory region {number} has" in read(reader, copy)


def outliers_of(package: Package, shards: bytearray) -> np.ndarray:
    """The entries, in `shards`, of the first block with two of them in the record of layer 0, level 0, slice 1."""
    start = int(package.records[0, 0, 1]["offset"])
    shape = package.shapes[0]
    layout = record_layout(shape, 0, package.nested)
    counts = [shape.matrix(name)[0] // TILE + 1 for name in shape.matrices]
    starts = [np.frombuffer(shards, "<u4", n, start + at) for n, at in zip(counts, layout.blocks, strict=True)]
    layout = record_layout(shape, 0, package.nested, outliers=tuple(int(s[-1]) for s in starts))
    block = int(np.argmax(np.diff(starts[0]) >= 2))
    assert starts[0][block + 1] >= starts[0][block] + 2
    at = start + layout.outliers[0] + 4 * int(starts[0][block])
    return np.frombuffer(shards, [("position", "<u2"), ("value", "<u2")], 2, at)


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("position", (0, 0xFFFF), "outside"),
        ("position", (0, TILE * 64), "outside"),
        ("position", (7, 7), "out of order"),
        ("position", (9, 8), "out of order"),
        ("value", (0x7C00, 0), "finite"),
        ("value", (0, 0xFE00), "finite"),
    ],
)
def test_outliers_that_are_wrong(
    field: str, values: tuple[int, int], words: str, reader: Path, copy: Path, with_header: Change
) -> None:
    package = Package.open(copy)
    record = package.records[0, 0, 1]
    shards, index = bytearray((copy / "shards.bin").read_bytes()), bytearray((copy / "index.bin").read_bytes())
    outliers_of(package, shards)[field] = values
    at, count = int(package.header["records_at"]), LEVELS * sum(shape.slices for shape in package.shapes)
    records = np.frombuffer(index, RECORD, count, at).reshape(package.records.shape)
    records[0, 0, 1]["crc"] = zlib.crc32(shards[int(record["offset"]) :][: int(record["bytes"])])
    (copy / "shards.bin").write_bytes(shards)
    (copy / "index.bin").write_bytes(with_header(bytes(index)))
    assert words in read(reader, copy)
    with pytest.raises(PackageError, match=words):
        Package.open(copy).matrix(0, 1, "qkv", 8)
