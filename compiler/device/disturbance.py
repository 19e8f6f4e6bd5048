"""What else a machine did while it was measured: times of a busy machine are no property of the device."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_SPREAD = 0.25  # of what is measured repeatedly, interquartile range over median
MOST_OTHERS = 0.15  # of all processors, used by other processes: on two cores, every seventh slice of time on each
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # of the first line of /proc/stat, by `_FIELDS`
_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_STAT = Path("/proc/stat")


class Watch:
    """Counts from its making on what part of this machine's processors other processes use."""

    def __init__(self) -> None:
        self._began, self._machine, self._own = time.monotonic(), _machine_s(), _own_s()

    def others(self) -> float | None:
        """Their share of all processors, 0 to 1; None where the system does not say."""
        machine, passed = _machine_s(), time.monotonic() - self._began
        if machine is None or self._machine is None or passed <= 0:
            return None
        used = machine - self._machine - (_own_s() - self._own)
        return min(1.0, max(0.0, used / passed / (os.cpu_count() or 1)))


def disturbed(profile: Mapping[str, Any], others: float | None) -> str:
    """Why what was measured may be too slow, in words; empty where nothing speaks for it.

    `profile` is what `stic.compiler.device.measure` or `gpu_device.measure_gpu` returns; `others` is the share of the
    processors that other processes had meanwhile, None where that is not known.
    """
    reasons = []
    if others is not None and others > MOST_OTHERS:
        reasons.append(f"other processes took {others:.0%} of its processors")
    layers = max(_spreads(profile), default=0.0)
    if layers > MOST_SPREAD:
        reasons.append(f"repeated runs of a layer differed by {layers:.0%}")
    points = profile.get("io", {}).get("points", ())
    reads = statistics.median(p["spread_us"] / p["median_us"] for p in points) if points else 0.0
    if reads > MOST_SPREAD:
        reasons.append(f"repeated reads differed by {reads:.0%}")
    return " and ".join(reasons)


def _spreads(profile: Mapping[str, Any]) -> Iterator[float]:
    for part in (profile, profile.get("compute", {}), profile.get("gpu") or {}):
        yield from (float(shape["spread"]) for shape in part.get("shapes", ()) if "spread" in shape)


def _machine_s() -> float | None:
    """Seconds that all processors were busy since the system started."""
    try:
        ticks = [int(word) for word in _STAT.read_text().partition("\n")[0].split()[1 : len(_FIELDS) + 1]]
    except (OSError, ValueError):
        return None
    by_name = dict(zip(_FIELDS, ticks, strict=False))
    return sum(by_name.get(name, 0) for name in _BUSY) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Seconds of this process, its threads, and those it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
