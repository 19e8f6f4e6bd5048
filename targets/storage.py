"""Measure storage as the engine uses it: O_DIRECT reads of several sizes on several lanes, cold.

The engine itself reads, here or on a device behind a tracker. A page cache that answers instead of the device would
make every later plan wrong, so the engine proves direct reads: the same blocks read both ways must agree. Where they
are refused it drops the file from the cache before each pass, and the result says `direct: false`.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stic.runtime.errors import TargetError
from stic.runtime.format import BLOCK
from stic.targets.connection import DeviceRefused, Functions

FILE_BYTES = 96 << 20
SIZES = (BLOCK, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
PASSES = 5
PASS_SECONDS = 0.12  # a pass ends at this time or at the end of the file
FILL_S = 120.0  # how long a device may take to write the file


@dataclass(frozen=True)
class Point:
    """Time of one request when `lanes` lanes read requests of `bytes` without pause."""

    bytes: int
    lanes: int
    median_us: float  # wall time / requests, median over passes
    spread_us: float  # interquartile range over passes
    latency_us: float  # median time from a lane's submit to its completion

    @property
    def bytes_per_s(self) -> float:
        return self.bytes * 1e6 / self.median_us


def _pass(functions: Functions, folder: str, name: str, size: int, lanes: int) -> tuple[float, list[float], bool]:
    """Seconds for each read on the whole, those that each took by itself, and whether they passed the page cache."""
    times = np.zeros(FILE_BYTES // size + 1, np.int64)
    shuffled = int(size == BLOCK)  # embedding rows are anywhere in the table
    most_ns = int(PASS_SECONDS * 1e9)
    made = functions.call("stic_time_reads", folder, name, size, lanes, 0, shuffled, most_ns, times)
    count = abs(made)
    return times[0] / count / 1e9, list(times[1 : count + 1] / 1e9), made > 0


def measure_storage(
    functions: Functions,
    folder: str,
    lanes: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure reads of a temporary file in `folder` of the device whose engine's functions these are.

    Returns {"direct", "points"}. Raises TargetError if the folder cannot hold the file.
    """
    points: list[Point] = []
    cases = [(size, count) for count in lanes for size in SIZES if size * count <= FILE_BYTES]  # a read for each lane
    name = f".stic-probe-{secrets.token_hex(6)}"
    try:
        functions.call("stic_fill", f"{folder}/{name}", FILE_BYTES, seconds=FILL_S)
        direct = True
        for done, (size, count) in enumerate(cases):
            passes = [_pass(functions, folder, name, size, count) for _ in range(PASSES)]
            each = [1e6 * wall for wall, _, _ in passes]
            low, middle, high = statistics.quantiles(each, n=4)
            latency = 1e6 * statistics.median(t for _, taken, _ in passes for t in taken)
            points.append(Point(size, count, middle, high - low, latency))
            direct = direct and all(past for _, _, past in passes)
            progress(done + 1, len(cases))
    except DeviceRefused as error:
        need = f"the probe needs a file of {FILE_BYTES >> 20} MiB in {folder}"
        raise TargetError(f"{need}: {error.message}; name another folder with --directory") from error
    finally:
        with suppress(TargetError):
            functions.call("stic_remove", f"{folder}/{name}")
    return {"direct": direct, "points": [asdict(point) for point in points]}


def fit(points: Sequence[dict[str, Any]], lanes: int) -> dict[str, float]:
    """Fit `request_us + bytes / bytes_per_s` to the points with this many lanes, weighing relative errors.

    Returns request_us, bytes_per_s and row_us, the time of one random block.
    """
    chosen = [p for p in points if p["lanes"] == lanes]
    if len(chosen) < 3:
        raise TargetError(f"the profile has no measurements with {lanes} IO lanes: probe again with --lanes {lanes}")
    large = [p for p in chosen if p["bytes"] > BLOCK]
    times = np.array([p["median_us"] for p in large])
    rows = np.stack([np.ones(len(large)), [p["bytes"] for p in large]], axis=1)
    request_us, per_byte = np.linalg.lstsq(rows / times[:, None], np.ones(len(large)), rcond=None)[0]
    request_us = max(0.0, float(request_us))
    per_byte = max(float(per_byte), 1e-6)
    row_us = next(p["median_us"] for p in chosen if p["bytes"] == BLOCK)
    return {"request_us": request_us, "bytes_per_s": 1e6 / per_byte, "row_us": float(row_us)}
