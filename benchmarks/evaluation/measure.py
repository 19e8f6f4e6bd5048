"""Latency, memory and timeline of packages: the engine's own command in fresh processes, storage and memory limited."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.evaluation.quiet import PATIENCE, enough, quietest, watched
from benchmarks.evaluation.throttle import BESIDE_PACING, MemoryGroup, Place, counted_memory, slow_reads, started
from stic.compiler.device.bench import storage_options
from stic.compiler.simulate import EMBEDDING, HEAD
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError

PATIENCE_S = 120.0  # of a block of runs: more means that a process hangs
CURVE_RUNS = 5  # while memory is watched over time
CURVE_STEP_S = 0.0005
CURVE_POINTS = 400  # kept of it


@dataclass(frozen=True)
class Setting:
    """How packages are run."""

    runner: Path  # stic_run
    place: Place
    threads: int
    ids: tuple[int, ...]  # of the planned length, all different, so that each reads its own row
    runs: int
    block: int


@dataclass(frozen=True)
class Contender:
    """A package on one storage; `key` names it among those it takes turns with."""

    key: str
    package: Path
    storage: EmulatedStorage
    claimed_bytes: int
    timeline: bool  # keep the last run's events


def distinct_ids(vocabulary: int, tokens: int) -> tuple[int, ...]:
    """Random token ids that differ from each other, as far as the vocabulary goes; the same every time."""
    ids = random.Random(1).sample(range(vocabulary), min(tokens, vocabulary))
    return tuple(ids + ids[:1] * (tokens - len(ids)))


def take_turns(
    contenders: Sequence[Contender], setting: Setting, tick: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Measure packages that are compared with each other, a block of runs each by turns; calls `tick` after each.

    Every second round goes backwards, so that nobody always follows the same neighbour. Further rounds are for those
    whose blocks were disturbed (see quiet). A package that fails is left out of later rounds; its result is
    {"error": sentence}. The others' are `latency` and `memory` of a row, and `timeline` where it was asked for.
    """
    rounds = setting.runs // setting.block
    blocks: dict[str, list[dict[str, Any]]] = {c.key: [] for c in contenders}
    errors: dict[str, str] = {}
    for number in range(PATIENCE * rounds):
        for contender in contenders[:: -1 if number % 2 else 1]:
            found = blocks[contender.key]
            if contender.key not in errors and not enough([block["stolen"] for block in found], rounds):
                try:
                    stolen, block = watched(partial(_block, contender, setting))
                    found.append(block | {"stolen": stolen})
                except EngineError as error:
                    errors[contender.key] = str(error)
            if number < rounds:
                tick()
    return {
        c.key: {"error": errors[c.key]} if c.key in errors else _joined(blocks[c.key], c, setting) for c in contenders
    }


def _command(contender: Contender, setting: Setting, runs: int) -> list[str]:
    ids = ",".join(map(str, setting.ids))
    options = ["--ids", ids, "--runs", str(runs), "--threads", str(setting.threads)]
    options += storage_options(contender.storage)
    return [str(setting.runner), str(contender.package), *options, "--json"]


def _block(contender: Contender, setting: Setting) -> dict[str, Any]:
    """A block of runs in one process, after one that fills the preload buffer."""
    with (
        tempfile.TemporaryDirectory(prefix="stic-trace-") as folder,
        slow_reads(setting.place, BESIDE_PACING * contender.storage.bytes_per_s) as slow,
        counted_memory(setting.place, contender.claimed_bytes) as memory,
    ):
        trace = Path(folder) / "trace.json"
        command = [*_command(contender, setting, setting.block + 1), "--trace", str(trace)]
        with started(command, (slow, None if memory is None else memory.path)) as process:
            found = ended(process, f"the plan's {contender.claimed_bytes} bytes")
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        return {
            "times_us": found["times_us"][1:],
            "stall_us": sum(e["dur"] for e in events if e["name"] == "stall"),
            "mean_stall_us": found["stall_us"],
            "io_bytes": found["io_bytes"],
            "direct": found["direct"],
            "rss_bytes": found["rss_bytes"],
            "engine_bytes": found["peak_bytes"],
            "cgroup_peak_bytes": None if memory is None else memory.peak_bytes,
            "timeline": _timeline(events) if contender.timeline else None,
        }


def ended(process: subprocess.Popen[str], limit: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
    """What a process printed as JSON. Raises EngineError with its own sentence, or with one on how it ended."""
    try:
        out, err = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"a process had not ended after {patience_s:.0f} s") from error
    if process.returncode == -9:
        raise EngineError(f"the kernel ended the process: it needed more memory than {limit}")
    if process.returncode:
        said = err.strip().removeprefix("stic_run: ")
        raise EngineError(said or f"the process ended with status {process.returncode} and said nothing")
    found: dict[str, Any] = json.loads(out)
    return found


