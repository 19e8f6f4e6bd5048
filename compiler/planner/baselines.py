"""What STI is compared with: load then run, a layer-by-layer pipeline, and everything resident, at fixed bits.

Each keeps the best n x m submodel that meets the budget (elastic models), or the whole model.
"""

from __future__ import annotations

import time

from stic.compiler.plan import LayerPlan, Plan, Problem, Proof
from stic.compiler.planner.closed_form import claim_of, objective, within
from stic.runtime.errors import InfeasibleError, InputError


def solve_fixed(problem: Problem, name: str, bits: int, resident: bool, overlap: bool, read_ahead: int) -> Plan:
    """The best submodel with every shard at `bits` that meets the budget.

    Raises InfeasibleError with what the whole (or the cheapest) model would need.
    """
    if bits not in problem.bits:
        raise InputError(
            f"planner {name} was asked for {bits} bits; this model offers {', '.join(map(str, problem.bits))}"
        )
    began = time.perf_counter()
    best: Plan | None = None
    cheapest = None
    for widths in _submodels(problem):
        layers = tuple(
            _uniform(problem, k, m, bits, resident) if m else LayerPlan((), ()) for k, m in enumerate(widths)
        )
        proof = Proof("heuristic", objective(layers, problem), None, time.perf_counter() - began)
        table = resident and not problem.table_streamed
        plan = Plan(name, layers, table, read_ahead, overlap, problem.budget, problem.margin, proof)
        result = claim_of(plan, problem)
        if within(problem, result) and (best is None or plan.proof.objective > best.proof.objective):
            best = plan
        if cheapest is None or result.latency_us < cheapest.latency_us:
            cheapest = result
    if best is None:
        assert cheapest is not None
        ms = f"{cheapest.latency_us / 1000:.1f} ms"
        if problem.prompt:
            ms = f"{cheapest.first_token_us / 1000:.1f} ms for the first token and {ms} for the next"
        needs = (
            f"{ms}, {cheapest.peak_bytes / 2**20:.1f} MiB of memory and "
            f"{cheapest.preload_bytes / 2**20:.1f} MiB of preload buffer"
        )
        raise InfeasibleError(f"planner {name} at {bits} bits needs {needs}; try fewer bits or planner ilp")
    return best


def _uniform(problem: Problem, block: int, slices: int, bits: int, resident: bool) -> LayerPlan:
    """The first slices of a block at its bits: those of all, unless it is held at others."""
    own = problem.held.get(block, bits)
    return problem.decided(block, (own,) * slices, ((own if resident else 0),) * slices)


def _submodels(problem: Problem) -> list[list[int]]:
    """Slices kept by block: n x m submodels, leaving out the layers of least presence."""
    if not problem.elastic:
        return [list(problem.store.slices)]
    depth, out = problem.store.blocks, []
    for m in range(1, problem.store.most_slices + 1):
        value = problem.presence[:, :m].sum(axis=1)
        ranked = sorted(range(depth), key=lambda k: -value[k])
        out += [[m if k in ranked[:n] else 0 for k in range(depth)] for n in range(1, depth + 1)]
    return out


def load_and_exec(problem: Problem, bits: int) -> Plan:
    """Read the whole model, then run it."""
    return solve_fixed(problem, "load-and-exec", bits, False, False, problem.store.blocks)


def pipeline(problem: Problem, bits: int) -> Plan:
    """Read the next layer while one is computed (double buffering), nothing resident."""
    return solve_fixed(problem, "pipeline", bits, False, True, 1)


def preload(problem: Problem, bits: int) -> Plan:
    """Everything resident, the embedding table included."""
    return solve_fixed(problem, "preload", bits, True, True, problem.store.blocks)
