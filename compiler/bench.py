"""Measure a package with `stic_run`, the engine's own command: a process that holds nothing but the engine."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from stic.compiler.quantities import format_bytes, format_time
from stic.runtime.errors import EngineError, InputError
from stic.runtime.package import Package
from stic.targets.target import load
from stic.targets.toolchain import build_engine


@dataclass(frozen=True)
class Bench:
    """What a package costs; times in microseconds, memory in bytes."""

    runs: int
    tokens: int
    threads: int
    lanes: int
    cold: bool  # the preload buffer was emptied before every run
    median_us: int
    p95_us: int
    predicted_us: int  # for the longest input
    deadline_us: int | None
    stall_us: int  # mean of a run
    io_bytes: int  # of the last run
    io_requests: int
    direct: bool  # reads bypassed the page cache
    peak_bytes: int  # what the engine counts
    claimed_bytes: int  # what the plan claims
    rss_bytes: int  # what the operating system counts, at the peak (VmHWM)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def table(self) -> Table:
        """The same for people."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column()
        state = "emptied before each run" if self.cold else "warm"
        table.add_row("runs", f"{self.runs} of {self.tokens} tokens, {self.threads} threads, {self.lanes} lanes")
        table.add_row("preload buffer", f"{state}; everything else cold")
        deadline = f", deadline {format_time(self.deadline_us)}" if self.deadline_us else ""
        table.add_row("median", f"{format_time(self.median_us)} (predicted {format_time(self.predicted_us)}{deadline})")
        table.add_row("95 % within", format_time(self.p95_us))
        table.add_row("stalled", f"{format_time(self.stall_us)} of a run, waiting for storage")
        way = "past the page cache" if self.direct else "through the page cache, dropped before"
        table.add_row("read", f"{format_bytes(self.io_bytes)} in {self.io_requests} requests a run, {way}")
        table.add_row("engine memory", f"{format_bytes(self.peak_bytes)} (claimed {format_bytes(self.claimed_bytes)})")
        table.add_row("process memory", f"{format_bytes(self.rss_bytes)} at its peak")
        return table


def measure(
    path: Path, runs: int, threads: int | None, tokens: int | None, cold: bool, storage_bytes_per_s: int | None = None
) -> Bench:
    """Run random tokens through the package `runs` times in a process of its own.

    `tokens` defaults to the length that was planned for; they differ from each other, so that each reads its own row.
    `storage_bytes_per_s` emulates storage of that bandwidth.
    Raises PackageError for what is no package, EngineError with the engine's sentence where it refuses.
    """
    package = Package.open(path)
    limit = int(package.header["max_length"])
    tokens = tokens or limit
    if tokens > limit:
        raise InputError(f"--length is {tokens}: the package was compiled for at most {limit} tokens")
    vocabulary = int(package.header["vocabulary"])
    ids = random.Random(1).sample(range(vocabulary), min(tokens, vocabulary))
    ids += ids[:1] * (tokens - len(ids))
    options = ["--ids", ",".join(map(str, ids)), "--runs", str(runs), "--json"]
    options += ["--threads", str(threads)] if threads else []
    options += ["--cold"] if cold else []
    options += ["--io-limit", str(storage_bytes_per_s)] if storage_bytes_per_s else []
    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        runner = build_engine(load("host"), Path(folder)).runner
        done = subprocess.run([str(runner), str(path), *options], capture_output=True, text=True)
    if done.returncode != 0:
        message = done.stderr.strip().removeprefix("stic_run: ")
        raise EngineError(message or f"stic_run ended with status {done.returncode} and said nothing")
    found = json.loads(done.stdout)
    del found["outputs"], found["emulated"]
    return Bench(tokens=tokens, cold=cold, deadline_us=int(package.header["deadline_us"]) or None, **found)
