"""Where layers run: the GPU beside the CPU, or the CPU, as the cost tables say.

For given bits the best placement is a shortest path: a node is a layer at a place, its weight what the layer computes
there, an edge between places the hand-over. For a given placement the planners choose bits and residence. The two are
alternated, from all layers on the CPU and from all on the GPU, and the best plan is kept. Each answer is as good as its
planner says for its placement; no placement but those that were tried is ruled out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from stic.compiler.plan import Plan, Problem
from stic.compiler.planner.closed_form import claim_of
from stic.runtime.errors import InfeasibleError
from stic.runtime.gpu_format import PLACES, Place

Places = tuple[Place, ...]
ROUNDS = 2  # placements that are refined from the best plan so far
TIE = 1e-6  # relative; objectives this close are equal


def best_places(problem: Problem, bits: Sequence[tuple[int, ...]]) -> Places:
    """The placement with the least compute for layers of these bits, hand-overs included; on ties, more on the CPU.

    A layer that is left out gets the place of the one before it.
    """
    paths: dict[Place, tuple[float, int, Places]] = {}  # by where activations are: (us, layers on the GPU, places)
    for k, layer in enumerate(bits):
        if not layer:
            paths = {place: (us, count, (*path, place)) for place, (us, count, path) in paths.items()} or paths
            continue
        step = {}
        for place in PLACES:
            ways = [
                (us + (problem.hand_over_us if before != place else 0.0), count, path)
                for before, (us, count, path) in paths.items()
            ] or [(problem.cost(place).embed_us, 0, ())]
            us, count, path = min(ways)
            step[place] = (us + problem.block_cost(k, place).of(layer), count + (place == "gpu"), (*path, place))
        paths = step
    ends = [(us + (problem.hand_over_us if place == "gpu" else 0.0), n, path) for place, (us, n, path) in paths.items()]
    found = min(ends)[2] if ends else ()
    return (found[:1] or ("cpu",)) * (len(bits) - len(found)) + found  # layers left out at the start


def solve(problem: Problem, planner: Callable[[Problem, float], Plan], time_limit_s: float) -> Plan:
    """The best plan over placements; `planner` solves a problem whose layers are placed within so many seconds.

    Better is a higher objective, then less latency, then less memory. Raises InfeasibleError if no placement that is
    tried has a plan.
    """
    depth, deadline = problem.store.blocks, time.perf_counter() + time_limit_s
    waiting: list[Places] = [(place,) * depth for place in (PLACES[:1] if _never_pays(problem) else PLACES)]
    chances = len(waiting) + (ROUNDS if len(waiting) > 1 else 0)
    tried: list[Places] = []
    refusals: list[InfeasibleError] = []
    best: Plan | None = None
    while waiting and len(tried) < chances:
        places = waiting.pop(0)
        seconds = max(0.0, deadline - time.perf_counter()) / (chances - len(tried))
        tried.append(places)
        try:
            plan = planner(replace(problem, places=places), seconds)
            best = plan if best is None or _better(plan, best, problem) else best
        except InfeasibleError as error:
            refusals.append(error)
        if not waiting and best is not None and len(tried) > 1:
            refined = best_places(problem, [layer.bits for layer in best.layers])
            waiting += [refined] if refined not in tried else []
    if best is None:
        where = ("on the CPU", "on the GPU")
        raise InfeasibleError("; ".join(f"{w}: {e}" for w, e in zip(where, refusals, strict=False)))
    notes = (*best.notes, _note(best, len(tried)))
    return replace(best, notes=notes, proof=replace(best.proof, solve_seconds=_seconds(deadline, time_limit_s)))


def _seconds(deadline: float, time_limit_s: float) -> float:
    return time.perf_counter() - (deadline - time_limit_s)


def _never_pays(problem: Problem) -> bool:
    """Whether nothing is faster on the GPU: then every plan is at least as good with all layers on the CPU."""
    cpu, gpu = problem.compute, problem.cost("gpu")
    slower = any(
        mine.block_us > there.block_us or any(mine.slice_us[b] > there.slice_us[b] for b in problem.bits)
        for mine, there in zip(cpu.blocks, gpu.blocks, strict=True)
    )
    return not slower and cpu.embed_us <= gpu.embed_us + problem.hand_over_us


def _better(plan: Plan, other: Plan, problem: Problem) -> bool:
    mine, theirs = plan.proof.objective, other.proof.objective
    if abs(mine - theirs) > TIE * max(abs(mine), abs(theirs)):
        return mine > theirs
    a, b = claim_of(plan, problem), claim_of(other, problem)
    return (a.latency_us, a.peak_bytes) < (b.latency_us, b.peak_bytes)


def _note(plan: Plan, tried: int) -> str:
    kept = [layer.place for layer in plan.layers if layer.bits]
    count = kept.count("gpu")
    where = "no layer" if not count else "every layer" if count == len(kept) else f"{count} of {len(kept)} layers"
    if tried == 1:
        return f"{where} runs on the GPU: nothing is faster there"
    return f"{where} on the GPU, the best of {tried} placements; the bound is that of this placement"
