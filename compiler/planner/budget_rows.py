"""The rows of the integer program that depend on read-ahead: memory and deadline (letters as in `ilp`)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from stic.compiler.plan import ComputeCost, Problem
from stic.compiler.planner.closed_form import deadline_us, embedding_us
from stic.compiler.planner.ilp import Aim, Program, nanoseconds
from stic.runtime.format import BLOCK


def finished(base: Program, read_ahead: int, aim: Aim, buffered: int | None = None) -> Program:
    """A copy of `base` with the rows that depend on read-ahead, to maximise quality or minimise another aim.

    `buffered` is the read-ahead that the working buffer is large enough for, where it is not the same.
    """
    p = replace(base, read_ahead=read_ahead, model=base.model.clone(), clock=[], started=[])
    _memory_fits(p, aim, read_ahead if buffered is None else buffered)
    _deadline_is_met(p, aim)
    if aim == "quality":
        p.model.maximize(p.quality)
    else:
        p.model.minimize(p.memory if aim == "memory" else p.finish)
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


def _deadline_is_met(p: Program, aim: Aim) -> None:
    """AIB(k) >= 0 for every stage k, written as: the longest chain of reads and compute ends in time.

    One clock for reads and one for compute follow the chains, in rows of one layer each. With read-ahead R < layers,
    reads of layer k also wait until layer k - 1 - R is computed, once any layer up to there has streamed.
    """
    deadline, depth = deadline_us(p.problem), p.problem.store.blocks
    if math.isinf(deadline) and aim != "latency":
        return
    rows = nanoseconds(embedding_us(p.problem, False))
    submit = nanoseconds(p.problem.compute.submit_us)
    start, head, embed = submit + rows - rows * p.rho, p.head, p.embed
    most_embed = max(nanoseconds(cost.embed_us) for cost in _costs(p.problem))
    most_head = nanoseconds(p.problem.compute.head_us) + nanoseconds(p.problem.hand_over_us)
    serial = submit + rows + most_head + most_embed + sum(_most_ns(p, k) for k in range(depth))
    # Twice the serial time bounds every clock, however large the budget.
    limit = 2 * serial if math.isinf(deadline) else min(2 * serial, math.floor(deadline * 1000 + 1e-6))
    if limit < 0:
        p.model.add_bool_or([])
        return
    finish: Any = limit
    if aim == "latency":
        finish = p.finish = p.model.new_int_var(0, limit, "finish")
    waits = p.read_ahead < depth - 1
    for k in range(depth if waits else 0):
        p.started.append(p.bool(f"started{k}"))
        p.at_least(p.started[k], p.streams[k])
        if k:
            p.at_least(p.started[k], p.started[k - 1])
    for k in range(depth):
        read, done = (p.model.new_int_var(0, limit, f"{n}{k}") for n in ("read", "done"))
        p.model.add(read >= (p.clock[k - 1][0] if k else start) + p.io[k])
        p.model.add(done >= (p.clock[k - 1][1] if k else start + embed) + p.compute[k])
        # A layer that streams nothing waits for nothing; then `read` may be late, but nobody looks at it.
        p.model.add(done >= read + p.compute[k])
        wait = k - 1 - p.read_ahead
        if waits and wait >= 0:
            # While nothing has streamed, no layer up to `wait` was late: it ends within embed + its own compute.
            prompt = min(limit, most_embed + (wait + 1) * _most_compute_ns(p.problem))
            p.model.add(read >= p.clock[wait][1] + p.io[k] - prompt * (1 - p.started[wait]))
        p.clock.append((read, done))
    p.model.add(p.clock[-1][1] + head <= finish)


def _costs(problem: Problem) -> list[ComputeCost]:
    """What computing costs where layers are placed."""
    return [problem.cost(place) for place in dict.fromkeys(problem.places or ("cpu",))]


def _most_compute_ns(problem: Problem) -> int:
    """No layer computes longer, its input handed over."""

    def most(cost: ComputeCost) -> int:
        return max(
            nanoseconds(block.block_us) + cut.slices * max(nanoseconds(block.slice_us[b]) for b in problem.bits)
            for block, cut in zip(cost.blocks, problem.store.cuts, strict=True)
        )

    return max(map(most, _costs(problem))) + nanoseconds(problem.hand_over_us)


def _most_ns(p: Program, k: int) -> int:
    """No plan spends more on layer k, reading and computing."""
    io = p.problem.io
    total = _most_compute_ns(p.problem)
    for r in p.runs[k]:
        size = (r.last[-1] - r.first[0]) * BLOCK
        total += -(-size // io.request_bytes) * nanoseconds(io.request_us)
        total += size // BLOCK * nanoseconds(BLOCK * 1e6 / io.bytes_per_s)
    return total
