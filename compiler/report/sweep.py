"""What a budget buys: one plan for every point of a grid of latency and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stic.compiler.plan import Budget, Plan, Problem
from stic.compiler.quantities import quote_bytes, quote_time
from stic.compiler.simulate import simulate
from stic.runtime.errors import InfeasibleError

AROUND = (0.6, 0.8, 1.0, 1.25, 1.6)  # the grid, in multiples of the plan that was asked for


@dataclass(frozen=True)
class Point:
    """One budget and its plan; None: no plan meets it."""

    latency_us: int
    memory_bytes: int
    plan: Plan | None
    predicted_us: float | None
    peak_bytes: int | None

    @property
    def objective(self) -> float | None:
        return None if self.plan is None else self.plan.proof.objective

    def to_json(self) -> dict[str, Any]:
        """Plain data; objective and everything after it is None where no plan exists."""
        proof = None if self.plan is None else self.plan.proof
        return {
            "deadline_us": self.latency_us,
            "memory_bytes": self.memory_bytes,
            "status": "infeasible" if proof is None else proof.status,
            "objective": None if proof is None else proof.objective,
            "bound": None if proof is None else proof.bound,
            "gap": None if proof is None else proof.gap,
            "solve_seconds": None if proof is None else proof.solve_seconds,
            "mean_bits": None if self.plan is None else self.plan.mean_bits,
            "predicted_us": self.predicted_us,
            "peak_bytes": self.peak_bytes,
        }


Solve = Callable[[Problem], Plan]


def sweep_plans(
    problem: Problem,
    solve: Solve,
    latencies_us: Sequence[int],
    memories_bytes: Sequence[int],
    progress: Callable[[str, int, int], None],
) -> tuple[Point, ...]:
    """Plan for every pair of budgets, latency by latency; `solve` raises InfeasibleError where there is no plan."""
    grid = [(latency, memory) for latency in sorted(latencies_us) for memory in sorted(memories_bytes)]
    points = []
    for done, (latency, memory) in enumerate(grid):
        progress("sweep", done, len(grid))
        budget = Budget(latency, memory, problem.budget.preload_bytes)
        asked = replace(problem, budget=budget)
        try:
            plan = solve(asked)
        except InfeasibleError:
            points.append(Point(latency, memory, None, None, None))
            continue
        timeline = simulate(plan, asked)
        points.append(Point(latency, memory, plan, timeline.latency_us, timeline.peak_bytes))
    progress("sweep", len(grid), len(grid))
    return tuple(points)


def grid_around(value: float) -> tuple[int, ...]:
    """Budgets below and above one that is known to work."""
    return tuple(round(value * factor) for factor in AROUND)


def on_front(points: Sequence[Point]) -> frozenset[Point]:
    """Points that no other point beats: with no more latency and no more memory, at least the same objective."""

    def beaten(point: Point) -> bool:
        return any(
            other.objective is not None
            and point.objective is not None
            and other.latency_us <= point.latency_us
            and other.memory_bytes <= point.memory_bytes
            and other.objective >= point.objective
            and (other.latency_us, other.memory_bytes) != (point.latency_us, point.memory_bytes)
            for other in points
        )

    return frozenset(point for point in points if point.objective is not None and not beaten(point))


def draw(points: Sequence[Point], path: Path) -> None:
    """Objective over memory, one line a latency; the suffix of `path` says which kind of picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for latency in sorted({point.latency_us for point in points}):
        line = [p for p in points if p.latency_us == latency and p.objective is not None]
        if line:
            memory = [p.memory_bytes / (1 << 20) for p in line]
            axis.plot(memory, [p.objective or 0.0 for p in line], marker="o", label=quote_time(latency))
    front = on_front(points)
    axis.scatter(
        [p.memory_bytes / (1 << 20) for p in front],
        [p.objective or 0.0 for p in front],
        s=120,
        facecolors="none",
        edgecolors="black",
        label="not beaten",
    )
    axis.set_xlabel("memory budget, MiB")
    axis.set_ylabel("objective")
    axis.legend(title="latency budget")
    axis.set_title(f"{len(points)} budgets up to {quote_bytes(max(p.memory_bytes for p in points))}", fontsize=9)
    figure.savefig(path)
