"""Measuring while the hypervisor leaves this machine its processors.

A virtual machine's processors may be given to others in the middle of a run. The kernel counts that time as *stolen*.
What was measured meanwhile tells nothing of the code, and is measured again: the count decides, never the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from benchmarks.kernels.place import cpu_ticks, stolen_share

Result = TypeVar("Result")

MOST_STOLEN = 0.05  # share of the processors' time, while something is measured
PATIENCE = 2  # times as many measurements as are wanted are made, at most


def watched(measure: Callable[[], Result]) -> tuple[float, Result]:
    """What `measure` returns, behind the share of the processors' time that was stolen meanwhile."""
    before = cpu_ticks()
    result = measure()
    return stolen_share(before, cpu_ticks()), result


def enough(stolen: Sequence[float], count: int) -> bool:
    """Whether so many measurements were left in peace, or there is no patience for another."""
    return sum(share <= MOST_STOLEN for share in stolen) >= count or len(stolen) >= PATIENCE * count


def quietest(stolen: Sequence[float], count: int) -> list[int]:
    """Which of the measurements count, in their order: the first that were left in peace, then the least disturbed."""
    ranked = sorted(range(len(stolen)), key=lambda number: max(stolen[number], MOST_STOLEN))
    return sorted(ranked[:count])


def repeated(measure: Callable[[], Result], count: int) -> list[Result]:
    """So many results of `measure`, as quiet as there is patience for."""
    found: list[tuple[float, Result]] = []
    while not enough([share for share, _ in found], count):
        found.append(watched(measure))
    return [found[number][1] for number in quietest([share for share, _ in found], count)]
