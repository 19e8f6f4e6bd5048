"""Draw what happens when: IO lanes, compute and stalls, in the terminal and as a picture.

A drawing knows nothing of plans or engines: it gets strips of spans, which `stic.compiler.report.report` makes from
a predicted timeline or from a measured trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from typing import Literal

from stic.compiler.quantities import format_time, quote_time

Kind = Literal["read", "compute", "stall"]
HAND_OVER = "→"  # label of moving activations between processors
SHADES = " ▁▂▃▄▅▆▇█"
COLOURS = {"read": "#4c78a8", "compute": "#f58518", "stall": "#d62728"}


@dataclass(frozen=True)
class Span:
    """One thing that one lane does, in microseconds from the start of the run."""

    lane: str
    kind: Kind
    start_us: float
    end_us: float
    label: str = ""  # compute: what the drawing writes there, "E" for embedding, "0".. for a layer, "H" for the head


@dataclass(frozen=True)
class Strip:
    """All spans of one run, predicted or measured."""

    title: str
    spans: tuple[Span, ...]
    deadline_us: float | None = None

    @property
    def end_us(self) -> float:
        """End of the last span."""
        return max((span.end_us for span in self.spans), default=0.0)

    @property
    def lanes(self) -> tuple[str, ...]:
        """Lanes by name, those that read first."""
        order = {"read": 0, "compute": 1, "stall": 1}
        names = {span.lane: min(order[s.kind] for s in self.spans if s.lane == span.lane) for span in self.spans}
        return tuple(sorted(names, key=lambda name: (names[name], name)))


def _busy(spans: Sequence[Span], cells: int, cell_us: float) -> list[float]:
    """Share of each cell that the spans cover."""
    busy = [0.0] * cells
    for span in spans:
        for i in range(max(0, int(span.start_us / cell_us)), min(cells, int(span.end_us / cell_us) + 1)):
            overlap = min(span.end_us, (i + 1) * cell_us) - max(span.start_us, i * cell_us)
            busy[i] += max(0.0, overlap) / cell_us
    return busy


def _read_row(spans: Sequence[Span], cells: int, cell_us: float) -> str:
    """Height of each block: how busy the lane is there; a lane that did anything shows at least the lowest."""
    top = len(SHADES) - 1
    return "".join(SHADES[min(top, max(int(b > 0), round(b * top)))] for b in _busy(spans, cells, cell_us))


def _compute_row(spans: Sequence[Span], cells: int, cell_us: float) -> str:
    """The label of what fills most of each cell; a dot where compute waits, blank where there is nothing.

    Waiting counts half, so that layers much shorter than their stalls stay visible.
    """
    row = [" "] * cells
    best = [0.0] * cells
    for span in sorted(spans, key=lambda s: s.start_us):
        for i, share in enumerate(_busy([span], cells, cell_us)):
            weight = share / 2 if span.kind == "stall" else share
            if weight > best[i]:
                best[i] = weight
                row[i] = "·" if span.kind == "stall" else (span.label[-1:] or "█")
    return "".join(row)


def _tick_us(least_us: float) -> float:
    """The round time (1, 2 or 5 times a power of ten) that is not below `least_us`."""
    power = 10.0 ** floor(log10(least_us))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least_us)


def _axis(cells: int, cell_us: float) -> str:
    """Tick labels at round times, at least 12 cells apart."""
    row = [" "] * (cells + 10)
    tick_us = _tick_us(12 * cell_us)
    for number in range(int(cells * cell_us / tick_us) + 1):
        at = round(number * tick_us / cell_us)
        text = "│" + format_time(number * tick_us)
        row[at : at + len(text)] = text
    return "".join(row).rstrip()


def terminal(strips: Sequence[Strip], width: int = 100) -> str:
    """The strips under each other on one time scale, at most `width` columns wide, without colour."""
    end_us = max(strip.end_us for strip in strips)
    if end_us <= 0:
        return "nothing was recorded"
    names = [lane for strip in strips for lane in strip.lanes]
    margin = max(len(name) for name in names) + 3
    cells = max(20, width - margin - 10)
    cell_us = end_us / cells
    lines: list[str] = []
    for strip in strips:
        stall_us = sum(s.end_us - s.start_us for s in strip.spans if s.kind == "stall")
        head = f"{strip.title}: {format_time(strip.end_us)}, of it {format_time(stall_us)} stalled"
        if strip.deadline_us:
            head += f", deadline {quote_time(strip.deadline_us)}"
        lines.append(head)
        for lane in strip.lanes:
            spans = [s for s in strip.spans if s.lane == lane]
            draw = _read_row if all(s.kind == "read" for s in spans) else _compute_row
            lines.append(f"  {lane:<{margin - 3}} {draw(spans, cells, cell_us)}".rstrip())
    lines.append(" " * margin + _axis(cells, cell_us))
    legend = "  read: height = how busy; compute: E embedding, last digit of the layer, H head, · waits"
    moves = any(span.label == HAND_OVER for strip in strips for span in strip.spans)
    lines.append(legend + f", {HAND_OVER} hand-over" * moves)
    return "\n".join(lines)


def picture(strips: Sequence[Strip], path: Path, kind: str | None = None) -> None:
    """The same as a picture of `kind`, such as "png"; None: the suffix of `path` says which."""
    from matplotlib.figure import Figure

    heights = [len(strip.lanes) for strip in strips]
    figure = Figure(figsize=(10, 1.2 + 0.42 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(strips), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, strip in zip(axes, strips, strict=True):
        for row, lane in enumerate(strip.lanes):
            for span in (s for s in strip.spans if s.lane == lane):
                start, length = span.start_us / 1e3, (span.end_us - span.start_us) / 1e3
                axis.broken_barh(
                    [(start, length)],
                    (row - 0.4, 0.8),
                    facecolors=COLOURS[span.kind],
                    alpha=0.35 if span.kind == "stall" else 1.0,
                    edgecolor="white",
                    linewidth=0.3,
                )
                if span.kind == "compute" and span.label:
                    axis.text(start + length / 2, row, span.label, ha="center", va="center", fontsize=7, clip_on=True)
        if strip.deadline_us:
            axis.axvline(strip.deadline_us / 1e3, color="black", linestyle="--", linewidth=0.8)
        axis.set_yticks(range(len(strip.lanes)), strip.lanes)
        axis.invert_yaxis()
        axis.set_title(f"{strip.title}: {format_time(strip.end_us)}", loc="left", fontsize=9)
    axes[-1].set_xlabel("milliseconds")
    figure.savefig(path, format=kind)
