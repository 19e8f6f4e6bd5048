"""The integer program, in STI's letters. docs/planner.md derives every row.

    l, s, v, j   layer, slice, level of the store, index into the fidelities on offer
    y[l][s][j]   shard (l, s) has at least fidelity j; j = 0: it is kept at all
    g[l][v][s]   slice s lies before the streamed part of level v: it is resident, or does not have the level
                 because it is at full precision
    e[l][v]      level v of layer l streams anything
    rho          the embedding table is resident
    R            read-ahead in layers; fixed in one program, `search` tries several

Sizes are blocks of 4096 bytes and times are whole nanoseconds, both exact or rounded up here and nowhere
else, so that a plan that meets the rows meets the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from stic.compiler.plan import Problem
from stic.compiler.planner.closed_form import deadline_us, embedding_us
from stic.runtime.format import BLOCK, FULL, LEVEL_BITS, levels_of

Aim = Literal["quality", "memory", "latency"]
Term = Any  # a literal or 0/1: cp_model's expressions take both
QUALITY_UNITS = 1e9  # the sum of all gains, in the integer objective


@dataclass
class Run:
    """One (layer, level): slices in base (prefix) lie before it, those in stop have it, split parts the two kinds."""

    layer: int
    level: int
    first: list[int]  # block where a read from slice s on starts; one more entry: the end
    last: list[int]  # block before which a read up to and without slice s ends
    base: list[Term]
    split: list[Term]
    stop: list[Term]
    e: Any = 0
    requests: Any = 0
    saved: list[tuple[Any, str]] = field(default_factory=list)  # empty-extent variables and which extent they are of


@dataclass
class Program:
    """Variables and expressions of one integer program."""

    problem: Problem
    read_ahead: int
    model: cp_model.CpModel
    y: list[list[list[Term]]] = field(default_factory=list)
    runs: list[list[Run]] = field(default_factory=list)
    rho: Any = 0
    io: list[Any] = field(default_factory=list)  # ns by layer
    compute: list[Any] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)  # blocks by layer
    streamed: list[Any] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)  # 1 if the layer streams anything
    finish: Any = None  # ns
    memory: Any = None  # blocks
    clock: list[tuple[Any, Any]] = field(default_factory=list)  # (reads of layer k done, layer k computed)
    started: list[Any] = field(default_factory=list)
    quality: Any = None
    quality_scale: float = 1.0

    def bool(self, name: str) -> Any:
        return self.model.new_bool_var(name)

    def at_least(self, a: Any, b: Any) -> None:
        """a >= b, skipped where it holds by itself."""
        if (isinstance(b, int) and b == 0) or (isinstance(a, int) and a == 1):
            return
        self.model.add(a >= b)


def _ns(us: float) -> int:
    return math.ceil(us * 1000 - 1e-9)


def _sum(terms: Sequence[Term], weights: Sequence[int]) -> Any:
    return cp_model.LinearExpr.weighted_sum(list(terms), [int(w) for w in weights])


def build(problem: Problem, floor: float | None = None) -> Program:
    """What holds for every read-ahead: shards, residence, costs, and a quality of at least `floor`."""
    p = Program(problem, problem.store.layers, cp_model.CpModel())
    p.rho = p.bool("rho")
    _fidelities(p)
    _something_is_kept(p)
    for k in range(problem.store.layers):
        p.runs.append([_run(p, k, level) for level in _levels(problem)])
        _resident_planes_are_prefixes(p, k)
    _layers_cost(p)
    _preload_fits(p)
    _quality(p, floor)
    return p


def finished(base: Program, read_ahead: int, aim: Aim) -> Program:
    """A copy of `base` with the rows that depend on read-ahead, to maximise quality or minimise another aim."""
    p = replace(base, read_ahead=read_ahead, model=base.model.clone(), clock=[], started=[])
    _memory_fits(p, aim)
    _deadline_is_met(p, aim)
    if aim == "quality":
        p.model.maximize(p.quality)
    else:
        p.model.minimize(p.memory if aim == "memory" else p.finish)
    return p


def _fidelities(p: Program) -> None:
    """A shard with fidelity j has fidelity j - 1, and so has the slice before it; unless elastic, all are kept."""
    depth, width = p.problem.store.layers, p.problem.store.slices
    count = len(p.problem.bits)
    for k in range(depth):
        p.y.append([])
        for s in range(width):
            row: list[Term] = [p.bool(f"y{k}.{s}.{j}") if j or p.problem.elastic else 1 for j in range(count)]
            p.y[k].append(row)
            for j in range(1, count):
                p.at_least(row[j - 1], row[j])
            for j in range(count if s else 0):
                p.at_least(p.y[k][s - 1][j], row[j])


def _something_is_kept(p: Program) -> None:
    """A model has at least one layer."""
    if p.problem.elastic:
        p.model.add_bool_or([layer[0][0] for layer in p.y])


def _levels(problem: Problem) -> list[int]:
    """Levels of the store that some fidelity reads."""
    return sorted({v for b in problem.bits for v in levels_of(b, problem.store.nested)})


def _run(p: Program, k: int, level: int) -> Run:
    """Variables of one (layer, level)."""
    problem, y, bits = p.problem, p.y[k], p.problem.bits
    width = problem.store.slices
    full = len(bits) - 1 if bits[-1] > 8 else None
    if level == FULL:
        assert full is not None
        above, at = None, full
    else:
        at = next(j for j, b in enumerate(bits) if b >= LEVEL_BITS[level])
        above = full if problem.store.nested else (at + 1 if at + 1 < len(bits) else None)
    base: list[Term] = [0 if above is None else y[s][above] for s in range(width)]
    stop = [y[s][at] for s in range(width)]
    offset, size = problem.store.offset[k, level], problem.store.bytes[k, level]
    first = [int(o) // BLOCK for o in (*offset, offset[-1] + size[-1])]
    last = [first[0], *(-(-int(o) // BLOCK) for o in offset + size)]
    split: list[Term] = list(base)
    if problem.budget.preload_bytes is None or problem.budget.preload_bytes >= BLOCK:
        split = [p.bool(f"g{k}.{level}.{s}") for s in range(width)]
        for s in range(width):
            p.at_least(split[s], base[s])
            p.at_least(stop[s], split[s])
            if s:
                p.at_least(split[s - 1], split[s])
    return Run(k, level, first, last, base, split, stop)


def _resident_planes_are_prefixes(p: Program, k: int) -> None:
    """Nested: a resident plane needs the planes above it. Copies: a run is held only behind a run held wholly."""
    planes = [r for r in p.runs[k] if r.level != FULL]
    for a, b in pairwise(planes):
        if a.split is a.base or all(x is y for x, y in zip(a.split, a.base, strict=True)):
            continue
        if p.problem.store.nested:
            for s in range(len(a.split)):
                p.at_least(a.split[s], b.split[s])
        else:
            behind = p.bool(f"h{k}.{a.level}")
            for s in range(len(a.split)):
                p.model.add(a.split[s] - a.base[s] <= behind)
                for higher in planes[planes.index(b) :]:
                    p.model.add(higher.stop[s] - higher.split[s] <= 1 - behind)


def _blocks(p: Program, r: Run, lower: list[Term], upper: list[Term], used: Any, name: str) -> Any:
    """Blocks of the aligned read of slices that are in `upper` and not in `lower`; none if that is empty.

    Both are prefixes, so the read ends where `upper` does and starts where `lower` does. Where both are the
    same number c of slices, this difference is 1 if a block straddles the end of slice c; `u` takes it off.
    """
    width = len(upper)
    ends = [r.last[s + 1] - r.last[s] for s in range(width)]
    starts = [r.first[s + 1] - r.first[s] for s in range(width)]
    blocks = _sum(upper, ends) - _sum(lower, starts)
    if all(isinstance(x, int) for x in lower):
        return blocks  # starts at the beginning of the run, which is aligned
    straddled = [r.last[c] - r.first[c] for c in range(width + 1)]
    u = p.bool(f"u{r.layer}.{r.level}{name}")
    p.model.add(u <= 1 - used)
    steps = [straddled[s + 1] - straddled[s] for s in range(width)]
    p.model.add(u <= straddled[0] + _sum(upper, steps))
    r.saved.append((u, name))
    return blocks - u


def _layers_cost(p: Program) -> None:
    """Bytes, reads and compute of every layer."""
    io, cost, bits = p.problem.io, p.problem.compute, p.problem.bits
    block_ns = _ns(BLOCK * 1e6 / io.bytes_per_s)
    request_ns = _ns(io.request_us)
    steps = [_ns(cost.slice_us[b]) - _ns(cost.slice_us[a]) for a, b in pairwise(bits)]
    for k in range(p.problem.store.layers):
        held, streamed, requests = [], [], []
        on = p.bool(f"streams{k}")
        for r in p.runs[k]:
            width = len(r.stop)
            e = p.bool(f"e{k}.{r.level}")
            for s in range(width):
                p.at_least(e, r.stop[s] - r.split[s])
            p.at_least(on, e)
            r.e = e
            blocks = _blocks(p, r, r.split, r.stop, e, "s")
            streamed.append(blocks)
            most = -(-(r.last[-1] - r.first[0]) * BLOCK // io.request_bytes)
            if most > 1:
                r.requests = p.model.new_int_var(0, most, f"q{k}.{r.level}")
                p.model.add(r.requests >= e)
                p.model.add(r.requests * io.request_bytes >= blocks * BLOCK)
                # ceil(a - b) >= ceil(a) - ceil(b): implied for integers, and what makes the relaxation tight.
                upto = [-(-(b - r.first[0]) * BLOCK // io.request_bytes) for b in r.last]
                behind = [-(-(b - r.first[0]) * BLOCK // io.request_bytes) for b in r.first]
                p.model.add(
                    r.requests
                    >= _sum(r.stop, [b - a for a, b in pairwise(upto)])
                    - _sum(r.split, [b - a for a, b in pairwise(behind)])
                )
            else:
                r.requests = e
            requests.append(r.requests)
            if r.split is not r.base and any(a is not b for a, b in zip(r.split, r.base, strict=True)):
                holds: Any = 0
                if not all(isinstance(x, int) for x in r.base):
                    holds = p.bool(f"d{k}.{r.level}")
                    for s in range(width):
                        p.model.add(holds >= r.split[s] - r.base[s])
                    r.saved.append((holds, "d"))
                held.append(_blocks(p, r, r.base, r.split, holds, "r"))
        p.streams.append(on)
        p.held.append(sum(held))
        p.streamed.append(sum(streamed))
        p.io.append(block_ns * sum(streamed) + request_ns * sum(requests))
        compute = _ns(cost.layer_us) * p.y[k][0][0]
        for row in p.y[k]:
            compute = compute + _sum(row, [_ns(cost.slice_us[bits[0]]), *steps])
        p.compute.append(compute)


def _preload_fits(p: Program) -> None:
    """What is resident fits the preload buffer."""
    if p.problem.budget.preload_bytes is not None:
        p.model.add(sum(p.held) <= p.problem.budget.preload_bytes // BLOCK)


def _memory_fits(p: Program, aim: Aim) -> None:
    """Fixed parts, resident extents, table and working buffer together fit the memory budget.

    Slot k mod (R + 1) holds layer k; two neighbouring slots share a stretch that is large enough for any two
    of their layers that are held together.
    """
    budget, depth = p.problem.budget.memory_bytes, p.problem.store.layers
    if budget is None and aim != "memory":
        return
    slots = min(p.read_ahead, depth - 1) + 1
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
    if budget is not None:
        p.model.add(p.memory <= (budget - p.problem.fixed_bytes) // BLOCK)


def _deadline_is_met(p: Program, aim: Aim) -> None:
    """AIB(k) >= 0 for every stage k, written as: reads up to k and compute from k on end in time.

    With read-ahead R < layers, reads of layer k also wait until layer k - 1 - R is computed, once any layer up
    to there has streamed; the longest chain is then followed by one clock for reads and one for compute.
    """
    deadline, cost, depth = deadline_us(p.problem), p.problem.compute, p.problem.store.layers
    if math.isinf(deadline) and aim != "latency":
        return
    rows = _ns(embedding_us(p.problem, False))
    start = _ns(cost.submit_us) + rows - rows * p.rho
    head, embed = _ns(cost.head_us), _ns(cost.embed_us)
    serial = _ns(cost.submit_us) + rows + head + embed + sum(_most_ns(p, k) for k in range(depth))
    # Twice the serial time bounds every clock, however large the budget.
    limit = 2 * serial if math.isinf(deadline) else min(2 * serial, math.floor(deadline * 1000 + 1e-6))
    if limit < 0:
        p.model.add_bool_or([])
        return
    finish: Any = limit
    if aim == "latency":
        finish = p.finish = p.model.new_int_var(0, limit, "finish")
    p.model.add(start + embed + sum(p.compute) + head <= finish)
    for k in range(depth):
        p.model.add(start + sum(p.io[: k + 1]) + sum(p.compute[k:]) + head <= finish)
    if p.read_ahead >= depth - 1:
        return
    for k in range(depth):
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
        if wait >= 0:
            # While nothing has streamed, no layer up to `wait` was late: it ends within embed + its own compute.
            prompt = min(limit, embed + (wait + 1) * _most_compute_ns(p.problem))
            p.model.add(read >= p.clock[wait][1] + p.io[k] - prompt * (1 - p.started[wait]))
        p.clock.append((read, done))
    p.model.add(p.clock[-1][1] + head <= finish)


def _most_compute_ns(problem: Problem) -> int:
    """No layer computes longer."""
    cost = problem.compute
    return _ns(cost.layer_us) + problem.store.slices * max(_ns(cost.slice_us[b]) for b in problem.bits)


def _most_ns(p: Program, k: int) -> int:
    """No plan spends more on layer k, reading and computing."""
    io = p.problem.io
    total = _most_compute_ns(p.problem)
    for r in p.runs[k]:
        size = (r.last[-1] - r.first[0]) * BLOCK
        total += -(-size // io.request_bytes) * _ns(io.request_us) + size // BLOCK * _ns(BLOCK * 1e6 / io.bytes_per_s)
    return total


def _weights(problem: Problem) -> NDArray[np.float64]:
    """What each y adds to the objective, (layers, slices, fidelities)."""
    steps = np.diff(problem.gain, axis=2, prepend=0.0)
    steps[:, :, 0] = problem.presence if problem.elastic else 0.0
    return steps


def _quality(p: Program, floor: float | None) -> None:
    """Quality is the sum of the gains of all shards, and of their presence in elastic models."""
    weights = _weights(p.problem)
    p.quality_scale = QUALITY_UNITS / max(float(np.abs(weights).sum()), 1e-300)
    scaled = np.rint(weights * p.quality_scale).astype(np.int64)
    free = [(x, w) for xs, ws in zip(p.y, scaled, strict=True) for x, w in _pairs(xs, ws) if not isinstance(x, int)]
    p.quality = _sum([x for x, _ in free], [w for _, w in free])
    if floor is not None:
        p.model.add(p.quality >= math.floor(floor * p.quality_scale) - weights.size)


def _pairs(rows: list[list[Term]], weights: NDArray[np.int64]) -> list[tuple[Term, int]]:
    return [(x, int(w)) for xs, ws in zip(rows, weights, strict=True) for x, w in zip(xs, ws, strict=True)]


def bound_of(p: Program, units: float) -> float:
    """A bound on the integer objective as a bound on quality: add what rounding the gains can have taken."""
    return (units + 0.5 * _weights(p.problem).size) / p.quality_scale
