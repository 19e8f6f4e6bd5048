"""What the evaluation is held to, and whether the measured rows keep it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.evaluation.agreement import agreement
from benchmarks.evaluation.comparisons import (
    YARDSTICKS,
    Duel,
    baselines,
    duels,
    equal_resources,
    exceeded,
    longest,
    paper_cells,
    slack,
    tally,
    timed,
    upgrades,
)
from benchmarks.evaluation.markdown import asked
from benchmarks.evaluation.results import Results
from benchmarks.kernels.acceptance import Verdict
from stic.runtime.format import BLOCK

Unit = Literal["cells", "comparisons", "plans", "points", "share", "blocks"]

AHEAD_POINTS = 1.0  # of the yardstick, on average where plans differ
DROP_POINTS = 1.0  # below the whole model, at the paper's ratio
MEMORY_SHARE = 0.1  # of the peer's peak there
PEER = "onnxruntime fp32"
ERROR_SHARE = 0.05  # median, of predicted time
MISSED_SHARE = 0.02  # of runs
SLACK_SHARE = 0.15  # of claimed memory
STORE_SHARE = 0.36  # of six copies
SWITCH_SHARE = 0.01  # of a run
ENDS = 2  # blocks: reads are whole blocks, and a plane may begin and end within one


@dataclass(frozen=True)
class Finding(Verdict):
    """A claim and what was measured of it; `worst` says over what, and where the worst is."""

    unit: Unit

    @property
    def known(self) -> bool:
        """Whether anything was measured for it; if not, `measured` is NaN and the claim does not hold."""
        return not math.isnan(self.measured)


def judge(results: Results) -> list[Finding]:
    """One finding for each claim, whether or not it was measured."""
    kept = agreement(results)
    return [
        *(finding for name in YARDSTICKS for finding in _against(results, kept, name)),
        *_against_baselines(results, kept),
        *_paper(results),
        *_prediction(results),
        _deadlines(results),
        *_memory(results),
        *_store(results),
        _switch(results),
    ]


def _worst(found: Iterable[tuple[float, str]]) -> tuple[float, str]:
    """The largest value and where it was; NaN where there is none."""
    return max(found, default=(math.nan, "not measured"))


def _lower(claim: str, results: Results, found: list[Duel], what: Unit) -> Finding:
    """How often the integer program is lower; none is allowed."""
    if not found:
        return Finding(claim, math.nan, 0, True, "not measured", what)
    sums = tally(found)
    where = f"of {len(found)} {what}"
    if sums.lower:
        worst = min(found, key=lambda duel: duel.points)
        where += (
            f"; {sums.beyond_noise} of them by more than its 95 % interval, {sums.larger} against plans that claim more"
            f" memory; the worst {worst.points:+.1f} points"
            f" ({worst.other.planner}; {', '.join((worst.cell.task, *asked(results, worst.cell)))})"
        )
    return Finding(claim, sums.lower, 0, True, where, what)


def _against(results: Results, kept: Results, yardstick: str) -> Iterable[Finding]:
    found, name = duels(results, yardstick), YARDSTICKS[yardstick]
    yield _lower(f"cells in which the ILP is less accurate than {name}", results, found, "cells")
    claim = f"cells in which the ILP keeps fewer of the whole model's answers than {name}"
    yield _lower(claim, kept, duels(kept, yardstick), "cells")
    sums = tally(found)
    noise = "" if math.isnan(sums.noise) else f"±{sums.noise:.1f}, "
    where = f"{noise}mean of {sums.differ} of {sums.cells} cells" if found else "not measured"
    claim = f"ILP above {name} where their bits differ"
    yield Finding(claim, sums.mean, AHEAD_POINTS, False, where, "points")


def _against_baselines(results: Results, kept: Results) -> Iterable[Finding]:
    for judged, claim in (
        (results, "comparisons with a baseline of equal deadline and memory that the ILP loses"),
        (kept, "comparisons with such a baseline in which the ILP keeps fewer of the whole model's answers"),
    ):
        found = [duel for name in baselines(judged) for duel in equal_resources(judged, name)]
        yield _lower(claim, judged, found, "comparisons")


def _paper(results: Results) -> Iterable[Finding]:
    cells = paper_cells(results)
    for label, chosen in (("the longest deadline", longest(cells)), ("every deadline", cells)):
        drops = [(c.drop, f"the worst of {len(chosen)} cells: {c.cell.task}") for c in chosen if c.drop is not None]
        value, where = _worst(drops)
        claim = f"below the whole model at the paper's ratio, 1 MiB of preload, {label}"
        yield Finding(claim, value, DROP_POINTS, True, where, "points")
    value, where = _worst((c.memory[PEER], f"the worst: {c.cell.task}") for c in cells if PEER in c.memory)
    yield Finding(f"peak memory there, of {PEER}'s", value, MEMORY_SHARE, True, where, "share")


def _prediction(results: Results) -> Iterable[Finding]:
    rows = timed(results)
    claim = "predicted time against the median run, relative error"
    corrected = [error for row in rows if (error := row.error_at_pace) is not None]
    claimed_at_pace = "the median run against what is predicted at the machine's pace just then, relative error"
    for name, errors in ((claim, [row.error for row in rows]), (claimed_at_pace, corrected)):
        value = statistics.median(map(abs, errors)) if errors else math.nan
        where = f"median of {len(errors)} plans" if errors else "not measured"
        yield Finding(name, value, ERROR_SHARE, True, where, "share")


def _deadlines(results: Results) -> Finding:
    rows = [row for row in results.planned if row.ran and row.planner == "ilp" and row.deadline_us < math.inf]
    runs = sum(len(row.times_us) for row in rows)
    missed = sum(row.missed(row.deadline_us) for row in rows)
    aside = [time > row.deadline_us for row in rows for time in row.set_aside_us]
    also = f"; of {len(aside)} runs set aside, {sum(aside)}" if aside else ""
    where = f"{missed} of {runs} runs in {len(rows)} cells{also}" if runs else "not measured"
    claim = "runs of the ILP's plans that missed their deadline"
    return Finding(claim, missed / runs if runs else math.nan, MISSED_SHARE, True, where, "share")


def _memory(results: Results) -> Iterable[Finding]:
    rows = [row for row in results.planned if row.ran and row.group_bytes is not None]
    broken = sum(row.data["status"] == "failed" for row in results.planned)
    over = broken + sum(exceeded(row) for row in rows) if rows else math.nan
    where = f"of {broken + len(rows)}, each in a cgroup whose limit is the claim" if rows else "not measured"
    yield Finding("plans that used more memory than claimed, or did not run to the end", over, 0, True, where, "plans")
    unused = ((share, f"{row.task}, {row.planner}") for row in rows if (share := slack(row)) is not None)
    value, where = _worst(unused)
    yield Finding("claimed memory that was never used", value, SLACK_SHARE, True, where, "share")


def _store(results: Results) -> Iterable[Finding]:
    shares = [(store["ratio"], task) for task, store in results.data.get("store", {}).items()]
    value, where = _worst(shares)
    yield Finding("nested store, of six independent copies", value, STORE_SHARE, True, where, "share")
    steps = [
        ((step["bytes_read"] - step["plane_bytes"]) / BLOCK / results.layers(task),
         f"{task}, {step['from']} to {step['to']} bits")
        for task, step in upgrades(results)
    ]  # fmt: skip
    value, where = _worst(steps)
    claim = f"blocks of {BLOCK} bytes, a layer, that a refinement reads beyond the new plane"
    yield Finding(claim, value, ENDS, True, where, "blocks")


def _switch(results: Results) -> Finding:
    rows = results.data.get("switch", ())
    value, where = _worst((row["share_of_run"], f"{row['task']}, {row['from']} to {row['to']}") for row in rows)
    return Finding("switch of plans, of a median run", value, SWITCH_SHARE, True, where, "share")
