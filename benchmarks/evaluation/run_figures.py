"""Figures of single runs: what happens when, predicted above measured, and memory over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.evaluation.results import Json, Results, Row
from benchmarks.evaluation.styles import Drawing, Style, legend, logarithmic, panels, save
from stic.compiler.report.drawing import Kind, Span, Strip, picture
from stic.compiler.report.report import layer_label

_KINDS: dict[str, Kind] = {"io": "read", "compute": "compute", "stall": "stall"}  # others are left out
CLOSE = 0.002  # of a run: reads no farther apart are drawn as one


def timelines(results: Results) -> dict[str, Drawing]:
    """For each task, bandwidth and deadline of which timelines were kept: every planner's run."""
    groups: dict[tuple[str, int, float], list[Row]] = {}
    for row in results.planned:
        if row.data.get("timeline"):
            groups.setdefault((row.task, row.cell.bytes_per_s, row.deadline_us), []).append(row)
    found: dict[str, Drawing] = {}
    for (task, rate, deadline_us), rows in sorted(groups.items(), key=lambda group: group[0]):
        ratio = deadline_us / results.compute_us(task)
        limit = "" if math.isinf(ratio) else f"-{ratio:.2g}C"
        rows.sort(key=lambda row: results.planners.index(row.planner))
        found[f"timeline-{task}-{rate / 1e6:.0f}MB{limit}"] = partial(_timeline, rows)
    return found


def _timeline(rows: Sequence[Row], path: Path) -> None:
    picture([strip for row in rows for strip in _strips(row)], path, "png")


def _strips(row: Row) -> Iterable[Strip]:
    preload, deadline = row.cell.preload_bytes, row.case.get("deadline_us")
    name = row.planner + ("" if math.isinf(preload) else f", {preload / 2**20:g} MiB of preload")
    for which in ("predicted", "measured"):
        yield Strip(f"{name}, {which}", _spans(row.data["timeline"][which]), deadline)


def _spans(events: Sequence[Json]) -> tuple[Span, ...]:
    """Events as spans; reads of one layer that follow each other closely, on whichever lane, as one."""
    close_us = CLOSE * max((event["end_us"] for event in events), default=0.0)
    spans: list[Span] = []
    last: dict[str, int] = {}  # lane -> its latest span
    for event in sorted(events, key=lambda event: float(event["start_us"])):
        if (kind := _KINDS.get(event["kind"])) is None:
            continue
        lane = "IO" if kind == "read" else "compute"
        span = Span(lane, kind, event["start_us"], event["end_us"], layer_label(event["layer"]))
        before = spans[last[lane]] if lane in last else None
        same = before is not None and (before.kind, before.label) == (kind, span.label) and kind == "read"
        if before is not None and same and span.start_us <= before.end_us + close_us:
            spans[last[lane]] = replace(before, end_us=max(before.end_us, span.end_us))
        else:
            last[lane] = len(spans)
            spans.append(span)
    return tuple(spans)


def memory_over_time(rows: Sequence[Row], looks: dict[str, Style], path: Path) -> None:
    """Memory of the process's cgroup since its start, a panel a task; cold starts of peers are dashed."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    figure, axes, free = panels(len(tasks), 4, (3.8, 3.2))
    for axis, task in zip(axes, tasks, strict=True):
        for row in (row for row in rows if row.task == task):
            curve = [(us, size) for us, size in row.data["memory_curve"] if us and size]
            label = row.planner if row.mode is None else f"{row.planner}, {row.mode}"
            style, width = ("--" if row.mode == "cold" else "-"), (1.6 if row.mode is None else 1.0)
            times, sizes = [us / 1e3 for us, _ in curve], [size / 2**20 for _, size in curve]
            axis.plot(times, sizes, color=looks[row.planner].colour, ls=style, lw=width, label=label)
        logarithmic(axis.xaxis, (1,))
        logarithmic(axis.yaxis)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("ms since the process began", fontsize=8)
        axis.set_ylabel("memory of its cgroup, MiB", fontsize=8)
    legend(free, axes)
    save(figure, path)
