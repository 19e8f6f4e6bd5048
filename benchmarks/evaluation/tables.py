"""Tables of what planners decided and what it is worth."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evaluation.acceptance import Finding
from benchmarks.evaluation.comparisons import (
    Tally,
    baselines,
    duels,
    equal_resources,
    paper_cells,
    tally,
    without_plan,
)
from benchmarks.evaluation.markdown import NONE, asked, mib, ms, percent, section, signed, table
from benchmarks.evaluation.results import PAPER_RATIO, Cell, Results, Row

MANY_MISSED = 0.02  # of a row's runs
DIFFERENCES = (  # in points, and cells
    "mean where bits differ", "least", "most", "cells lower", "of them beyond noise", "against more memory",
)  # fmt: skip


def findings(found: Sequence[Finding]) -> str:
    """Claims, figures, and whether they hold."""
    rows = []
    for finding in found:
        verdict = "not measured" if not finding.known else "holds" if finding.passed else "**falls short**"
        limit = f"{'at most' if finding.at_most else 'at least'} {_figure(finding, finding.limit)}"
        rows.append((finding.claim, _figure(finding, finding.measured), limit, verdict, finding.worst))
    return table(("claim", "measured", "limit", "", "over what"), rows, left=5)


def _figure(finding: Finding, value: float) -> str:
    if math.isnan(value):
        return NONE
    if finding.unit == "share":
        return percent(value)
    return f"{value:.1f} points" if finding.unit == "points" else f"{value:g} {finding.unit}"


def environment(results: Results) -> str:
    """The machine, versions, the command, and what must be known of all figures."""
    data = results.data
    calibrated = [(f"importance of {t}", c["calibration"]) for t, c in data["costs"].items() if "calibration" in c]
    versions = [(name, version) for name, version in data["versions"].items() if version is not None]
    rows = [*data["machine"].items(), *versions, *calibrated, ("command", shlex.join(data["command"]))]
    notes = "\n".join(f"- {note}" for note in data.get("notes", ()))
    return "\n\n".join(filter(None, (table(("", ""), [(n, _plain(v)) for n, v in rows], left=2), notes)))


def _plain(value: Any) -> str:
    """A value of a JSON file, nested or not, for a table."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else NONE if value is None else str(value)


def ratios(results: Results) -> str:
    """How much longer a float32 layer takes to load than to compute, at every bandwidth."""
    rows = []
    for task in results.tasks:
        costs = results.data["costs"][task]
        for rate, ratio in sorted(costs["ratio"].items(), key=lambda item: float(item[0])):
            load_us = costs["layer_fp32_bytes"] / float(rate) * 1e6
            rows.append((task, f"{float(rate) / 1e6:.0f}", ms(load_us), ms(costs["layer_us"]), f"{ratio:.2f}"))
    header = ("task", "MB/s", "load a float32 layer, ms", "compute a layer, ms", "ratio")
    return f"The paper's motivating figure has a ratio of {PAPER_RATIO:.2f}.\n\n" + table(header, rows)


def accuracy(results: Results) -> str:
    """Every planner in every cell, a table a task."""
    parts = []
    for task in results.tasks:
        cells = [cell for cell in results.cells if cell.task == task]
        rows = [(*asked(results, c), *(_entry(results.answer(c, name), c) for name in results.planners)) for c in cells]
        header = ("storage", "preload", "deadline", *results.planners)
        parts.append(section(_title(results, task), table(header, rows, left=3) if rows else "", level=3))
    return "\n\n".join(filter(None, parts))


def _title(results: Results, task: str) -> str:
    scored = [row for row in results.rows if row.task == task and row.points is not None]
    full = results.full_model(task)
    whole = NONE if full is None else f"{full:.1f}"
    if not scored:
        return f"{task}; whole model in float32: {whole}"
    accuracy, (low, high) = scored[0].data["accuracy"], scored[0].interval
    return (
        f"{task}: {accuracy['metric']} on {accuracy['n']} examples, 95 % intervals about"
        f" ±{(high - low) / 2:.1f}; whole model in float32: {whole}"
    )


