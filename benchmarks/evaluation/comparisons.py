"""What follows from the rows: planners against each other cell by cell, predictions and claims against measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.results import POINTS, Cell, Json, Results, Row

YARDSTICKS = {"greedy": "greedy on the same gains", "sti": "STI as published"}
Z = statistics.NormalDist().inv_cdf(0.975)  # of a 95 % interval


@dataclass(frozen=True, eq=False)
class Duel:
    """The integer program and another planner in one cell; both have a plan and a measured accuracy."""

    cell: Cell
    ilp: Row
    other: Row

    @property
    def points(self) -> float:
        """Points that the integer program is above the other."""
        assert self.ilp.points is not None and self.other.points is not None
        return round(self.ilp.points - self.other.points, 9)  # equal fractions may differ in their last bits

    @property
    def differ(self) -> bool:
        """Whether the two compute different functions: different bits for any shard."""
        return bool(self.ilp.plan["bits"] != self.other.plan["bits"])

    @cached_property
    def by_example(self) -> NDArray[np.float64] | None:
        """Points that each example adds to the difference, (n,): 100, 0 or -100. None where the metric has no such."""
        ours, theirs = self.ilp.correct, self.other.correct
        return None if ours is None or theirs is None else POINTS * (ours.astype(np.float64) - theirs)

    @property
    def noise(self) -> float:
        """What `points` must exceed to mean anything: half of its 95 % interval, by examples in pairs.

        Where the metric is no mean over examples, half of the wider interval of the two, which is far more than that.
        """
        if self.by_example is not None:
            return _half_interval(self.by_example)
        return max((high - low) / 2 for low, high in (self.ilp.interval, self.other.interval))


def duels(results: Results, planner: str) -> list[Duel]:
    """Every cell in which both the integer program and `planner` have a plan."""
    found = []
    for cell in results.cells:
        ilp, other = results.answer(cell, "ilp"), results.answer(cell, planner)
        if ilp and other and ilp.ran and other.ran and None not in (ilp.points, other.points):
            found.append(Duel(cell, ilp, other))
    return found


def equal_resources(results: Results, planner: str) -> list[Duel]:
    """Duels in which `planner` met the cell's deadline (measured median) in no more memory than the program claims."""
    return [
        duel
        for duel in duels(results, planner)
        if duel.other.median_us <= duel.cell.deadline_us and duel.other.claimed_bytes <= duel.ilp.claimed_bytes
    ]


def baselines(results: Results) -> tuple[str, ...]:
    """Planners that are neither the integer program nor a yardstick."""
    return tuple(name for name in results.planners if name != "ilp" and name not in YARDSTICKS)


@dataclass(frozen=True)
class Tally:
    """Differences of many duels, in points."""

    cells: int
    differ: int
    mean: float  # where plans differ; NaN where none does
    noise: float  # half of the mean's 95 % interval, by examples in pairs; NaN where a metric has none
    lower: int  # cells in which the integer program is lower
    beyond_noise: int  # of them, by more than the interval
    larger: int  # of them, against a plan that claims more memory
    least: float
    most: float


def tally(found: Sequence[Duel]) -> Tally:
    """Sum up; the extremes of nothing are NaN."""
    different = [duel for duel in found if duel.differ]
    lower = [duel for duel in found if duel.points < 0]
    return Tally(
        len(found),
        len(different),
        statistics.fmean(duel.points for duel in different) if different else math.nan,
        _noise_of_mean(different),
        len(lower),
        sum(-duel.points > duel.noise for duel in lower),
        sum(duel.other.claimed_bytes > duel.ilp.claimed_bytes for duel in lower),
        min((duel.points for duel in found), default=math.nan),
        max((duel.points for duel in found), default=math.nan),
    )


def _half_interval(by_example: NDArray[np.float64]) -> float:
    return float(Z * by_example.std() / math.sqrt(len(by_example)))


def _noise_of_mean(found: Sequence[Duel]) -> float:
    """Cells of one task share their examples, so that these are averaged over cells first; tasks are independent."""
    if not found or any(duel.by_example is None for duel in found):
        return math.nan
    total = 0.0
    for task in {duel.cell.task for duel in found}:
        own = [duel.by_example for duel in found if duel.cell.task == task and duel.by_example is not None]
        total += (len(own) / len(found) * _half_interval(np.mean(own, axis=0))) ** 2
    return math.sqrt(total)


def without_plan(results: Results, planner: str) -> list[Cell]:
    """Cells for which the integer program has a plan and `planner`, though asked, has none."""
    found = []
    for cell in results.cells:
        ilp, other = results.answer(cell, "ilp"), results.answer(cell, planner)
        if ilp and ilp.ran and other and other.data["status"] == "infeasible":
            found.append(cell)
    return found


def timed(results: Results) -> list[Row]:
    """Rows whose plan was timed; of each plan and bandwidth the first, as equal ones share their runs."""
    found: dict[tuple[str, str, int | None], Row] = {}
    for row in results.planned:
        if row.ran:
            found.setdefault((row.task, row.plan["digest"], row.bytes_per_s), row)
    return list(found.values())


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def slack(row: Row) -> float | None:
    """Share of the claimed memory that no count ever saw used; None without a cgroup."""
    return None if row.group_bytes is None else 1 - row.peak_bytes / row.claimed_bytes


def exceeded(row: Row) -> bool:
    """Whether a run used more than its plan claims, by any count: the cgroup's, the process's, the engine's own."""
    engine = row.data["memory"].get("engine_bytes") or 0
    return max(row.peak_bytes, engine) > row.claimed_bytes


@dataclass(frozen=True, eq=False)
class PaperCell:
    """A cell at the paper's ratio of IO to compute, beside the whole model and beside other runtimes."""

    cell: Cell
    row: Row
    drop: float | None  # points below the whole float32 model
    memory: dict[str, float]  # peer -> peak resident set by what the peer added, at its least, to its libraries'


def paper_cells(results: Results) -> list[PaperCell]:
    """What the integer program makes of the cells that stand for the paper's motivating figure."""
    found = []
    for cell in (cell for cell in results.cells if results.at_paper(cell) and cell.deadline_us < math.inf):
        row = results.answer(cell, "ilp")
        if row is None or not row.ran:
            continue
        full = results.full_model(cell.task)
        least: dict[str, int] = {}
        for peer in results.peers:
            if peer.task == cell.task:
                least[peer.planner] = min(peer.own_bytes, least.get(peer.planner, peer.own_bytes))
        drop = None if full is None or row.points is None else full - row.points
        found.append(PaperCell(cell, row, drop, {name: row.rss_bytes / size for name, size in least.items()}))
    return found


def longest(cells: Sequence[PaperCell]) -> list[PaperCell]:
    """Of each task, the cell with the longest deadline."""
    return list({found.cell.task: found for found in sorted(cells, key=lambda c: c.cell.deadline_us)}.values())


def upgrades(results: Results) -> list[tuple[str, Json]]:
    """(task, upgrade) of every step from b to b + 1 resident bits."""
    return [(task, step) for task, store in results.data.get("store", {}).items() for step in store.get("upgrade", ())]
