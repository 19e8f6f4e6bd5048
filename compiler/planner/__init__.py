"""Planners: one signature, `Problem -> Plan` (see stic.compiler.plan); docs/planner.md has the mathematics."""

from __future__ import annotations

from dataclasses import replace

from stic.compiler.plan import Plan, Problem
from stic.compiler.planner import baselines, greedy, placement
from stic.runtime.errors import InfeasibleError, InputError

FIXED = {  # planners that hold every shard at the given bits
    "load-and-exec": baselines.load_and_exec,
    "pipeline": baselines.pipeline,
    "preload": baselines.preload,
}
SLACK = {"greedy": (True, False), "greedy-slack": (True,), "greedy-no-slack": (False,)}
PLANNERS = ("ilp", *SLACK, *FIXED)


def solve(
    problem: Problem, planner: str = "ilp", bits: int | None = None, time_limit_s: float = 10.0, workers: int = 2,
    enough: float = 0.0,
) -> Plan:  # fmt: skip
    """Plan `problem` with one of PLANNERS. `bits` is for the baselines at a fixed bitwidth, and only for them.

    `enough` is the gap at which "ilp" stops looking for something better. Where there is a GPU and the problem does not
    say which layers run on it, placements are tried too.

    Raises InfeasibleError if no plan (of this planner) meets the budget, InputError for a wrong choice.
    """
    if planner not in PLANNERS:
        raise InputError(f"there is no planner {planner!r}; choose one of {', '.join(PLANNERS)}")
    if (planner in FIXED) != (bits is not None):
        raise InputError(f"planner {planner} {'needs' if planner in FIXED else 'does not take'} --bits")
    if problem.gpu is not None and not problem.places:
        return placement.solve(problem, lambda p, s: solve(p, planner, bits, s, workers, enough), time_limit_s)
    if planner in FIXED:
        assert bits is not None
        return FIXED[planner](problem, bits)
    if planner == "ilp":
        from stic.compiler.planner import optimal  # with ortools, which takes a third of a second

        found = problem.along_path
        return optimal.solve(found, time_limit_s, workers, enough=enough * _share_of_bits(found))
    plan = greedy.solve(replace(problem, path=None), SLACK[planner], planner)  # STI knows n x m submodels only
    if plan is None:
        raise InfeasibleError(
            f"planner {planner} finds no plan for this budget; planner ilp may, or says what it takes"
        )
    return plan


def _share_of_bits(problem: Problem) -> float:
    """Which part of the largest objective bits decide: a gap of half a percent of an elastic model's whole objective,
    which is nearly all presence, could be all that bits are worth."""
    bits = float(problem.gain.max(axis=2).sum())
    whole = bits + (float(problem.presence.sum()) if problem.elastic else 0.0)
    return bits / whole if whole > 0 else 1.0
