"""Markdown tables, and numbers as they stand in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.evaluation.results import Cell, Results

NONE = "–"  # nothing there, by decision or for lack of a plan


def table(header: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """A table whose first `left` columns hold text and the others numbers."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(["---"] * left + ["---:"] * (len(header) - left)) + "|")
    lines += ["| " + " | ".join(str(entry).replace("|", "\\|") for entry in row) + " |" for row in rows]
    return "\n".join(lines)


def section(title: str, *parts: str, level: int = 2) -> str:
    """A heading and what follows it; nothing, where all parts are empty."""
    found = [part for part in parts if part]
    return "\n\n".join(["#" * level + " " + title, *found]) if found else ""


def ms(us: float) -> str:
    """Milliseconds, three digits."""
    value = us / 1e3
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def mib(size: float) -> str:
    """MiB, one decimal."""
    return f"{size / 2**20:.1f}"


def percent(share: float, digits: int = 1) -> str:
    """A share in percent."""
    return NONE if math.isnan(share) else f"{100 * share:.{digits}f} %"


def signed(points: float) -> str:
    """A difference in points."""
    return NONE if math.isnan(points) else f"{points:+.1f}"


def asked(results: Results, cell: Cell) -> tuple[str, str, str]:
    """A cell's bandwidth, preload buffer and deadline, in words; the paper's bandwidth has a star."""
    rate = f"{cell.bytes_per_s / 1e6:.0f} MB/s" + "*" * results.at_paper(cell)
    preload = "any" if math.isinf(cell.preload_bytes) else f"{cell.preload_bytes / 2**20:g} MiB"
    ratio = cell.deadline_us / results.compute_us(cell.task)
    return rate, preload, "none" if math.isinf(ratio) else f"{ms(cell.deadline_us)} ms ({ratio:.2g} C)"
