"""The rows of the integer program that depend on read-ahead: memory and deadline (letters as in `ilp`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stic.compiler.plan import ComputeCost, Pass, Problem
from stic.compiler.planner.closed_form import deadline_us, embedding_us, first_deadline_us
from stic.compiler.planner.ilp import Aim, Program, compute_ns, nanoseconds
from stic.runtime.format import BLOCK


def finished(base: Program, read_ahead: int, aim: Aim, buffered: int | None = None) -> Program:
    """A copy of `base` with the rows that depend on read-ahead, to maximise quality or minimise another aim.

    `buffered` is the read-ahead that the working buffer is large enough for, where it is not the same.
    """
    p = replace(base, read_ahead=read_ahead, model=base.model.clone(), started=[])
    _memory_fits(p, aim, read_ahead if buffered is None else buffered)
    _deadlines_are_met(p, aim)
    if aim == "quality":
        p.model.maximize(p.quality)
    else:
        p.model.minimize({"memory": p.memory, "latency": p.finish, "first token": p.first}[aim])
    return p


def _memory_fits(p: Program, aim: Aim, read_ahead: int) -> None:
    """Fixed parts, resident extents, table and working buffer together fit the memory budget.

    Slot k mod (R + 1) holds layer k; two neighbouring slots share a stretch that is large enough for any two
    of their layers that are held together.
    """
    budget, depth = p.problem.budget.memory_bytes, p.problem.store.blocks
    if budget is None and aim != "memory":
        return
    slots = min(read_ahead, depth - 1) + 1
    working: Any = 0
    if slots == depth:
        working = sum(p.streamed)
    else:
        most = [sum(r.last[-1] - r.first[0] for r in p.runs[k]) for k in range(depth)]
        for slot in range(0, slots, 2):
            group = [k for k in range(depth) if k % slots in (slot, slot + 1)]
            size = p.model.new_int_var(0, 2 * max(most), f"stretch{slot}")
            for i in group:
                partners = [j for j in group if i < j < i + slots]
                for j in partners:
                    p.model.add(size >= p.streamed[i] + p.streamed[j])
                if not partners:
                    p.model.add(size >= p.streamed[i])
            working = working + size
    p.memory = sum(p.held) + working + (p.problem.table_bytes // BLOCK) * p.rho
    p.memory = p.memory + (p.problem.gpu_bytes // BLOCK) * p.gpu
    if budget is not None:
        p.model.add(p.memory <= (budget - p.problem.fixed_bytes) // BLOCK)


def _deadlines_are_met(p: Program, aim: Aim) -> None:
    """A run, and the passes of a prompt, end in time."""
    deadline, first = deadline_us(p.problem), first_deadline_us(p.problem)
    timed = aim == "latency" or math.isfinite(deadline)
    prompted = aim == "first token" or math.isfinite(first)
    if (timed or prompted) and p.read_ahead < p.problem.store.blocks - 1:
        for k in range(p.problem.store.blocks):
            p.started.append(p.bool(f"started{k}"))
            p.at_least(p.started[k], p.streams[k])
            if k:
                p.at_least(p.started[k], p.started[k - 1])
    if timed:
        problem = p.problem
        most_head = nanoseconds(problem.compute.head_us) + nanoseconds(problem.hand_over_us)
        submit_us, rows_us = problem.compute.submit_us, embedding_us(problem, False)
        lane = _Lane("", p.compute, submit_us, rows_us, p.embed, p.head, aim == "latency")
        most_embed = max(nanoseconds(cost.embed_us) for cost in _costs(problem))
        p.finish = _chain(p, lane, most_embed, most_head, _most_compute_ns(problem, _costs(problem)), deadline)
    if prompted:
        p.first = _prompt(p, first)
        if math.isfinite(first):
            p.model.add(p.first <= math.floor(2000 * first + 1e-6))


def _prompt(p: Program, deadline: float) -> Any:
    """Twice the time that all passes of the prompt take, or a little more.

    Chunks before the last one take the same reads, and compute that grows evenly with their position. The longest chain
    is convex in compute, so all of them together take at most as long as if half were the first and half the last of
    them: two chains stand for any number.
    """
    *before, last = p.problem.prompt
    total = 2 * _pass(p, last, "last", deadline)
    if before:
        early = _pass(p, before[0], "early", deadline)
        late = early if len(before) == 1 else _pass(p, before[-1], "late", deadline)
        total = total + len(before) * (early + late)
    return total


def _pass(p: Program, one: Pass, name: str, deadline: float) -> Any:
    """When a pass of a prompt ends, all of it on the CPU."""
    problem, cost = p.problem, one.compute
    blocks = problem.store.blocks - (not one.last)
    compute = [compute_ns(p, k, cost.blocks[problem.store.cut_of[k]]) for k in range(blocks)]
    embed, head = nanoseconds(cost.embed_us), nanoseconds(cost.head_us)
    lane = _Lane(name, compute, cost.submit_us, problem.io.row_us * one.tokens, embed, head)
    return _chain(p, lane, embed, head, _most_compute_ns(problem, [cost]), deadline)


@dataclass(frozen=True)
class _Lane:
    """A pass through blocks, to be put into rows; terms are in nanoseconds."""

    name: str
    compute: Sequence[Any]  # of each block
    submit_us: float
    rows_us: float  # reading embedding rows
    embed: Any
    head: Any
    minimized: bool = False


def _chain(p: Program, lane: _Lane, most_embed: int, most_head: int, most_compute: int, deadline: float) -> Any:
    """AIB(k) >= 0 for every stage k, written as: the longest chain of reads and compute ends in time. Returns its end.

    One clock for reads and one for compute follow the chains, in rows of one layer each. With read-ahead R < layers,
    reads of layer k also wait until layer k - 1 - R is computed, once any layer up to there has streamed.
    """
    rows, submit = nanoseconds(lane.rows_us), nanoseconds(lane.submit_us)
    start = submit + rows - rows * p.rho
    serial = submit + rows + most_head + most_embed
    serial += sum(most_compute + _most_read_ns(p, k) for k in range(len(lane.compute)))
    # Twice the serial time bounds every clock, however large the budget.
    limit = 2 * serial if math.isinf(deadline) else min(2 * serial, math.floor(deadline * 1000 + 1e-6))
    if limit < 0:
        p.model.add_bool_or([])
        return 0
    finish = p.model.new_int_var(0, limit, "finish") if lane.minimized else limit
    clock: list[tuple[Any, Any]] = []  # (reads of layer k done, layer k computed)
    for k, compute in enumerate(lane.compute):
        read, done = (p.model.new_int_var(0, limit, f"{n}{k}{lane.name}") for n in ("read", "done"))
        p.model.add(read >= (clock[k - 1][0] if k else start) + p.io[k])
        p.model.add(done >= (clock[k - 1][1] if k else start + lane.embed) + compute)
        # A layer that streams nothing waits for nothing; then `read` may be late, but nobody looks at it.
        p.model.add(done >= read + compute)
        wait = k - 1 - p.read_ahead
        if p.started and wait >= 0:
            # While nothing has streamed, no layer up to `wait` was late: it ends within embed + its own compute.
            prompt = min(limit, most_embed + (wait + 1) * most_compute)
            p.model.add(read >= clock[wait][1] + p.io[k] - prompt * (1 - p.started[wait]))
        clock.append((read, done))
    end = clock[-1][1] + lane.head
    p.model.add(end <= finish)
    return finish if lane.minimized else end


def _costs(problem: Problem) -> list[ComputeCost]:
    """What computing costs where layers are placed."""
    return [problem.cost(place) for place in dict.fromkeys(problem.places or ("cpu",))]


def _most_compute_ns(problem: Problem, costs: Sequence[ComputeCost]) -> int:
    """No layer computes longer, its input handed over."""

    def most(cost: ComputeCost) -> int:
        return max(
            nanoseconds(block.block_us) + cut.slices * max(nanoseconds(block.slice_us[b]) for b in problem.bits)
            for block, cut in zip(cost.blocks, problem.store.cuts, strict=True)
        )

    return max(map(most, costs)) + nanoseconds(problem.hand_over_us)


def _most_read_ns(p: Program, k: int) -> int:
    """No plan spends more on reading layer k."""
    io, total = p.problem.io, 0
    for r in p.runs[k]:
        size = (r.last[-1] - r.first[0]) * BLOCK
        total += -(-size // io.request_bytes) * nanoseconds(io.request_us)
        total += size // BLOCK * nanoseconds(BLOCK * 1e6 / io.bytes_per_s)
    return total