def _joined(blocks: list[dict[str, Any]], contender: Contender, setting: Setting) -> dict[str, Any]:
    kept = quietest([block["stolen"] for block in blocks], setting.runs // setting.block)
    aside = [time for number, block in enumerate(blocks) if number not in kept for time in block["times_us"]]
    peaks = [block["cgroup_peak_bytes"] for block in blocks if block["cgroup_peak_bytes"] is not None]
    largest = {name: max(block[name] for block in blocks) for name in ("rss_bytes", "engine_bytes")}
    blocks = [blocks[number] for number in kept]
    times = [time for block in blocks for time in block["times_us"]]
    found = {
        "latency": {
            "times_us": times,
            "set_aside_us": aside,
            "stolen": [block["stolen"] for block in blocks],
            "median_us": statistics.median(times),
            "p95_us": sorted(times)[(len(times) * 95 + 99) // 100 - 1],
            "stall_us": statistics.median(block["stall_us"] for block in blocks),
            "mean_stall_us": statistics.median(block["mean_stall_us"] for block in blocks),
            "throttle": setting.place.throttle(paced=True),
            "direct": all(block["direct"] for block in blocks),
            "io_bytes": blocks[-1]["io_bytes"],
        },
        "memory": {
            "rss_bytes": largest["rss_bytes"],
            "cgroup_peak_bytes": max(peaks, default=None),
            "cgroup_limit_bytes": contender.claimed_bytes if peaks else None,
            "engine_bytes": largest["engine_bytes"],
        },
    }
    return found | ({"timeline": blocks[-1]["timeline"]} if contender.timeline else {})


def _timeline(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A trace's events in the words of a replay (stic.compiler.simulate), by start.

    A layer's compute is one piece, and so are the embedding rows that a lane reads, hundreds of them in a row.
    """
    found: list[dict[str, Any]] = []
    computed: dict[int, dict[str, Any]] = {}
    rows: dict[int, dict[str, Any]] = {}
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"]):
        name, layer, end = event["name"], event["args"]["layer"], event["ts"] + event["dur"]
        entry = {"kind": "io", "layer": layer, "start_us": event["ts"], "end_us": end, "bytes": 0}
        if name == "rows" and event["tid"] in rows:
            rows[event["tid"]]["end_us"] = end
            rows[event["tid"]]["bytes"] += event["args"]["bytes"]
        elif event["tid"] > 0:  # an IO lane
            found.append(entry | {"kind": "check" if name == "check" else "io", "bytes": event["args"]["bytes"]})
            if name == "rows":
                rows[event["tid"]] = found[-1]
        elif name == "stall":
            found.append(entry | {"kind": "stall"})
        else:
            place = {"embed": EMBEDDING, "head": HEAD}.get(name, layer)
            if place not in computed:
                computed[place] = entry | {"kind": "compute", "layer": place}
                found.append(computed[place])
            computed[place]["end_us"] = end
    return found


def memory_curve(contender: Contender, setting: Setting) -> list[list[int]]:
    """[microseconds since the process began, bytes of its group] while it opens the package and runs a few times.

    Empty where memory is not counted. Nothing of this is timed: watching costs time.
    """
    with (
        slow_reads(setting.place, BESIDE_PACING * contender.storage.bytes_per_s) as slow,
        counted_memory(setting.place, contender.claimed_bytes) as memory,
    ):
        if memory is None:
            return []
        with started(_command(contender, setting, CURVE_RUNS), (slow, memory.path)) as process:
            curve = watch(process, memory)
            ended(process, f"the plan's {contender.claimed_bytes} bytes")
        return curve


def watch(process: subprocess.Popen[str], memory: MemoryGroup) -> list[list[int]]:
    """Sample a group's memory until its process ends: at most CURVE_POINTS moments, of each stretch the highest, and
    where nothing changes only its ends."""
    began = time.monotonic()
    samples: list[tuple[int, int]] = []
    while process.poll() is None and time.monotonic() < began + PATIENCE_S:
        samples.append((round(1e6 * (time.monotonic() - began)), memory.used_bytes))
        time.sleep(CURVE_STEP_S)
    step = max(1, -(-len(samples) // CURVE_POINTS))
    highest = [max(samples[i : i + step], key=lambda sample: sample[1]) for i in range(0, len(samples), step)]
    around = zip([None, *highest], highest, [*highest[1:], None], strict=False)
    return [[*now] for before, now, after in around if not (before and after and before[1] == now[1] == after[1])]
