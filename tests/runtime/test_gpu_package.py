"""The GPU part of a package: written and read back, and refused where it cannot be."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.errors import PackageError
from stic.runtime.format import BLOCK, HEADER, REGION
from stic.runtime.gpu_format import GPU, GPU_REGIONS, PROGRAM_FILE, codes_bytes, state_sizes
from stic.runtime.layout import pad
from stic.runtime.package import Package

BITS = ((16, 8, 5, 2), (6, 4, 3), (), (4, 4, 2, 2))
RESIDENT = ((0, 4, 2, 2), (6, 3, 0), (), (0, 0, 0, 0))
PLACES = ("gpu", "cpu", "cpu", "gpu")
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def package(make_package: Write) -> Path:
    return make_package(BITS, RESIDENT, compiled=False, gpu="mali-g52", places=PLACES)


@pytest.fixture
def damaged(package: Path, tmp_path: Path, with_header: Callable[..., bytes]) -> Callable[[int, np.ndarray], Path]:
    """`damaged(at, values)`: a copy whose index holds `values` at an offset, its checksum right."""

    def damage(at: int, values: np.ndarray) -> Path:
        copy = Path(shutil.copytree(package, tmp_path / "copy.stic"))
        index = bytearray((copy / "index.bin").read_bytes())
        raw = values.tobytes()
        index[at : at + len(raw)] = raw
        (copy / "index.bin").write_bytes(with_header(bytes(index)))
        return copy

    return damage


def place_of(package: Path) -> tuple[int, np.void]:
    """Offset of the GPU structure in index.bin, and the structure."""
    index = (package / "index.bin").read_bytes()
    at = int(np.frombuffer(index, HEADER, 1)[0]["gpu_at"])
    return at, np.frombuffer(index, GPU, 1, at)[0]


def test_reads_back_what_was_written(package: Path) -> None:
    opened = Package.open(package)
    opened.verify()
    gpu = opened.gpu
    assert gpu is not None and opened.places == gpu.places == PLACES
    assert (gpu.style, gpu.storage, gpu.fallback) == ("mali", "float16", True)
    assert PROGRAM_FILE in opened.files and int(opened.header["minor"]) == 0
    assert opened.plan["plan"]["layers"][3]["place"] == "gpu"
    sizes = state_sizes(opened.shapes[0], 4, 40, 16, gpu.scores_tiles, int(opened.header["row_stride"]))
    assert {name: size for name, (_, size) in gpu.regions.items()} == sizes
    offset, size = opened.regions["preload"]
    assert offset == 0 and opened.regions["working"][0] == pad(size, BLOCK)


def test_all_that_the_gpu_holds_is_claimed(make_package: Write, package: Path) -> None:
    opened, without = Package.open(package), Package.open(make_package(BITS, RESIDENT, compiled=False))
    assert opened.gpu is not None and without.gpu is None and set(without.places) == {"cpu"}
    assert PROGRAM_FILE not in without.files and int(without.header["minor"]) == 0
    beside = opened.gpu.state_bytes + int(opened.files["trunk.bin"]["bytes"]) + codes_bytes(4, 4)
    claimed = [p.entry.claimed_bytes for p in (opened, without)]
    grown = len((package / "index.bin").read_bytes()) - int(without.header["index_bytes"])
    assert beside + grown <= claimed[0] - claimed[1] <= beside + 4 * BLOCK


def test_single_precision_takes_the_room_it_needs(make_package: Write, package: Path) -> None:
    half = Package.open(package).gpu
    single = Package.open(
        make_package(BITS, RESIDENT, compiled=False, gpu="mali-g52", gpu_precision="float32", fallback=False)
    ).gpu
    assert half is not None and single is not None
    assert single.storage == "float32" and not single.fallback and single.places == ("gpu", "gpu", "cpu", "gpu")
    for name in ("x", "qkv", "context", "ffn"):
        assert single.regions[name][1] == 2 * half.regions[name][1]
    assert single.regions["y"][1] == half.regions["y"][1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("storage_bits", 8, "8-bit storage"),
        ("style", 2, "style 2"),
        ("fallback", 2, "fallback 2"),
        ("launches", 65, "65 launches"),
        ("launches_at", 2, "table of the GPU part lies outside"),
        ("places_at", 1 << 30, "table of the GPU part lies outside"),
        ("state_at", 1 << 30, "table of the GPU part lies outside"),
        ("scores_tiles", 0, "scores of 0 tiles"),
        ("scores_tiles", 4, "scores of 4 tiles"),
        ("state_bytes", BLOCK, "of the GPU's state lies wrong"),
    ],
)
def test_wrong_fields_are_refused(
    field: str, value: int, message: str, package: Path, damaged: Callable[..., Path]
) -> None:
    at, gpu = place_of(package)
    changed = gpu.copy()
    changed[field] = value
    with pytest.raises(PackageError, match=message):
        Package.open(damaged(at, changed))


@pytest.mark.parametrize("places", [(0, 0, 0, 0), (1, 0, 1, 1), (2, 0, 0, 0)])
def test_places_that_cannot_be_are_refused(
    places: tuple[int, ...], package: Path, damaged: Callable[..., Path]
) -> None:
    at = int(place_of(package)[1]["places_at"])
    with pytest.raises(PackageError, match=r"places no layer|slices has place"):
        Package.open(damaged(at, np.array(places, np.uint8)))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", {"offset": 64}, "lies wrong"),
        ("x", {"bytes": 16}, "lies wrong"),
        ("scores", {"bytes": 1 << 40}, "lies wrong"),
        ("y", {"offset": 0}, "regions x and y"),
        ("scores", {"offset": 0}, "overlap"),
    ],
)
def test_state_that_cannot_be_is_refused(
    name: str, change: dict[str, int], message: str, package: Path, damaged: Callable[..., Path]
) -> None:
    index = (package / "index.bin").read_bytes()
    at = int(place_of(package)[1]["state_at"]) + GPU_REGIONS.index(name) * REGION.itemsize
    row = np.frombuffer(index, REGION, 1, at)[0].copy()
    for field, value in change.items():
        row[field] = value
    with pytest.raises(PackageError, match=message):
        Package.open(damaged(at, row))


def test_a_package_without_the_text_of_its_kernels_is_refused(
    package: Path, tmp_path: Path, with_header: Callable[..., bytes]
) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "copy.stic"))
    index = (copy / "index.bin").read_bytes().replace(b"kernels.cl\0", b"kernels.xx\0")
    (copy / "index.bin").write_bytes(with_header(index))
    (copy / "kernels.cl").rename(copy / "kernels.xx")
    with pytest.raises(PackageError, match=r"lists no kernels\.cl"):
        Package.open(copy)


def test_a_gpu_part_outside_the_index_is_refused(
    package: Path, tmp_path: Path, with_header: Callable[..., bytes]
) -> None:
    for at in (2, 1 << 31):
        copy = Path(shutil.copytree(package, tmp_path / f"{at}.stic"))
        (copy / "index.bin").write_bytes(with_header((copy / "index.bin").read_bytes(), gpu_at=at))
        with pytest.raises(PackageError, match="the GPU part lies outside"):
            Package.open(copy)
