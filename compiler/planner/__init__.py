"""Planners: one signature, `Problem -> Plan` (see stic.compiler.plan); docs/planner.md has the mathematics."""

from __future__ import annotations

from dataclasses import replace

from stic.compiler.plan import Budget, LayerPlan, Plan, Problem
from stic.compiler.planner import baselines, greedy, placement
from stic.compiler.planner.closed_form import claim_of, objective
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
    say which layers run on it, placements are tried too. Objectives of all planners are on one scale: where an elastic
    model has a path of submodels, they are values along it.

    Raises InfeasibleError if no plan (of this planner) meets the budget, InputError for a wrong choice.
    """
    if planner not in PLANNERS:
        raise InputError(f"there is no planner {planner!r}; choose one of {', '.join(PLANNERS)}")
    if (planner in FIXED) != (bits is not None):
        raise InputError(f"planner {planner} {'needs' if planner in FIXED else 'does not take'} --bits")
    if problem.gpu is not None and not problem.places:
        plan = placement.solve(
            problem, lambda p, seconds: _placed(p, planner, bits, seconds, workers, enough), time_limit_s
        )
    else:
        plan = _placed(problem, planner, bits, time_limit_s, workers, enough)
    return plan if planner == "ilp" else _along_path(plan, problem)


def least_memory(
    problem: Problem, planner: str = "ilp", bits: int | None = None, time_limit_s: float = 10.0, workers: int = 2
) -> int | None:
    """Bytes of the smallest plan that a search finds at any latency, or of the one plan of a planner at fixed bits.

    None: none was found in time.
    """
    free = replace(problem, budget=Budget(preload_bytes=problem.budget.preload_bytes))
    if planner in FIXED:
        assert bits is not None
        return claim_of(FIXED[planner](free, bits), free).peak_bytes
    from stic.compiler.planner import optimal

    plan = optimal.least(free, "memory", time_limit_s, workers).plan
    return None if plan is None else claim_of(plan, free).peak_bytes


def _placed(problem: Problem, planner: str, bits: int | None, time_limit_s: float, workers: int, enough: float) -> Plan:
    """`solve` where it is known what runs on a GPU; objectives are on the planner's own scale."""
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


def _along_path(plan: Plan, problem: Problem) -> Plan:
    """A plan of a planner that knows no path of submodels, with an objective that compares with the ilp's.

    Presence that was measured one layer at a time adds up to another scale than values along the path. What the plan
    keeps need not be a submodel of the path; then it is worth at least the largest one within it, and that counts. The
    ilp might have planned that one, so no such objective is above its bound.
    """
    if problem.path is None:
        return plan
    widths = [0] * len(plan.layers)
    for k, s in problem.path.order:
        if s >= len(plan.layers[k].bits):
            break
        widths[k] = s + 1
    layers = [
        LayerPlan(layer.bits[:width], layer.resident[:width], layer.place if width else "cpu")
        for layer, width in zip(plan.layers, widths, strict=True)
    ]
    counted, kept = sum(widths), sum(len(layer.bits) for layer in plan.layers)
    note = f"the objective counts {counted} of the {kept} shards, the largest submodel within them that was measured"
    proof = replace(plan.proof, objective=objective(layers, problem.along_path))
    return replace(plan, proof=proof, notes=plan.notes if counted == kept else (*plan.notes, note))


def _share_of_bits(problem: Problem) -> float:
    """Share of the largest possible objective that bits decide; presence decides the rest.

    An elastic model's objective is nearly all presence. Half a percent of it could be all that bits are worth, so a gap
    is a share of the bits' part alone.
    """
    bits = float(problem.gain.max(axis=2).sum())
    whole = bits + (float(problem.presence.sum()) if problem.elastic else 0.0)
    return bits / whole if whole > 0 else 1.0
