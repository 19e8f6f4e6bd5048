"""Replay a plan, event by event: reads, compute and stalls, and the bytes held at every moment.

Shares no code with a planner. A plan's claim (latency, memory) must equal the replay; `check` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stic.compiler.memory.placement import Extent, place_extents
from stic.compiler.plan import Claim, LayerPlan, Pass, Plan, Problem
from stic.runtime.gpu_format import Place

EMBEDDING, HEAD = -1, -2  # in Event.layer


@dataclass(frozen=True)
class Event:
    """Something that keeps the IO lane or the compute threads busy, or keeps compute waiting."""

    kind: Literal["io", "compute", "stall"]
    layer: int  # EMBEDDING, HEAD or a block
    level: int  # of an io event; else -1
    start_us: float
    end_us: float
    bytes: int  # of an io event; else 0
    place: Place = "cpu"  # what computes, or waits


@dataclass(frozen=True)
class Timeline:
    """What happens when, from submitting the tokens (0) to the output (latency_us)."""

    events: tuple[Event, ...]  # by start
    latency_us: float
    stall_us: float  # compute waiting for bytes, start slack included
    io_bytes: int
    preload_bytes: int
    working_bytes: int
    peak_bytes: int  # everything the engine holds: the arena is allocated once, at this size
    held: tuple[tuple[float, int], ...]  # (us, streamed bytes held from then on)
    first_token_us: float = 0.0  # of a decoder: all passes of the planned prompt


class ReplayError(AssertionError):
    """A plan's claim and its replay differ, or the replay breaks the budget: a defect of the planner."""


class _Clock:
    """One in-order lane of work."""

    def __init__(self, kind: Literal["io", "compute"], now: float, events: list[Event]) -> None:
        self.kind, self.now, self.events = kind, now, events

    def run(self, layer: int, level: int, ready: float, duration: float, size: int = 0, place: Place = "cpu") -> float:
        """Do one piece of work that cannot start before `ready`; returns its end."""
        start = max(self.now, ready)
        if self.kind == "compute" and start > self.now:
            self.events.append(Event("stall", layer, -1, self.now, start, 0, place))
        self.now = start + duration
        self.events.append(Event(self.kind, layer, level, start, self.now, size, place))
        return self.now


def simulate(plan: Plan, problem: Problem) -> Timeline:
    """Replay `plan` on the device that `problem` describes.

    The events are those of one run; of a decoder, of one token at the end of the context. Reads are in load order:
    embedding rows, then extents. An extent starts when the lane is free and its `wait_block` has been computed. A block
    is computed when its own extents have arrived and the block before it is done; without overlap, when everything has
    arrived. CPU and GPU take turns: what is computed on the other one than its input begins with handing that over. The
    embedding is computed where the first kept block is.
    """
    placement = place_extents(plan, problem.store)
    by_block: list[list[Extent]] = [[] for _ in plan.layers]
    for extent in placement.streamed:
        by_block[extent.block].append(extent)
    events: list[Event] = []
    io = _Clock("io", problem.compute.submit_us, events)
    compute = _Clock("compute", problem.compute.submit_us, events)
    at: Place = next((layer.place for layer in plan.layers if layer.bits), "cpu")  # where activations are
    done: dict[int, float] = {-1: 0.0}
    steps: list[tuple[float, int]] = [(0.0, 0)]

    def read(block: int) -> float:
        ready = io.now
        for x in by_block[block]:
            ready = io.run(block, x.level, done[x.wait_block], problem.io.extent_us(x.bytes), x.bytes)
            steps.append((events[-1].start_us, x.bytes))
        return ready

    rows = 0.0
    if not plan.table_resident:
        size = problem.length * problem.row_read_bytes
        rows = io.run(EMBEDDING, -1, 0.0, problem.io.row_us * problem.length, size)
    arrived = {k: read(k) for k in range(len(plan.layers))} if not plan.overlap else {}
    everything = io.now if not plan.overlap else 0.0
    compute.run(EMBEDDING, -1, max(rows, everything), problem.cost(at).embed_us, place=at)
    for k, layer in enumerate(plan.layers):
        ready = arrived[k] if not plan.overlap else read(k)
        if layer.bits:
            cost = problem.cost(layer.place).blocks[problem.store.cut_of[k]]
            duration = cost.block_us + sum(cost.slice_us[b] for b in layer.bits)
            duration += problem.hand_over_us if layer.place != at else 0.0
            compute.run(k, -1, ready if by_block[k] else 0.0, duration, place=layer.place)
            at = layer.place
        done[k] = compute.now
        steps.append((compute.now, -sum(x.bytes for x in by_block[k])))
    hand_over_us = problem.hand_over_us if at == "gpu" else 0.0
    latency = compute.run(HEAD, -1, 0.0, problem.compute.head_us + hand_over_us)

    table = problem.table_bytes if plan.table_resident else 0
    gpu = problem.gpu_bytes if plan.on_gpu else 0
    return Timeline(
        events=tuple(sorted(events, key=lambda e: (e.start_us, e.end_us))),
        latency_us=latency,
        stall_us=sum(e.end_us - e.start_us for e in events if e.kind == "stall"),
        io_bytes=sum(e.bytes for e in events),
        preload_bytes=placement.preload_bytes,
        working_bytes=placement.working_bytes,
        peak_bytes=problem.fixed_bytes + table + gpu + placement.preload_bytes + placement.working_bytes,
        held=_accumulate(steps),
        first_token_us=first_token_us(plan, problem, problem.prompt),
    )


