"""STI's planner as published (arXiv 2207.05022): choose a submodel, preload from the bottom, spend what is left.

Stage 1 picks the n x m submodel with the largest compute that meets the deadline. Stage 2 fills the preload
buffer from layer 0 upward, raises all other shards to the highest uniform bitwidth (pass 1), then walks the
shards by importance and upgrades each while every accumulated IO budget stays non-negative (pass 2). The
paper leaves two things open and the yardstick tries both: whether an upgrade goes to the highest level at
once (variant A) or one level a round (variant B), and whether IO may start before compute (start slack).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from stic.compiler.plan import Claim, Plan, Problem, Proof
from stic.compiler.planner.closed_form import (
    CostTable,
    LayerCost,
    busy,
    claim,
    deadline_us,
    embedding_us,
    objective,
    within,
)

Layers = list[tuple[tuple[int, ...], tuple[int, ...]]]  # (bits, resident) by layer

TIE = 0.05  # submodels whose compute is this close count as equal; the deeper one goes first
PRELOAD_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the memory left for the preload buffer, where no size is given


@dataclass(frozen=True)
class Settings:
    """What the greedy planner holds fixed in one attempt."""

    table_resident: bool
    read_ahead: int
    preload_bytes: float
    at_once: bool  # variant A
    slack: bool  # False: IO starts with compute, so only embedding rows may precede it


class _Attempt:
    """One run of stage 2 on one submodel."""

    def __init__(self, problem: Problem, table: CostTable, settings: Settings, widths: list[int]) -> None:
        self.problem, self.table, self.settings, self.widths = problem, table, settings, widths
        self.layers: Layers = []
        self.costs: list[LayerCost] = []

    def _cost(self, k: int, entry: tuple[tuple[int, ...], tuple[int, ...]]) -> LayerCost:
        return self.table.layer(k, *entry)

    def _claim(self, costs: list[LayerCost]) -> Claim:
        return claim(self.problem, costs, self.settings.table_resident, self.settings.read_ahead)

    def _fits(self, costs: list[LayerCost]) -> bool:
        result = self._claim(costs)
        if not within(self.problem, result):
            return False
        if self.settings.slack:
            return True
        start = self.problem.compute.submit_us + embedding_us(self.problem, self.settings.table_resident)
        return result.latency_us <= start + busy(self.problem, costs).total_us + 1e-6

    def _uniform(self, bits: int) -> tuple[Layers, list[LayerCost]]:
        """Everything at `bits`; resident: from layer 0 upward, in slice order, what fits the preload buffer."""
        layers: Layers = []
        costs: list[LayerCost] = []
        room = self.settings.preload_bytes
        for k, m in enumerate(self.widths):
            own = self.problem.held.get(k, bits)
            entry = ((own,) * m, (0,) * m)
            for held in range(m, 0, -1):
                tried = ((own,) * m, (own,) * held + (0,) * (m - held))
                if self._cost(k, tried).resident_bytes <= room:
                    entry = tried
                    break
            cost = self._cost(k, entry)
            room = room - cost.resident_bytes if m == 0 or entry[1][-1] else 0
            layers.append(entry)
            costs.append(cost)
        return layers, costs

    def start(self) -> bool:
        """Pass 1: the highest uniform bitwidth that fits; False if none does."""
        for bits in reversed(self.problem.bits):
            layers, costs = self._uniform(bits)
            if self._fits(costs):
                self.layers, self.costs = layers, costs
                return True
        return False

    def _upgraded(self, k: int, s: int, bits: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Layer k with shard s at `bits`, or None where the prefix rules forbid it."""
        old, resident = self.layers[k]
        if k in self.problem.held:
            return None
        if k in self.problem.whole:
            return self._all_upgraded(k, bits) if s == 0 else None
        if s > 0 and old[s - 1] < bits:
            return None
        held = resident[s]
        if held and bits > 8:
            held = 0  # planes of a shard at full precision are of no use
        elif held and not self.problem.store.nested:
            return None
        new = (*old[:s], bits, *old[s + 1 :])
        kept = (*resident[:s], held, *resident[s + 1 :])
        return new, kept

    def _all_upgraded(self, k: int, bits: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Layer k, whose slices have the same bits, with all of them at `bits`."""
        old, resident = self.layers[k]
        if not any(resident) or self.problem.store.nested:
            return (bits,) * len(old), (0,) * len(old) if bits > 8 else resident
        return ((bits,) * len(old), (bits,) * len(old)) if all(resident) else None

    def _try(self, k: int, s: int, bits: int) -> bool:
        entry = self._upgraded(k, s, bits)
        if entry is None:
            return False
        costs = list(self.costs)
        costs[k] = self._cost(k, entry)
        if not self._fits(costs):
            return False
        self.layers[k], self.costs = entry, costs
        return True

    def upgrade(self, order: list[tuple[int, int]]) -> None:
        """Pass 2: walk the shards by importance."""
        fidelities = self.problem.bits
        if self.settings.at_once:
            for k, s in order:
                for bits in reversed(fidelities[fidelities.index(self.layers[k][0][s]) + 1 :]):
                    if self._try(k, s, bits):
                        break
            return
        changed = True
        while changed:
            changed = False
            for k, s in order:
                at = fidelities.index(self.layers[k][0][s])
                if at + 1 < len(fidelities) and self._try(k, s, fidelities[at + 1]):
                    changed = True


def _submodels(problem: Problem) -> Iterator[list[int]]:
    """Widths by layer of every n x m submodel, most compute first, near ties deeper first.

    A submodel of n layers leaves out those of least presence. Taking the first n instead would run a network
    that nobody trained: depth is elastic because layers were skipped during training, not because it was cut.
    Along a path of submodels, its prefixes stand in their place.
    """
    depth, width = problem.presence.shape
    if not problem.elastic:
        yield list(problem.store.slices)
        return
    if problem.path is not None:
        for count in range(depth * width, 0, -1):
            layers = [k for k, _ in problem.path.order[:count]]
            yield [layers.count(k) for k in range(depth)]
        return
    ranked = [np.argsort(-problem.presence[:, :m].sum(axis=1), kind="stable").tolist() for m in range(1, width + 1)]
    layer_us = [[problem.block_cost(k).of((problem.bits[0],) * m) for k in range(depth)] for m in range(1, width + 1)]
    sizes = [
        (n, m, sum(layer_us[m - 1][k] for k in ranked[m - 1][:n]))
        for n in range(1, depth + 1)
        for m in range(1, width + 1)
    ]
    sizes.sort(key=lambda x: (-x[2], -x[0]))
    while sizes:
        near = [x for x in sizes if x[2] >= sizes[0][2] * (1 - TIE)]
        chosen = max(near, key=lambda x: (x[0], x[2]))
        sizes.remove(chosen)
        n, m, _ = chosen
        keep = set(ranked[m - 1][:n])
        yield [m if k in keep else 0 for k in range(depth)]


def _settings(problem: Problem, slack: tuple[bool, ...]) -> Iterator[Settings]:
    """Everything that the yardstick may try; what mostly does best comes first, as time may be short.

    Where memory is limited, a small preload buffer and little read-ahead leave room for a larger submodel, which is
    also found sooner: the largest are tried first.
    """
    budget, depth = problem.budget, problem.store.blocks
    aheads, shares = ((depth,), (1.0,)) if budget.memory_bytes is None else ((1, depth), PRELOAD_SHARES)
    for with_slack, share in product(slack, shares):
        for table_resident in (False, True) if problem.table_may_stay else (False,):
            if budget.memory_bytes is None:
                cap = math.inf if budget.preload_bytes is None else float(budget.preload_bytes)
            else:
                free = budget.memory_bytes - problem.fixed_bytes - (problem.table_bytes if table_resident else 0)
                free -= problem.gpu_bytes if "gpu" in problem.places else 0
                cap = free if budget.preload_bytes is None else min(free, budget.preload_bytes)
            if cap < 0 or (not cap and share != shares[0]):  # a share of nothing is the same as the first
                continue
            for read_ahead, at_once in product(aheads, (False, True)):
                yield Settings(table_resident, read_ahead, cap * share, at_once, with_slack)


def solve(
    problem: Problem, slack: tuple[bool, ...] = (True, False), name: str = "greedy", until: float = math.inf
) -> Plan | None:
    """Best greedy plan over all variants, or None if none meets the budget.

    `slack` lists what start slack to try; the published algorithm leaves it open. At the time `until`
    (time.perf_counter) the best of the variants tried is taken, once there is one.
    """
    began = time.perf_counter()
    table = CostTable(problem)
    rank = np.argsort(-problem.gain[:, :, -1], axis=None, kind="stable")
    width = problem.store.most_slices
    order = [(int(i) // width, int(i) % width) for i in rank]
    best: tuple[tuple[float, float], Plan] | None = None
    for settings in _settings(problem, slack):
        if best is not None and time.perf_counter() > until:
            break
        for widths in _submodels(problem):
            attempt = _Attempt(problem, table, settings, widths)
            if not _could_finish(problem, settings, widths) or not attempt.start():
                continue
            attempt.upgrade([(k, s) for k, s in order if s < widths[k]])
            layers = tuple(problem.decided(k, bits, held) for k, (bits, held) in enumerate(attempt.layers))
            value = objective(layers, problem)
            score = (value, -_smallness(problem, attempt))
            if best is None or score > best[0]:
                proof = Proof("heuristic", value, None, 0.0)
                note = (
                    f"variant {'A' if settings.at_once else 'B'}, {'with' if settings.slack else 'without'} start slack"
                )
                plan = Plan(
                    name, layers, settings.table_resident, settings.read_ahead, True, problem.budget, problem.margin,
                    proof, (note,),
                )  # fmt: skip
                best = score, plan
            break  # the published rule takes the first submodel that fits
    if best is None:
        return None
    return replace(best[1], proof=replace(best[1].proof, solve_seconds=time.perf_counter() - began))


def _could_finish(problem: Problem, settings: Settings, widths: list[int]) -> bool:
    """Cheap test before an attempt: compute alone at the lowest bits meets the deadline."""
    kept = [(k, m, problem.block_cost(k)) for k, m in enumerate(widths) if m]
    offered = {k: (problem.held[k],) if k in problem.held else problem.bits for k, _, _ in kept}
    total = sum(c.block_us + m * min(c.slice_us[b] for b in offered[k]) for k, m, c in kept)
    start = problem.compute.submit_us + embedding_us(problem, settings.table_resident)
    return start + problem.cost(problem.place(kept[0][0])).embed_us + total + problem.compute.head_us <= deadline_us(
        problem
    )


def _smallness(problem: Problem, attempt: _Attempt) -> float:
    """What to make small among plans of equal quality: the part of the budget that was left open."""
    result = attempt._claim(attempt.costs)
    return result.peak_bytes if problem.budget.memory_bytes is None else result.latency_us
