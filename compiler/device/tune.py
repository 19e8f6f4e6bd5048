"""Find the open choices of a target's kernels (`stic.schedules.tuning`) by measuring them where they will run.

Coordinate descent: one choice after the other, every alternative against the best so far, measured in turns. What is
not clearly faster is not taken, so that a noisy machine leaves the defaults alone.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import exp, log
from pathlib import Path
from typing import Any

import stic.runtime
import stic.schedules
from stic.runtime.errors import TargetError
from stic.schedules.rule import kernels_for, micro_kernel
from stic.schedules.shape import KernelShape
from stic.schedules.tir import build
from stic.schedules.tuning import Tuning
from stic.targets.rpc import DeviceAddress, lease
from stic.targets.target import Target, processor
from stic.targets.toolchain import find_c_compiler

ROUNDS = 9
MEASURE_S = 60.0  # how long a device may take for one measurement
BETTER = 0.98  # a change is taken if it needs at most this share of the time
MOSTLY = 0.7  # in at least this share of the rounds
FEATURES, TILES = (384, 768, 1536), (1, 2, 4, 8)
DOT_MACS = 20_000_000  # of one timing of stic_dot: 40 us to 4 ms
ROWS_BYTES = 64 << 20  # of one timing of stic_rows, or twice the last cache
CHAINS, PREFETCH = (1, 2, 4, 8, 16), (0, 2560, 5120, 10240, 20480, 40960)
_SHAPE = KernelShape(384, 32, "relu", 1e-12, 1e-12)  # what is measured does not depend on it
WIDTHS = (2, 4, 6, 8)
_MEASURED = ("stic_dot", *(f"stic_rows_b{bits}" for bits in WIDTHS))

Timer = Callable[[], float]  # nanoseconds of one measurement
Load = Callable[[Path], Any]  # a shared library -> its functions by name


@dataclass(frozen=True)
class Device:
    """Where kernels are measured."""

    name: str  # the processor
    load: Load


@dataclass(frozen=True)
class Trial:
    """One alternative against the best before it."""

    tuning: Tuning
    ratio: float  # its time by that of the best, median over rounds
    taken: bool


@contextmanager
def device(target: Target, tracker: str | None, key: str | None) -> Iterator[Device]:
    """Yield this machine, or one leased from an RPC tracker. Raises TargetError where the target's code cannot run."""
    if tracker is not None:
        if target.name == "host":
            raise TargetError("target host is this machine: name the target that the device behind the tracker is")
        with lease(DeviceAddress(tracker, key or target.name, step_s=MEASURE_S)) as leased:

            def load_there(path: Path) -> Any:
                leased.upload(path.read_bytes(), path.name)
                return leased.load_module(path.name)

            yield Device(f"{key or target.name} of an RPC tracker", load_there)
        return
    if target.missing_features:
        lacks = ", ".join(target.missing_features)
        raise TargetError(f"this machine cannot run {target.name}: it lacks {lacks}; tune there, or with --tracker")
    import tvm

    yield Device(processor(), lambda path: tvm.runtime.load_module(str(path)))


def tune(
    target: Target, where: Device, rounds: int = ROUNDS, tick: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Tuning, list[Trial]]:
    """Search; returns the best choices and every trial in order, the last two of the best against the defaults.

    Small gains that were chance may add up on the way; if those two do not hold, the defaults are returned.
    """
    alternatives: list[Callable[[Tuning], list[Tuning]]] = [
        lambda best: [replace(best, tiles=tiles) for tiles in micro_kernel(target).choices[1:]],
        lambda best: [replace(best, chains=chains) for chains in CHAINS],
        lambda best: [replace(best, prefetch_bytes=size) for size in PREFETCH],
    ]
    last_cache = int(target.cache["l3_bytes"].value) if "l3_bytes" in target.cache else 0
    rows = partial(_time_rows, max(ROWS_BYTES, 2 * last_cache))
    measures: tuple[Callable[[Any], Timer], ...] = (_time_dot, rows, rows)
    total = sum(len(each(Tuning())) for each in alternatives)
    best, trials, done = Tuning(), [], 0
    with tempfile.TemporaryDirectory(prefix="stic-tune-") as name:
        loaded: dict[Tuning, Any] = {}

        def kernels(tuning: Tuning) -> Any:
            if tuning not in loaded:
                loaded[tuning] = where.load(_library(target, tuning, Path(name) / f"kernels{len(loaded)}.so"))
            return loaded[tuning]

        for each, measure in zip(alternatives, measures, strict=True):
            for other in each(best):
                tick(done, total)
                done += 1
                if other != best:
                    trial = _compare(other, measure(kernels(other)), measure(kernels(best)), rounds)
                    trials.append(trial)
                    best = other if trial.taken else best
        if best != Tuning():
            trials += [_compare(best, each(kernels(best)), each(kernels(Tuning())), rounds) for each in measures[:2]]
            low, high = sorted(trial.ratio for trial in trials[-2:])
            best = best if low <= BETTER and high < 1 / BETTER else Tuning()
        tick(total, total)
    return best, trials


def _compare(tuning: Tuning, other: Timer, best: Timer, rounds: int) -> Trial:
    """Measure two alternatives in turns, each first in every second round."""
    ratios = []
    for number in range(rounds):
        if number % 2:
            own = other()
            ratios.append(own / best())
        else:
            base = best()
            ratios.append(other() / base)
    ratio = statistics.median(ratios)
    faster = sum(each < 1 for each in ratios)
    return Trial(tuning, ratio, ratio <= BETTER and faster >= MOSTLY * rounds)


def _time_dot(module: Any) -> Timer:
    """The geometric mean over shapes, so that each counts the same; below, over bitwidths."""
    function = module["stic_time_dot"]
    cases = [(k, tiles, max(1, DOT_MACS // (k * tiles * 256))) for k in FEATURES for tiles in TILES]
    return lambda: exp(statistics.fmean(log(_checked(function(*case)) / case[2]) for case in cases))


def _time_rows(size: int, module: Any) -> Timer:
    function = module["stic_time_rows"]
    return lambda: exp(statistics.fmean(log(_checked(function(bits, size))) for bits in WIDTHS))


def _checked(ns: int) -> float:
    if ns <= 0:
        raise TargetError("the device has no memory for the measurement (it needs 70 MB)")
    return float(ns)


def _library(target: Target, tuning: Tuning, out: Path) -> Path:
    """The measured kernels and measure.c, as one shared library."""
    functions = [f for f in kernels_for(target, _SHAPE, tuning) if f.attrs["global_symbol"] in _MEASURED]
    compiled = out.with_suffix(".o")
    build(functions, dict(target.tvm)).write_to_file(str(compiled))
    source = Path(next(iter(stic.schedules.__path__))) / "measure.c"
    headers = Path(next(iter(stic.runtime.__path__))) / "src"
    arguments = ["-std=c11", "-O2", "-shared", "-fPIC", "-I", str(headers), "-o", str(out), str(source), str(compiled)]
    find_c_compiler(target).run(arguments, f"linking {out.name}")
    return out