def first_token_us(plan: Plan, problem: Problem, prompt: Sequence[Pass]) -> float:
    """Replay the passes of a prompt, one after another: nothing that streams is kept from one to the next."""
    return sum(simulate(*_alone(plan, problem, one)).latency_us for one in prompt)


def next_token_us(plan: Plan, problem: Problem, one: Pass) -> float:
    """Replay a pass that goes on to the vocabulary."""
    return simulate(*_alone(plan, problem, one)).latency_us


def _alone(plan: Plan, problem: Problem, one: Pass) -> tuple[Plan, Problem]:
    """A pass as a run of its own. One that ends before the vocabulary leaves it out."""
    layers = plan.layers if one.last else (*plan.layers[:-1], LayerPlan((), ()))
    return replace(plan, layers=layers), replace(problem, compute=one.compute, length=one.tokens, prompt=())


def _accumulate(steps: list[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """Running sum of changes over time; what is freed at a moment is freed before what is taken then."""
    held, total = [], 0
    for when, change in sorted(steps):
        total += change
        held.append((when, total))
    return tuple(held)


def check(plan: Plan, problem: Problem, claim: Claim) -> Timeline:
    """Replay `plan`; raise ReplayError where `claim` differs from the replay or a budget is broken."""
    timeline = simulate(plan, problem)
    for name in ("latency_us", "first_token_us"):
        claimed_us, replayed_us = getattr(claim, name), getattr(timeline, name)
        if abs(replayed_us - claimed_us) > 1e-6 * replayed_us + 1e-3:
            raise ReplayError(f"the plan claims {name} = {claimed_us:.1f}, its replay takes {replayed_us:.1f}")
    for name in ("peak_bytes", "preload_bytes", "working_bytes", "io_bytes"):
        claimed, replayed = getattr(claim, name), getattr(timeline, name)
        if claimed != replayed:
            raise ReplayError(f"the plan claims {name} = {claimed}, its replay needs {replayed}")
    most = max(size for _, size in timeline.held)
    if most > timeline.working_bytes:
        raise ReplayError(f"the replay holds {most} streamed bytes in a working buffer of {timeline.working_bytes}")
    budget, share = plan.budget, 1 - plan.margin
    limits = (
        ("latency_us", timeline.latency_us, budget.latency_us and budget.latency_us * share + 1e-3),
        ("first_token_us", timeline.first_token_us, budget.first_token_us and budget.first_token_us * share + 1e-3),
        ("peak_bytes", timeline.peak_bytes, budget.memory_bytes),
        ("preload_bytes", timeline.preload_bytes, budget.preload_bytes),
    )
    for name, value, limit in limits:
        if limit is not None and value > limit:
            raise ReplayError(f"the plan's {name} is {value}, above its budget of {limit}")
    return timeline