def _entry(row: Row | None, cell: Cell) -> str:
    """Points; † where the median run missed the deadline, ° where more than 2 % of the runs did."""
    if row is None:
        return ""
    if row.data["status"] == "infeasible":
        return NONE
    if not row.ran:
        return "failed"
    many = row.missed(cell.deadline_us) > MANY_MISSED * len(row.times_us)
    mark = "†" if row.median_us > cell.deadline_us else "°" if many else ""
    return ("?" if row.points is None else f"{row.points:.1f}") + mark


def against(results: Results, yardstick: str) -> str:
    """Where the integer program and a yardstick differ, and by how much."""
    found = duels(results, yardstick)
    if not found:
        return ""
    groups = [(task, [d for d in found if d.cell.task == task]) for task in results.tasks]
    groups = [(name, group) for name, group in groups if group] + [("all", found)] * (len(results.tasks) > 1)
    missing = [cell.task for cell in without_plan(results, yardstick)]
    rows = []
    for name, group in groups:
        sums = tally(group)
        none = len(missing) if name == "all" else missing.count(name)
        rows.append((name, sums.cells, sums.differ, *_differences(sums), none))
    return table(("task", "cells", "bits differ", *DIFFERENCES, f"{yardstick} has no plan"), rows)


def _differences(sums: Tally) -> tuple[object, ...]:
    """The columns DIFFERENCES."""
    noise = "" if math.isnan(sums.noise) else f" ±{sums.noise:.1f}"
    points = (signed(sums.mean) + noise, signed(sums.least), signed(sums.most))
    return *points, sums.lower, sums.beyond_noise, sums.larger


def lower(results: Results, yardstick: str) -> str:
    """Cells in which a yardstick measured better; the last columns are what calibration examples had promised."""
    lost = [duel for duel in duels(results, yardstick) if duel.points < 0]
    rows = []
    for duel in sorted(lost, key=lambda duel: duel.points):
        values = (f"{duel.other.points:.1f}", f"{duel.ilp.points:.1f}", signed(duel.points), f"±{duel.noise:.1f}")
        found = [row.plan.get("loss") for row in (duel.other, duel.ilp)]
        losses = [NONE if loss is None else f"{loss:.4f}" for loss in found]
        rows.append((duel.cell.task, *asked(results, duel.cell), *values, *losses))
    header = ("task", "storage", "preload", "deadline", yardstick, "ILP", "difference", "noise")
    return table((*header, f"calibration loss, {yardstick}", "ILP"), rows, left=4) if rows else ""


def against_baselines(results: Results) -> str:
    """The integer program beside every baseline that met the deadline in no more memory."""
    rows = []
    for name in baselines(results):
        found = equal_resources(results, name)
        rows.append((name, len(duels(results, name)), len(found), *_differences(tally(found))))
    return table(("baseline", "cells", "of equal deadline and memory", *DIFFERENCES), rows) if rows else ""


def paper_ratio(results: Results) -> str:
    """The cells of the paper's motivating figure, beside the whole model and other runtimes."""
    cells = paper_cells(results)
    if not cells:
        return ""
    names = list(dict.fromkeys(name for cell in cells for name in cell.memory))
    rows = []
    for c in cells:
        memory = [percent(c.memory[name]) if name in c.memory else NONE for name in names]
        values = (_entry(c.row, c.cell), NONE if c.drop is None else signed(-c.drop), mib(c.row.rss_bytes))
        rows.append((c.cell.task, *asked(results, c.cell), *values, *memory))
    header = ("task", "storage", "preload", "deadline", "ILP", "to the whole model", "VmHWM, MiB")
    return table((*header, *(f"of {name}" for name in names)), rows, left=4)


def study(path: Path) -> str:
    """The planner study's tables, where there is one."""
    if not path.is_file():
        return ""
    from benchmarks.planner_study.summary import tables  # brings the solvers with it

    return tables(json.loads(path.read_text(encoding="utf-8"))["summary"])
