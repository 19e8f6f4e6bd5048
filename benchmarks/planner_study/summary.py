"""The study in figures: of all instances and of their groups, and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.planner_study.measure import MOMENTS_S

Row = dict[str, Any]

_GROUPS: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("all", lambda r: True),
    ("minilm-l6", lambda r: r["geometry"] == "minilm-l6"),
    ("bert-base", lambda r: r["geometry"] == "bert-base"),
    ("bert-large", lambda r: r["geometry"] == "bert-large"),
    ("whole models", lambda r: not r["elastic"]),
    ("elastic models", lambda r: r["elastic"]),
    ("preload buffer limited", lambda r: r["kind"] == "preload"),
    ("memory limited", lambda r: r["kind"] == "memory"),
)


def summary(rows: Sequence[Row]) -> dict[str, Row]:
    """Figures by group; groups without instances are left out."""
    groups = {name: [r for r in rows if belongs(r)] for name, belongs in _GROUPS}
    return {name: _figures(found) for name, found in groups.items() if found}


def _figures(rows: Sequence[Row]) -> Row:
    solved = [r for r in rows if r["status"] != "failed"]
    both = [r for r in solved if r["greedy"] is not None]
    better = [r["ilp"] / r["greedy"] - 1 for r in both if r["greedy"] > 0]
    more = [r["ilp_captured"] - r["greedy_captured"] for r in both]
    proofs = [r["seconds_to_proof"] for r in solved if r["seconds_to_proof"] is not None]
    return {
        "instances": len(rows),
        "failed": len(rows) - len(solved),
        "defects": sum(len(r["defects"]) for r in rows),
        "greedy_none": _share(r["greedy"] is None for r in solved),
        "greedy_optimal": _share(r["greedy_optimal"] for r in solved),
        "greedy_equals_ilp": _share(r["greedy_equals_ilp"] for r in solved),
        "ilp_over_greedy": _spread(better),
        "greedy_captured_mean": _mean(r["greedy_captured"] for r in both),
        "ilp_captured_mean": _mean(r["ilp_captured"] for r in both),
        "captured_more": _spread(more),
        "greedy_seconds": _spread([r["greedy_seconds"] for r in rows]),
        "seconds": _spread([r["seconds"] for r in rows]),
        "seconds_to_default": _spread([r["seconds_to_default"] for r in solved]),
        "proved": len(proofs) / max(1, len(solved)),
        "seconds_to_proof": _spread(proofs),
        "gap_at": {str(s): _spread([r["gap_at"][str(s)] for r in solved]) for s in MOMENTS_S},
    }


def _share(found: Any) -> float:
    values = list(found)
    return sum(values) / max(1, len(values))


def _mean(found: Any) -> float | None:
    values = list(found)
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float | None]) -> Row:
    """Mean, least, median, 95th percentile and most; None counts as more than anything, and has no mean."""
    known = sorted(math.inf if v is None else v for v in values)
    if not known:
        return dict.fromkeys(("mean", "least", "median", "p95", "most"))
    ranks = {"least": 0.0, "median": 0.5, "p95": 0.95, "most": 1.0}
    at = {name: known[math.ceil(rank * len(known)) - 1 if rank else 0] for name, rank in ranks.items()}
    found = {"mean": statistics.fmean(known), **at}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def tables(groups: dict[str, Row]) -> str:
    """Two Markdown tables: what ilp finds more than greedy, and how soon."""
    quality = [
        (
            name, g["instances"], *(_percent(g[f"greedy_{k}"], 0) for k in ("optimal", "equals_ilp", "none")),
            *(_percent(g["ilp_over_greedy"][k]) for k in ("mean", "most")),
            _percent(g["greedy_captured_mean"]), _percent(g["ilp_captured_mean"]), _percent(g["captured_more"]["most"]),
        )
        for name, g in groups.items()
    ]  # fmt: skip
    times = [
        (
            name, *(_seconds(g["seconds_to_default"][k]) for k in ("median", "p95", "most")), _percent(g["proved"], 0),
            _seconds(g["seconds_to_proof"]["median"]),
            *(" / ".join(_percent(g["gap_at"][str(s)][k]) for k in ("median", "p95", "most")) for s in MOMENTS_S),
        )
        for name, g in groups.items()
    ]  # fmt: skip
    what = (
        "", "instances", "greedy optimal", "greedy equals ilp", "greedy finds none", "ilp / greedy - 1: mean", "most",
        "gain captured by greedy: mean", "by ilp: mean", "ilp - greedy: most",
    )  # fmt: skip
    when = ("", "to the default stop: median", "p95", "most", "proved", "to proof: median")
    gaps = [f"gap at {s} s: median / p95 / worst" for s in MOMENTS_S]
    return f"{_table('ilp against greedy', what, quality)}\n\n{_table('Time', (*when, *gaps), times)}"


def _percent(value: float | None, digits: int = 2) -> str:
    return "none" if value is None else f"{100 * value:.{digits}f} %"


def _seconds(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.1f} s"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"### {title}", "", " | ".join(["", *header, ""]).strip()]
    lines.append("|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|")
    lines += [" | ".join(["", *map(str, row), ""]).strip() for row in rows]
    return "\n".join(lines)
