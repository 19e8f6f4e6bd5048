"""The storage probe: what it measures, what it says of O_DIRECT, and the line through it."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stic.runtime.errors import TargetError
from stic.runtime.format import BLOCK
from stic.targets import storage
from stic.targets.storage import SIZES, direct_works, fit, measure_storage


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of a few megabytes and short passes."""
    monkeypatch.setattr(storage, "FILE_BYTES", 8 << 20)
    monkeypatch.setattr(storage, "PASS_SECONDS", 0.002)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_every_size_and_lane_count_is_measured(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = measure_storage(tmp_path, (1, 2), lambda done, total: steps.append((done, total)))
    points = found["points"]
    assert [(p["lanes"], p["bytes"]) for p in points] == [(lanes, size) for lanes in (1, 2) for size in SIZES]
    assert all(p["median_us"] > 0 and p["latency_us"] > 0 and p["spread_us"] >= 0 for p in points)
    assert steps == [(i, len(points)) for i in range(1, len(points) + 1)]
    assert not list(tmp_path.iterdir())
    for lanes in (1, 2):
        line = fit(points, lanes)
        assert line["bytes_per_s"] > 0 and line["request_us"] >= 0 and line["row_us"] > 0


def test_a_pass_reads_at_least_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PASS_SECONDS", -1.0)
    assert all(p["median_us"] > 0 for p in measure_storage(tmp_path, (2,))["points"])


def test_direct_is_proved_by_reading(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(8 * BLOCK))
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip(f"{tmp_path} refuses O_DIRECT")
    assert direct_works(file)
    assert measure_storage(tmp_path, (1,))["direct"] is True
    file.write_bytes(b"")
    assert not direct_works(file)


def test_tmpfs_without_direct_reads() -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("needs /dev/shm")
    probe = shm / f"stic-{os.getpid()}"
    probe.write_bytes(bytes(BLOCK))
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        assert measure_storage(shm, (1,))["direct"] is False
    else:
        pytest.skip("this kernel's tmpfs accepts O_DIRECT")
    finally:
        probe.unlink()


def test_a_folder_that_refuses_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.open

    def refuse(path: str | Path, flags: int, *more: int, **options: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    found = measure_storage(tmp_path, (1,))
    assert found["direct"] is False and len(found["points"]) == len(SIZES)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"cannot measure storage in .*missing: No such file.*name another folder"):
        measure_storage(tmp_path / "missing", (1,))
    with pytest.raises(TargetError, match="cannot measure storage in /proc"):
        measure_storage(Path("/proc"), (1,))


def test_a_disk_that_is_too_small(tiny_disk: Path) -> None:
    with pytest.raises(TargetError, match=r"the probe needs 8 MiB in .*: No space left on device"):
        measure_storage(tiny_disk, (1,))
    assert not list(tiny_disk.iterdir())


def test_fit_recovers_a_line() -> None:
    def point(size: int, lanes: int, request_us: float, bytes_per_s: float) -> dict[str, float]:
        return {"bytes": size, "lanes": lanes, "median_us": request_us + 1e6 * size / bytes_per_s}

    points = [point(size, 1, 150.0, 2e8) for size in SIZES] + [point(size, 2, 80.0, 5e8) for size in SIZES]
    points[0]["median_us"] = 77.0  # one block is a row of embeddings, and no part of the line
    assert fit(points, 1) == pytest.approx({"request_us": 150.0, "bytes_per_s": 2e8, "row_us": 77.0})
    assert fit(points, 2)["bytes_per_s"] == pytest.approx(5e8)
    with pytest.raises(TargetError, match="no measurements with 4 IO lanes: probe again with --lanes 4"):
        fit(points, 4)


def test_fit_of_a_falling_line_stays_physical() -> None:
    points = [{"bytes": size, "lanes": 1, "median_us": 100.0 - i} for i, size in enumerate(SIZES)]
    line = fit(points, 1)
    assert line["request_us"] >= 0 and 0 < line["bytes_per_s"] <= 1e12
    steep = [{"bytes": size, "lanes": 1, "median_us": 1e-9 * size**2} for size in SIZES]
    assert fit(steep, 1)["request_us"] == 0.0
