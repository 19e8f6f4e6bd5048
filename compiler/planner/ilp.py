"""The integer program, in STI's letters. docs/planner.md derives every row.

    l, s, v, j   block, slice, level of the store, index into the fidelities on offer
    y[l][s][j]   shard (l, s) has at least fidelity j; j = 0: it is kept at all
    g[l][v][s]   slice s lies before the streamed part of level v: it is resident, or does not have the level
                 because it is at full precision
    e[l][v]      level v of layer l streams anything
    rho          the embedding table is resident
    w[l]         after layer l activations are on the GPU; w[-1]: the embedding runs there
    R            read-ahead in blocks; fixed in one program, `search` tries several

Sizes are blocks of 4096 bytes and times are whole nanoseconds, both exact or rounded up here and nowhere
else, so that a plan that meets the rows meets the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from stic.compiler.plan import BlockCost, Problem
from stic.runtime.format import BLOCK, FULL, LEVEL_BITS
from stic.runtime.gpu_format import PLACES
from stic.runtime.layout import levels_of

Aim = Literal["quality", "memory", "latency", "first token"]
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
    embed: Any = 0  # ns
    head: Any = 0
    gpu: Any = 0  # 1 if any layer is on the GPU
    held: list[Any] = field(default_factory=list)  # blocks by layer
    streamed: list[Any] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)  # 1 if the layer streams anything
    finish: Any = None  # ns
    first: Any = None  # ns to the first token, times two
    memory: Any = None  # blocks
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


def nanoseconds(us: float) -> int:
    """Whole nanoseconds, rounded up."""
    return math.ceil(us * 1000 - 1e-9)


def _sum(terms: Sequence[Term], weights: Sequence[int]) -> Any:
    return cp_model.LinearExpr.weighted_sum(list(terms), [int(w) for w in weights])


def build(problem: Problem, floor: float | None = None) -> Program:
    """What holds for every read-ahead: shards, residence, costs, and a quality of at least `floor`."""
    p = Program(problem, problem.store.blocks, cp_model.CpModel())
    p.rho = p.bool("rho")
    _fidelities(p)
    _something_is_kept(p)
    for k in range(problem.store.blocks):
        p.runs.append([_run(p, k, level) for level in _levels(problem)])
        _resident_planes_are_prefixes(p, k)
    _layers_cost(p)
    _activations_move(p)
    _preload_fits(p)
    _quality(p, floor)
    return p


def _fidelities(p: Program) -> None:
    """A shard with fidelity j has fidelity j - 1, and so has the slice before it; unless elastic, all are kept.

    Slices of a whole block share their variables.

    Along a path of submodels a shard is kept only with those before it.
    """
    count = len(p.problem.bits)
    for k, width in enumerate(p.problem.store.slices):
        p.y.append([])
        for s in range(width):
            row: list[Term] = [p.bool(f"y{k}.{s}.{j}") if j or p.problem.elastic else 1 for j in range(count)]
            if s and k in p.problem.whole:
                p.y[k].append(p.y[k][0])
                continue
            if k in p.problem.held:
                row = [int(bits <= p.problem.held[k]) for bits in p.problem.bits]
            p.y[k].append(row)
            for j in range(1, count):
                p.at_least(row[j - 1], row[j])
            for j in range(count if s else 0):
                p.at_least(p.y[k][s - 1][j], row[j])
    joined = [p.y[k][s][0] for k, s in p.problem.path.order] if p.problem.path is not None else []
    for before, after in pairwise(joined):
        p.at_least(before, after)


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
    width = problem.store.slices[k]
    full = len(bits) - 1 if bits[-1] > 8 else None
    if level == FULL:
        assert full is not None
        above, at = None, full
    else:
        at = next(j for j, b in enumerate(bits) if b >= LEVEL_BITS[level])
        above = full if problem.store.nested else (at + 1 if at + 1 < len(bits) else None)
    base: list[Term] = [0 if above is None else y[s][above] for s in range(width)]
    stop = [y[s][at] for s in range(width)]
    offset, size = problem.store.offset[k, level, :width], problem.store.bytes[k, level, :width]
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
    io = p.problem.io
    block_ns = nanoseconds(BLOCK * 1e6 / io.bytes_per_s)
    request_ns = nanoseconds(io.request_us)
    for k in range(p.problem.store.blocks):
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
        p.compute.append(compute_ns(p, k, p.problem.block_cost(k)))


def compute_ns(p: Program, k: int, cost: BlockCost) -> Any:
    """Compute of a block that costs `cost`."""
    slice_ns = [nanoseconds(cost.slice_us[b]) for b in p.problem.bits]
    compute = nanoseconds(cost.block_us) * p.y[k][0][0]
    for row in p.y[k]:
        compute = compute + _sum(row, [slice_ns[0], *(b - a for a, b in pairwise(slice_ns))])
    return compute


def _activations_move(p: Program) -> None:
    """Embedding and head, and a hand-over before each kept layer whose input is on the other processor.

    A layer that is left out leaves w as it was; the embedding is where the first kept layer is. The head is on the
    CPU.
    """
    problem, depth = p.problem, p.problem.store.blocks
    on = [int(problem.place(k) == "gpu") for k in range(depth)]
    hand_over, head = nanoseconds(problem.hand_over_us), nanoseconds(problem.compute.head_us)
    embed = [nanoseconds(problem.cost(place).embed_us) for place in PLACES[: 1 + any(on)]]
    kept = [p.y[k][0][0] for k in range(depth)]
    if not problem.elastic or len(set(on)) == 1:
        for k in range(1, depth):
            p.compute[k] += hand_over * abs(on[k] - on[k - 1])
        p.embed, p.head, p.gpu = embed[on[0]], head + hand_over * on[-1], int(any(on))
        return
    w = [p.bool(f"w{k}") for k in range(-1, depth)]  # w[k + 1]: after layer k
    p.gpu = p.bool("gpu")
    for k in range(depth):
        before, after = w[k], w[k + 1]
        moved = p.bool(f"moved{k}")
        p.model.add(moved >= after - before)
        p.model.add(moved >= before - after)
        p.model.add(moved <= kept[k])
        p.model.add(after >= kept[k]) if on[k] else p.model.add(after <= 1 - kept[k])
        # Nothing is kept before the first kept layer.
        p.model.add(w[0] >= kept[k] - sum(kept[:k])) if on[k] else p.model.add(w[0] <= 1 - kept[k] + sum(kept[:k]))
        p.compute[k] += hand_over * moved
        if on[k]:
            p.model.add(p.gpu >= kept[k])
    p.embed, p.head = embed[0] + (embed[1] - embed[0]) * w[0], head + hand_over * w[-1]


def _preload_fits(p: Program) -> None:
    """What is resident fits the preload buffer, and a table that may not stay does not."""
    if not p.problem.table_may_stay:
        p.model.add(p.rho == 0)
    if p.problem.budget.preload_bytes is not None:
        p.model.add(sum(p.held) <= p.problem.budget.preload_bytes // BLOCK)


def _weights(problem: Problem) -> NDArray[np.float64]:
    """What each y adds to the objective, (blocks, most slices, fidelities); nothing behind a block's slices."""
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
    return [(x, int(w)) for xs, ws in zip(rows, weights, strict=False) for x, w in zip(xs, ws, strict=True)]


def bound_of(p: Program, units: float) -> float:
    """A bound on the integer objective as a bound on quality: add what rounding the gains can have taken."""
    return (units + 0.5 * _weights(p.problem).size) / p.quality_scale
