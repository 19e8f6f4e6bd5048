"""The storage probe: what it measures, what it says of O_DIRECT, and the line through it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm_ffi", reason="needs apache-tvm")

from stic.runtime.errors import TargetError
from stic.runtime.format import BLOCK
from stic.targets import storage
from stic.targets.connection import DeviceRefused
from stic.targets.host import HostFunctions
from stic.targets.storage import SIZES, fit, measure_storage

HERE = HostFunctions()


def _reads(folder: Path, size: int, lanes: int = 1, most_ns: int = 10**9) -> tuple[int, np.ndarray]:
    """stic_time_reads of `file`: its result, and the times it gave."""
    times = np.full(100, -1, np.int64)
    return HERE.call("stic_time_reads", str(folder), "file", size, lanes, 0, 0, most_ns, times), times


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
    found = measure_storage(HERE, str(tmp_path), (1, 2), lambda done, total: steps.append((done, total)))
    points = found["points"]
    assert [(p["lanes"], p["bytes"]) for p in points] == [(lanes, size) for lanes in (1, 2) for size in SIZES]
    assert all(p["median_us"] > 0 and p["latency_us"] > 0 and p["spread_us"] >= 0 for p in points)
    assert steps == [(i, len(points)) for i in range(1, len(points) + 1)]
    assert not list(tmp_path.iterdir())
    for lanes in (1, 2):
        line = fit(points, lanes)
        assert line["bytes_per_s"] > 0 and line["request_us"] >= 0 and line["row_us"] > 0


def test_sizes_of_which_the_file_has_too_few_for_all_lanes_are_left_out(tmp_path: Path) -> None:
    points = measure_storage(HERE, str(tmp_path), (16,))["points"]
    assert [p["bytes"] for p in points] == [size for size in SIZES if 16 * size <= storage.FILE_BYTES] != list(SIZES)
    assert fit(points, 16)["row_us"] > 0


def test_a_lane_reads_at_least_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(64 * BLOCK))
    made, times = _reads(tmp_path, BLOCK, lanes=3, most_ns=0)
    assert abs(made) == 3 and (times[: 1 + 3] > 0).all()


def test_direct_is_proved_by_reading(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(8 * BLOCK))
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip(f"{tmp_path} refuses O_DIRECT")
    assert _reads(tmp_path, BLOCK)[0] == 8
    assert measure_storage(HERE, str(tmp_path), (1,))["direct"] is True


def test_tmpfs_without_direct_reads() -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("needs /dev/shm")
    probe = shm / f"stic-{os.getpid()}"
    probe.write_bytes(bytes(BLOCK))
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        assert measure_storage(HERE, str(shm), (1,))["direct"] is False
    else:
        pytest.skip("this kernel's tmpfs accepts O_DIRECT")
    finally:
        probe.unlink()


def test_one_read_through_the_page_cache_is_said(tmp_path: Path) -> None:
    class Sometimes(HostFunctions):
        """A device that refuses direct reads of one size."""

        def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
            if name == "stic_time_reads" and arguments[2] == SIZES[1]:
                arguments = (*arguments[:4], 1, *arguments[5:])
            return super().call(name, *arguments)

    found = measure_storage(Sometimes(), str(tmp_path), (1,))
    assert found["direct"] is False and len(found["points"]) == len(SIZES)


@pytest.mark.parametrize(
    "change",
    [{0: "a" * 5000}, {2: 100}, {2: 1 << 30}, {2: 0}, {3: 0}, {3: 65}, {3: 33}, {4: 2}, {6: -1}, {7: np.zeros(9, int)}],
)
def test_reads_that_make_no_sense_are_refused(tmp_path: Path, change: dict[int, Any]) -> None:
    (tmp_path / "file").write_bytes(bytes(32 * BLOCK))
    arguments = [str(tmp_path), "file", BLOCK, 1, 0, 0, 10**6, np.zeros(100, np.int64)]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(DeviceRefused, match="stic_time_reads"):
        HERE.call("stic_time_reads", *arguments)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"the probe needs .* in .*missing: .*No such file.*name another folder"):
        measure_storage(HERE, str(tmp_path / "missing"), (1,))
    with pytest.raises(TargetError, match="the probe needs a file of 8 MiB in /proc"):
        measure_storage(HERE, "/proc", (1,))


def test_a_disk_that_is_too_small(tiny_disk: Path) -> None:
    with pytest.raises(TargetError, match=r"the probe needs a file of 8 MiB in .*: No space left on device"):
        measure_storage(HERE, str(tiny_disk), (1,))
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
