"""What a plan costs, from formulas: STI's accumulated IO budget in closed form, and buffer sizes.

The planners decide by these numbers and claim them; `stic.compiler.simulate` replays events instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stic.compiler.plan import Claim, LayerPlan, Pass, Plan, Problem
from stic.runtime.format import BLOCK, FULL
from stic.runtime.gpu_format import Place


@dataclass(frozen=True)
class LayerCost:
    """What one layer adds to a plan."""

    io_us: float
    compute_us: float  # at its place, without handing it its input
    resident_bytes: int
    streamed_bytes: int
    kept: bool
    place: Place
    prompt_us: tuple[float, ...] = ()  # compute in each pass of the prompt


class CostTable:
    """Costs of layers, remembered by (layer, bits, resident, place)."""

    def __init__(self, problem: Problem) -> None:
        store = problem.store
        end = store.offset + store.bytes
        self.problem = problem
        self.start = (store.offset // BLOCK).tolist()  # (layer, level, slice): block where a read from here starts
        self.end = (-(-end // BLOCK)).tolist()  # block before which a read up to here ends
        self._known: dict[tuple[int, tuple[int, ...], tuple[int, ...], Place], LayerCost] = {}

    def layer(
        self, layer: int, bits: tuple[int, ...], resident: tuple[int, ...], place: Place | None = None
    ) -> LayerCost:
        """Cost of a layer with these bits, where the problem places it unless `place` says where.

        Runs of slices are found by counting.
        """
        key = (layer, bits, resident, place or self.problem.place(layer))
        if key not in self._known:
            self._known[key] = self._layer(*key)
        return self._known[key]

    def _layer(self, layer: int, bits: tuple[int, ...], resident: tuple[int, ...], place: Place) -> LayerCost:
        problem = self.problem
        io_us, held, streamed = 0.0, 0, 0
        for level, base, split, stop in runs(bits, resident, problem.store.nested):
            first, last = self.start[layer][level], self.end[layer][level]
            if split > base:
                held += (last[split - 1] - first[base]) * BLOCK
            if stop > split:
                size = (last[stop - 1] - first[split]) * BLOCK
                streamed += size
                io_us += problem.io.extent_us(size)
        prompt_us = tuple(self._prompt_us(one, layer, bits) for one in problem.prompt)
        compute_us = problem.block_cost(layer, place).of(bits)
        return LayerCost(io_us, compute_us, held, streamed, bool(bits), place, prompt_us)

    def _prompt_us(self, one: Pass, layer: int, bits: tuple[int, ...]) -> float:
        store = self.problem.store
        done = layer < store.blocks - 1 or one.last
        return one.compute.blocks[store.cut_of[layer]].of(bits) if done else 0.0


def runs(bits: Sequence[int], resident: Sequence[int], nested: bool) -> list[tuple[int, int, int, int]]:
    """(level, base, split, stop): slices base..split-1 of a level are resident, split..stop-1 are streamed."""
    full = sum(b > 8 for b in bits)
    out = []
    for level in range(max((b for b in bits if b <= 8), default=1) - 1):
        b = level + 2
        if nested:
            base, stop = full, sum(x >= b for x in bits)
        else:
            base, stop = sum(x > b for x in bits), sum(x >= b for x in bits)
        out.append((level, base, base + sum(r >= b for r in resident[base:stop]), stop))
    if full:
        out.append((FULL, 0, sum(r > 8 for r in resident[:full]), full))
    return out


def embedding_us(problem: Problem, table_resident: bool) -> float:
    """E: time to read the rows of the input's tokens."""
    return 0.0 if table_resident else problem.io.row_us * problem.length


@dataclass(frozen=True)
class Busy:
    """Microseconds of compute of one run, each with handing over the input where that comes from elsewhere."""

    embed_us: float
    layers_us: tuple[float, ...]
    head_us: float

    @property
    def total_us(self) -> float:
        """Everything, without waiting."""
        return self.embed_us + sum(self.layers_us) + self.head_us


def busy(problem: Problem, costs: Sequence[LayerCost]) -> Busy:
    """What each part computes: the embedding where the first kept layer is, the head on the CPU."""
    kept = [c.place for c in costs if c.kept]
    at = first = kept[0] if kept else "cpu"
    layers = []
    for c in costs:
        hand_over = problem.hand_over_us if c.kept and c.place != at else 0.0
        at = c.place if c.kept else at
        layers.append(c.compute_us + hand_over)
    head = problem.compute.head_us + (problem.hand_over_us if at == "gpu" else 0.0)
    return Busy(problem.cost(first).embed_us, tuple(layers), head)


def latency_us(
    problem: Problem, costs: Sequence[LayerCost], table_resident: bool, read_ahead: int, overlap: bool
) -> float:
    """Finish time: submit + E, then the longest chain of reads and computations, then the head.

    Without waiting this is max over stages k of (reads up to k + compute from k on), which is STI's
    AIB(k) >= 0 for all k written as a finish time.
    """
    start_us = problem.compute.submit_us + embedding_us(problem, table_resident)
    return _finish_us(start_us, busy(problem, costs), costs, read_ahead, overlap)


