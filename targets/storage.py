"""Measure storage as the engine uses it: O_DIRECT reads of several sizes on several lanes, cold.

A page cache that answers instead of the device would make every later plan wrong, so direct reads are proved:
the same blocks read both ways must agree, and where O_DIRECT is refused the file is dropped from the cache
before each pass and the result says `direct: false`.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stic.runtime.errors import TargetError
from stic.runtime.format import BLOCK

FILE_BYTES = 96 << 20
SIZES = (BLOCK, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
PASSES = 5
PASS_SECONDS = 0.12  # a pass ends at this time or at the end of the file


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


def _read(descriptor: int, offsets: Sequence[int], size: int, deadline: float) -> list[float]:
    buffer = mmap.mmap(-1, size)  # anonymous maps are page-aligned, which O_DIRECT wants
    taken: list[float] = []
    for offset in offsets:
        start = time.perf_counter()
        if taken and start > deadline:  # a lane that starts late still reads once
            break
        if os.preadv(descriptor, [buffer], offset) != size:
            raise TargetError("a read of the probe's own file came back short: is another program truncating it?")
        taken.append(time.perf_counter() - start)
    return taken


def direct_works(path: Path) -> bool:
    """Whether O_DIRECT reads of `path` succeed and return what buffered reads return."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return False
    try:
        buffer = mmap.mmap(-1, 4 * BLOCK)
        size = os.preadv(descriptor, [buffer], 0)
        with path.open("rb") as file:
            return size > 0 and file.read(size) == buffer[:size]
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _pass(path: Path, direct: bool, size: int, lanes: int, pool: ThreadPoolExecutor) -> tuple[float, list[float]]:
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        offsets = list(range(0, FILE_BYTES - size + 1, size))
        if size == BLOCK:  # embedding rows are anywhere in the table
            random.Random(lanes).shuffle(offsets)
        start = time.perf_counter()
        shares = [offsets[lane::lanes] for lane in range(lanes)]
        done = list(pool.map(lambda share: _read(descriptor, share, size, start + PASS_SECONDS), shares))
        wall = time.perf_counter() - start
        taken = [t for share in done for t in share]
        return wall / len(taken), taken
    finally:
        os.close(descriptor)


def measure_storage(
    folder: Path, lanes: Sequence[int], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Measure reads of a temporary file in `folder`; returns {"direct", "points"}.

    Raises TargetError if the folder cannot hold the file.
    """
    points: list[Point] = []
    cases = [(size, count) for count in lanes for size in SIZES]
    try:
        handle = tempfile.NamedTemporaryFile(dir=folder, prefix=".stic-probe-")
    except OSError as error:
        raise TargetError(f"cannot measure storage in {folder}: {error.strerror}; name another folder") from error
    with handle as file, ThreadPoolExecutor(max(lanes)) as pool:
        try:
            noise = np.random.default_rng(0).bytes(1 << 20)
            for _ in range(FILE_BYTES >> 20):
                file.write(noise)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise TargetError(f"the probe needs {FILE_BYTES >> 20} MiB in {folder}: {error.strerror}") from error
        path = Path(file.name)
        direct = direct_works(path)
        for done, (size, count) in enumerate(cases):
            passes = [_pass(path, direct, size, count, pool) for _ in range(PASSES)]
            each = [1e6 * wall for wall, _ in passes]
            low, middle, high = statistics.quantiles(each, n=4)
            latency = 1e6 * statistics.median(t for _, taken in passes for t in taken)
            points.append(Point(size, count, middle, high - low, latency))
            progress(done + 1, len(cases))
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
