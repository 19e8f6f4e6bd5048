"""Take turns: every contender runs a few times, round after round, so that all see the same machine.

A turn is a function (warm, timed) -> microseconds of the timed runs; the warm runs before them are not counted: they
load the caches, and wake threads that slept through the other turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Turn = Callable[[int, int], list[float]]


@dataclass(frozen=True)
class Times:
    """Microseconds of one contender, (rounds, timed)."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def median(self) -> float:
        """Median of all runs."""
        return statistics.median(self._all)

    def ratio(self, other: Times) -> float:
        """Median over rounds of this one's median by the other's: what slows both down for a while drops out."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)

    def to_json(self) -> dict[str, float]:
        """Median, quartiles and least time."""
        low, middle, high = statistics.quantiles(self._all, n=4, method="inclusive")
        return {"median": middle, "q1": low, "q3": high, "least": min(self._all), "runs": len(self._all)}

    @property
    def _all(self) -> list[float]:
        return [time for turn in self.rounds for time in turn]


def local(call: Callable[[], float]) -> Turn:
    """Turn of something in this process; `call` runs it once and returns microseconds."""

    def turn(warm: int, timed: int) -> list[float]:
        for _ in range(warm):
            call()
        return [call() for _ in range(timed)]

    return turn


def interleave(turns: Mapping[str, Turn], settings: Mapping[str, Any], tick: Callable[[], None]) -> dict[str, Times]:
    """Give each contender its turn, `settings["rounds"]` times; calls `tick` after every turn.

    Every second round goes backwards, so that nobody always follows the same neighbour.
    """
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in turns}
    for number in range(settings["rounds"]):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            found[name].append(tuple(turns[name](settings["warm"], settings["timed"])))
            tick()
    return {name: Times(tuple(rounds)) for name, rounds in found.items()}