def first_token_us(
    problem: Problem, costs: Sequence[LayerCost], table_resident: bool, read_ahead: int, overlap: bool
) -> float:
    """The passes of the prompt, one after another; each reads anew what is not resident. 0 without a prompt."""
    total = 0.0
    for number, one in enumerate(problem.prompt):
        rows_us = 0.0 if table_resident else problem.io.row_us * one.tokens
        done = costs if one.last else costs[:-1]
        work = Busy(one.compute.embed_us, tuple(c.prompt_us[number] for c in done), one.compute.head_us)
        total += _finish_us(one.compute.submit_us + rows_us, work, done, read_ahead, overlap)
    return total


def _finish_us(start_us: float, work: Busy, costs: Sequence[LayerCost], read_ahead: int, overlap: bool) -> float:
    """Finish time of a pass whose embedding rows have arrived at `start_us`."""
    io = start_us
    if not overlap:
        layers_us = sum(c.io_us + us for c, us in zip(costs, work.layers_us, strict=True))
        return io + work.embed_us + layers_us + work.head_us
    done = [io + work.embed_us]  # done[k + 1]: layer k is computed
    started = [False]  # started[k + 1]: a layer up to k has streamed
    for k, c in enumerate(costs):
        free = k - read_ahead  # index into `done` of layer k - 1 - read_ahead
        if free > 0 and started[free] and c.streamed_bytes:
            io = max(io, done[free])
        io += c.io_us
        done.append((max(done[-1], io) if c.streamed_bytes else done[-1]) + work.layers_us[k])
        started.append(started[-1] or c.streamed_bytes > 0)
    return done[-1] + work.head_us


def working_bytes(streamed: Sequence[int], read_ahead: int) -> int:
    """Working buffer for `streamed` bytes by layer: slots k mod (read_ahead + 1), neighbours sharing memory."""
    slots = min(read_ahead, len(streamed) - 1) + 1
    if slots == len(streamed):
        return sum(streamed)
    total = 0
    for slot in range(0, slots, 2):
        group = [k for k in range(len(streamed)) if k % slots in (slot, slot + 1)]
        pairs = [streamed[i] + streamed[j] for i in group for j in group if i < j < i + slots]
        total += max([streamed[k] for k in group] + pairs)
    return total


def claim(
    problem: Problem, costs: Sequence[LayerCost], table_resident: bool, read_ahead: int, overlap: bool = True
) -> Claim:
    """Latency and memory of a plan whose layers cost `costs`."""
    streamed = [c.streamed_bytes for c in costs]
    working = working_bytes(streamed, read_ahead if overlap else len(costs))
    preload = sum(c.resident_bytes for c in costs)
    rows = 0 if table_resident else problem.length * problem.row_read_bytes
    peak = problem.fixed_bytes + preload + working + (problem.table_bytes if table_resident else 0)
    peak += problem.gpu_bytes if any(c.kept and c.place == "gpu" for c in costs) else 0
    latency = latency_us(problem, costs, table_resident, read_ahead, overlap)
    first = first_token_us(problem, costs, table_resident, read_ahead, overlap)
    return Claim(latency, peak, preload, working, sum(streamed) + rows, first)


def claim_of(plan: Plan, problem: Problem) -> Claim:
    """The claim of a finished plan."""
    table = CostTable(problem)
    costs = [table.layer(k, layer.bits, layer.resident, layer.place) for k, layer in enumerate(plan.layers)]
    return claim(problem, costs, plan.table_resident, plan.read_ahead, plan.overlap)


def deadline_us(problem: Problem) -> float:
    """Latency budget less its margin; infinite where there is none."""
    return _less_margin(problem, problem.budget.latency_us)


def first_deadline_us(problem: Problem) -> float:
    """Budget of the first token less the margin; infinite where there is none."""
    return _less_margin(problem, problem.budget.first_token_us)


def _less_margin(problem: Problem, us: int | None) -> float:
    return math.inf if us is None else us * (1 - problem.margin)


def within(problem: Problem, c: Claim) -> bool:
    """Whether a claim meets the budget."""
    budget = problem.budget
    return (
        c.latency_us <= deadline_us(problem)
        and c.first_token_us <= first_deadline_us(problem)
        and (budget.memory_bytes is None or c.peak_bytes <= budget.memory_bytes)
        and (budget.preload_bytes is None or c.preload_bytes <= budget.preload_bytes)
    )


def objective(layers: Sequence[LayerPlan], problem: Problem) -> float:
    """What a planner maximises: the gains of all shards, and their presence in elastic models."""
    index = {b: j for j, b in enumerate(problem.bits)}
    total = 0.0
    for k, layer in enumerate(layers):
        kept = np.arange(len(layer.bits))
        total += float(problem.gain[k, kept, [index[b] for b in layer.bits]].sum()) if layer.bits else 0.0
        if problem.elastic:
            total += float(problem.presence[k, kept].sum())
    return total
