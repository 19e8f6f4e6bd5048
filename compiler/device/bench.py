"""Measure a package: with `stic_run`, the engine's own command, in a process that holds nothing but the engine; or in
a session that is open already, as on a device."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Unpack

from rich.table import Table

from stic.compiler.device.runner import Running
from stic.compiler.quantities import format_bytes, format_time, quote_time
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError, InputError
from stic.runtime.package import Package
from stic.runtime.session import Info, SessionOptions, check_names, check_options, io_limits
from stic.targets.target import load
from stic.targets.toolchain import build_engine


class OpenSession(Running, Protocol):
    """A session that says what it was opened with."""

    info: Info


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
    late: int | None  # runs that took longer; None: there is no deadline
    plan: int  # of the package's plans, from 0
    stall_us: int  # mean of a run
    io_bytes: int  # of the last run
    io_requests: int
    direct: bool  # reads bypassed the page cache
    peak_bytes: int  # what the engine counts
    claimed_bytes: int  # what the plan claims
    rss_bytes: int | None  # what the operating system counts, at the peak (VmHWM); None: the process holds other things
    gpu_layers: int  # that ran on a GPU
    gpu_builds: int  # programs compiled for it from source
    gpu_device: str  # the GPU and its driver, or why layers planned for one ran on the CPU; "": none were

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
        deadline = f", deadline {quote_time(self.deadline_us)}" if self.deadline_us else ""
        table.add_row("median", f"{format_time(self.median_us)} (predicted {format_time(self.predicted_us)}{deadline})")
        late = f"; {self.late} of {self.runs} runs after the deadline" if self.late is not None else ""
        table.add_row("95 % within", format_time(self.p95_us) + late)
        table.add_row("stalled", f"{format_time(self.stall_us)} of a run, waiting for storage")
        way = "past the page cache" if self.direct else "through the page cache, dropped before"
        table.add_row("read", f"{format_bytes(self.io_bytes)} in {self.io_requests} requests a run, {way}")
        table.add_row("engine memory", f"{format_bytes(self.peak_bytes)} (claimed {format_bytes(self.claimed_bytes)})")
        if self.rss_bytes is not None:
            table.add_row("process memory", f"{format_bytes(self.rss_bytes)} at its peak")
        if self.gpu_layers:
            built = "compiled at this start" if self.gpu_builds else "compiled before"
            table.add_row("GPU", f"{self.gpu_layers} layers on {self.gpu_device}; kernels {built}")
        elif self.gpu_device:
            table.add_row("GPU", f"none: its layers ran {self.gpu_device}")
        return table


def measure(path: Path, runs: int, tokens: int | None, cold: bool, **asked: Unpack[SessionOptions]) -> Bench:
    """Run random tokens through the package `runs` times in a process of its own, with options as those of Session.

    `tokens` defaults to the length that was planned for; they differ from each other, so that each reads its own row.
    cold: the preload buffer is emptied before every run. Raises PackageError for what is no package, EngineError with
    the engine's sentence where it refuses.
    """
    package = Package.open(path)
    ids = _ids(package, tokens)
    found = run_engine(path, ids, ["--runs", str(runs), *(["--cold"] if cold else [])], **asked)
    times = found.pop("times_us")
    del found["outputs"], found["emulated"]
    found["gpu_device"] = found.pop("device")
    plan = package.plans[found["plan"]]
    deadline_us = plan.deadline_us or None
    found |= {"deadline_us": deadline_us, "late": _late(times, deadline_us), "predicted_us": plan.predicted_us}
    return Bench(tokens=len(ids), cold=cold, **found)


def run_engine(path: Path, ids: Sequence[int], more: Sequence[str], **asked: Unpack[SessionOptions]) -> dict[str, Any]:
    """Run stic_run on a package and token ids, with `more` of its options and those of Session; what it prints.

    Raises EngineError with the engine's sentence where it refuses.
    """
    check_names(asked)
    check_options(latency_us=asked.get("latency_us"), memory_bytes=asked.get("memory_bytes"))
    options = ["--ids", ",".join(map(str, ids)), "--json", *more, "--gpu-use", asked.get("gpu", "auto")]
    options += storage_options(asked.get("storage"))
    numbers = {"threads": "threads", "lanes": "lanes", "deadline-us": "latency_us", "memory-bytes": "memory_bytes"}
    for name, field in numbers.items():
        if value := asked.get(field):
            options += [f"--{name}", str(value)]
    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        runner = build_engine(load("host"), Path(folder)).runner
        done = subprocess.run([str(runner), str(path), *options], capture_output=True, text=True)
    if done.returncode != 0:
        message = done.stderr.strip().removeprefix("stic_run: ")
        raise EngineError(message or f"stic_run ended with status {done.returncode} and said nothing")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def storage_options(storage: EmulatedStorage | None) -> list[str]:
    """What tells stic_run to emulate this storage."""
    limits = zip(("--io-limit", "--io-requests"), io_limits(storage), strict=True)
    return [text for name, limit in limits if limit for text in (name, str(limit))]


def measure_session(session: OpenSession, package: Package, runs: int, tokens: int | None, cold: bool) -> Bench:
    """The same in an open session of the package; of its process nothing is known."""
    ids = _ids(package, tokens)
    times, stalls = [], []
    for _ in range(runs):
        if cold:
            session.evict()
        session.run(ids)
        stats = session.stats()
        times.append(stats.run_us)
        stalls.append(stats.stall_us)
    times.sort()
    deadline_us = session.info.deadline_us or None
    return Bench(
        runs=runs,
        tokens=len(ids),
        threads=session.info.threads,
        lanes=session.info.lanes,
        cold=cold,
        median_us=times[runs // 2],
        p95_us=times[(runs * 95 + 99) // 100 - 1],
        predicted_us=session.info.predicted_us,
        deadline_us=deadline_us,
        late=_late(times, deadline_us),
        plan=stats.plan,
        stall_us=sum(stalls) // runs,
        io_bytes=stats.io_bytes,
        io_requests=stats.io_requests,
        direct=stats.direct,
        peak_bytes=stats.peak_bytes,
        claimed_bytes=stats.claimed_bytes,
        rss_bytes=None,
        gpu_layers=stats.gpu_layers,
        gpu_builds=stats.gpu_builds,
        gpu_device=session.device,
    )


def _late(times_us: Sequence[int], deadline_us: int | None) -> int | None:
    return None if deadline_us is None else sum(time > deadline_us for time in times_us)


def _ids(package: Package, tokens: int | None) -> list[int]:
    """Random tokens that differ from each other, as far as the vocabulary goes; by default as many as were planned."""
    limit = package.max_length
    tokens = tokens or limit
    if tokens > limit:
        raise InputError(f"--length is {tokens}: the package was compiled for at most {limit} tokens")
    vocabulary = int(package.model["vocabulary"])
    ids = random.Random(1).sample(range(vocabulary), min(tokens, vocabulary))
    return ids + ids[:1] * (tokens - len(ids))
