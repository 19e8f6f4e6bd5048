"""One instance, solved by both planners and checked: a row of the study."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.planner_study.instances import Instance
from stic.compiler.memory.check import verify_extents
from stic.compiler.memory.placement import place_extents
from stic.compiler.plan import Plan, Problem
from stic.compiler.planner import greedy, optimal
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.planner.search import GAP_LIMIT, TIE
from stic.compiler.simulate import check
from stic.runtime.errors import SticError

MOMENTS_S = (1, 5, 30)
LATE = 1.2  # times the time limit

Course = list[tuple[float, float, float]]  # (seconds, objective, bound), in order


def measure(instance: Instance, solver: dict[str, Any]) -> dict[str, Any]:
    """Solve by greedy, then by ilp within `solver`'s limits. What should never happen is named in "defects"."""
    problem, defects = instance.problem, list[str]()
    default = max(GAP_LIMIT, solver["default_gap"] * share_of_bits(problem))
    began = time.perf_counter()
    yardstick = greedy.solve(problem)
    row: dict[str, Any] = {"instance": instance.number, **instance.facts}
    row["greedy"] = None if yardstick is None else yardstick.proof.objective
    row["greedy_seconds"] = time.perf_counter() - began
    course: Course = []
    began = time.perf_counter()
    try:
        plan = optimal.solve(
            problem, solver["time_limit_s"], solver["workers"], enough=min(solver["gap"], default),
            progress=lambda *now: course.append(now),
        )  # fmt: skip
        row["seconds"] = time.perf_counter() - began
        defects += _wrong(plan, yardstick, problem, course)
        row |= _answer(plan, course) | _against(yardstick, plan, problem, course, default)
    except SticError as error:  # a plan is known to exist
        row["seconds"] = time.perf_counter() - began
        row |= {"status": "failed", "message": str(error)}
        defects.append(f"no plan was found, though there is one: {error}")
    if row["seconds"] > LATE * solver["time_limit_s"]:
        defects.append(f"{row['seconds']:.1f} s is more than {LATE:g} times the time limit")
    steps = [[round(s, 3), *(float(f"{v:.8g}") for v in values)] for s, *values in course]
    return row | {"course": steps, "defects": defects}


def _wrong(plan: Plan, yardstick: Plan | None, problem: Problem, course: Course) -> list[str]:
    """What is wrong with an answer."""
    wrong = []
    objective, bound = plan.proof.objective, plan.proof.bound
    floor = -np.inf if yardstick is None else yardstick.proof.objective
    if objective < floor - 2 * TIE * abs(floor):
        wrong.append(f"the objective {objective:g} is below greedy's {floor:g}")
    for seconds, value, limit in [*course, (0.0, objective, np.inf if bound is None else bound)]:
        if limit < max(value, floor) - TIE * abs(limit):
            wrong.append(f"a bound of {limit:g} after {seconds:.1f} s is below {max(value, floor):g}")
    try:
        check(plan, problem, claim_of(plan, problem))
        verify_extents(plan, problem.store, place_extents(plan, problem.store))
    except (SticError, ValueError, AssertionError) as error:
        wrong.append(f"the replay disagrees: {error}")
    return wrong


def _answer(plan: Plan, course: Course) -> dict[str, Any]:
    """The plan in figures."""
    proof = plan.proof
    return {
        "status": proof.status,
        "ilp": proof.objective,
        "bound": proof.bound,
        "gap": proof.gap,
        "search_seconds": course[-1][0] if course else 0.0,
        "mean_bits": plan.mean_bits,
        "layers_kept": sum(bool(layer.bits) for layer in plan.layers),
        "read_ahead": plan.read_ahead,
        "table_resident": plan.table_resident,
    }


def _against(yardstick: Plan | None, plan: Plan, problem: Problem, course: Course, default: float) -> dict[str, Any]:
    """ilp against greedy and against time."""
    value, bound = plan.proof.objective, plan.proof.bound
    row: dict[str, Any] = {
        "gap_at": {str(s): gap_at(course, s) for s in MOMENTS_S},
        "seconds_to_default": seconds_to(course, default),
        "seconds_to_proof": seconds_to(course, GAP_LIMIT) if plan.proof.status == "optimal" else None,
        "ilp_captured": captured(value, problem),
    }
    if yardstick is None:
        return row | {"greedy_captured": None, "greedy_optimal": False, "greedy_equals_ilp": False}
    least = yardstick.proof.objective
    return row | {
        "greedy_captured": captured(least, problem),
        "greedy_optimal": bound is not None and relative(bound, least) <= GAP_LIMIT,
        "greedy_equals_ilp": relative(value, least) <= GAP_LIMIT,
    }


def relative(upper: float, value: float) -> float:
    """Distance from `upper` down to `value`, relative to `upper`, as `Proof.gap` has it."""
    return max(0.0, upper - value) / max(abs(upper), 1e-12)


def share_of_bits(problem: Problem) -> float:
    """The part of the largest objective that bits decide: `stic plan --gap` is a share of that part."""
    bits = float(problem.gain.max(axis=2).sum())
    return bits / max(bits + _presence(problem), 1e-300)


def captured(objective: float, problem: Problem) -> float:
    """Which share of what separates the whole model at the lowest bits (0) from itself at full gains (1) a plan has.

    Unlike a ratio of objectives it does not depend on what counts as nothing. Submodels may be below 0.
    """
    return (objective - _presence(problem)) / max(float(problem.gain.max(axis=2).sum()), 1e-300)


def _presence(problem: Problem) -> float:
    """What the whole model is worth at the lowest bits."""
    return float(problem.presence.sum()) if problem.elastic else 0.0


def _at(course: Course, seconds: float) -> tuple[float, float, float]:
    known = [entry for entry in course if entry[0] <= seconds]
    return known[-1] if known else (seconds, -np.inf, np.inf)


def gap_at(course: Course, seconds: float) -> float | None:
    """The gap known after so many seconds; None where there was no plan, or no bound, yet."""
    _, value, bound = _at(course, seconds)
    return relative(bound, value) if np.isfinite(value) and np.isfinite(bound) else None


def seconds_to(course: Course, gap: float) -> float | None:
    """When the gap was first known to be this small; None: never."""
    return next((s for s, value, bound in course if np.isfinite(value) and relative(bound, value) <= gap), None)
