"""Figures of the evaluation: what accuracy costs in time and memory, and how right predictions are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.evaluation.comparisons import timed
from benchmarks.evaluation.results import MOTIVATING_PRELOAD, Cell, Results, Row
from benchmarks.evaluation.run_figures import memory_over_time, timelines
from benchmarks.evaluation.styles import Drawing, Style, legend, logarithmic, panels, save, styles

WITHIN = 0.05  # of a prediction: the band around it
BAND = {"color": "#000000", "alpha": 0.12, "lw": 0}
ASIDE = 1.035  # between the markers of neighbouring planners at one deadline, as a factor


def drawings(results: Results) -> dict[str, Drawing]:
    """What there is to draw, by name: each draws one figure to a path."""
    looks = styles((*results.planners, *(row.planner for row in results.peers)))
    found: dict[str, Drawing] = {}
    for task in results.tasks:
        if cells := _cells(results, task):
            found[f"accuracy-{task}"] = partial(_deadlines, results, task, cells, looks)
    if any(_scored(results)):
        found["memory"] = partial(_memory, results, looks)
    if rows := timed(results):
        found["prediction"] = partial(_prediction, results, rows, looks)
    found |= timelines(results)
    if curves := [row for row in results.rows if row.data.get("memory_curve")]:
        found["memory-over-time"] = partial(memory_over_time, curves, looks)
    return found


def _cells(results: Results, task: str) -> list[Cell]:
    own = (cell for cell in results.cells if cell.task == task and cell.preload_bytes == MOTIVATING_PRELOAD)
    return [cell for cell in own if cell.deadline_us < math.inf]


def _scored(results: Results) -> Iterator[Row]:
    return (row for row in results.rows if row.ran and row.points is not None)


def _deadlines(results: Results, task: str, cells: list[Cell], looks: dict[str, Style], path: Path) -> None:
    """Accuracy against deadline, a panel a bandwidth."""
    rates = sorted({cell.bytes_per_s for cell in cells})
    figure, axes, free = panels(len(rates), 3)
    for axis, rate in zip(axes, rates, strict=True):
        own = [cell for cell in cells if cell.bytes_per_s == rate]
        for number, name in enumerate(results.planners):
            _line(axis, results, own, name, looks[name], ASIDE ** (number - len(results.planners) / 2))
        _whole_model(axis, results, task)
        ratio = results.ratio(own[0])
        title = f"{rate / 1e6:.0f} MB/s" + (f", IO : compute {ratio:.1f}" if ratio else "")
        axis.set_title(title + (" (the paper's)" if results.at_paper(own[0]) else ""), fontsize=9)
        logarithmic(axis.xaxis)
        axis.set_xticks(sorted({cell.deadline_us / 1e3 for cell in own}))
        axis.xaxis.set_major_formatter("{x:.3g}")
        axis.set_xlabel("deadline, ms", fontsize=8)
        axis.set_ylabel(f"{task}, points", fontsize=8)
    _same_height(axes)
    legend(free, axes, results.planners)
    save(figure, path)


def _line(axis: Any, results: Results, cells: list[Cell], name: str, look: Style, aside: float) -> None:
    """A planner's points by deadline, hollow where the median run was late; without one, from its own time on."""
    answers = ((cell, results.answer(cell, name)) for cell in cells)
    found = [(cell, row) for cell, row in answers if row is not None and row.ran and row.points is not None]
    if not found:
        return
    main = name in ("ilp", "greedy")
    layer = {"alpha": 1.0 if main else 0.7, "zorder": 3 if main else 2, "color": look.colour}
    free = found[0][1].deadline_us == math.inf
    if free:
        found = found[:1]
        start_ms = found[0][1].median_us / 1e3
        axis.hlines(found[0][1].points, start_ms, max(start_ms, cells[-1].deadline_us / 1e3), ls="--", lw=0.8, **layer)
    xs = [(row.median_us if free else cell.deadline_us * aside) / 1e3 for cell, row in found]
    axis.plot(xs, [row.points for _, row in found], lw=1.6 if main else 0.8, **layer)
    for x, (cell, row) in zip(xs, found, strict=True):
        late = not free and row.median_us > cell.deadline_us
        axis.vlines(x, *row.interval, lw=0.6, **layer)
        axis.plot(x, row.points, look.marker, ms=6 if main else 5, mfc="white" if late else look.colour, **layer)
    axis.plot([], [], look.marker, ls="-", label=name, ms=6 if main else 5, **layer)


def _whole_model(axis: Any, results: Results, task: str) -> None:
    if (full := results.full_model(task)) is not None:
        axis.axhline(full, color="black", lw=0.8, ls=":", label="whole model, float32")


def _same_height(axes: list[Any]) -> None:
    low, high = min(axis.get_ylim()[0] for axis in axes), max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        axis.set_ylim(low, high)


def _memory(results: Results, looks: dict[str, Style], path: Path) -> None:
    """Accuracy against peak memory, all planners and peers, a panel a task."""
    tasks = [task for task in results.tasks if any(row.task == task for row in _scored(results))]
    figure, axes, free = panels(len(tasks), 4, (3.6, 3.4))
    for axis, task in zip(axes, tasks, strict=True):
        for number, (name, look) in enumerate(looks.items()):
            rows = [row for row in _scored(results) if (row.task, row.planner) == (task, name)]
            size = 8 if any(row.mode for row in rows) else 5
            xs, ys = [row.rss_bytes / 2**20 for row in rows], [row.points for row in rows]
            axis.plot(xs, ys, look.marker, color=look.colour, ms=size, alpha=0.8, zorder=100 - number, label=name)
        _whole_model(axis, results, task)
        logarithmic(axis.xaxis)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("peak resident set of the process, MiB", fontsize=8)
        axis.set_ylabel("points", fontsize=8)
    legend(free, axes, looks)
    save(figure, path)


def _prediction(results: Results, rows: list[Row], looks: dict[str, Style], path: Path) -> None:
    """Measured against predicted time, and the error of each prediction."""
    figure, (both, errors), free = panels(2, 3, (4.2, 3.6))
    for number, name in enumerate(results.planners):
        own = [row for row in rows if row.planner == name]
        predicted = [row.predicted_us / 1e3 for row in own]
        options: dict[str, Any] = {"color": looks[name].colour, "ms": 5, "alpha": 0.8, "label": name}
        options["zorder"] = 100 - number
        both.plot(predicted, [row.median_us / 1e3 for row in own], looks[name].marker, **options)
        errors.plot(predicted, [100 * row.error for row in own], looks[name].marker, **options)
    times = [us / 1e3 for row in rows for us in (row.predicted_us, row.median_us)]
    ends = [0.9 * min(times), 1.1 * max(times)]
    both.plot(ends, ends, color="black", lw=0.8)
    low, high = ([factor * end for end in ends] for factor in (1 - WITHIN, 1 + WITHIN))
    both.fill_between(ends, low, high, **BAND, label=f"within {100 * WITHIN:.0f} %")
    errors.axhspan(-100 * WITHIN, 100 * WITHIN, **BAND)
    errors.axhline(0, color="black", lw=0.8)
    for axis in (both.xaxis, both.yaxis, errors.xaxis):
        logarithmic(axis)
    both.set(xlim=ends, ylim=ends)
    for panel in (both, errors):
        panel.set_xlabel("predicted, ms", fontsize=8)
    both.set_ylabel("median measured, ms", fontsize=8)
    errors.set_ylabel("measured less predicted, % of predicted", fontsize=8)
    legend(free, (both, errors), results.planners)
    save(figure, path)
