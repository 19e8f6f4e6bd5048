"""Budget, Problem and Plan: what a planner is asked, and what it answers.

A plan stores independent facts only. Everything that follows from them (bytes read, predicted times, peak
memory) is computed from the plan by `stic.compiler.simulate` and `stic.compiler.memory.placement`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.store import Store
from stic.runtime.errors import InputError
from stic.runtime.format import BLOCK
from stic.runtime.gpu_format import Place
from stic.runtime.layout import pad, row_stride

Gains = NDArray[np.float64]
FORMAT = 3  # of a plan's JSON; 1 had no places, 2 no loss


@dataclass(frozen=True)
class Budget:
    """What a plan must meet; None means: make it as small as the rest allows, after quality."""

    latency_us: int | None = None  # submitting tokens to output, preload buffer warm, everything else cold; of a
    # decoder: of one token at the end of the context
    memory_bytes: int | None = None  # all that the engine holds at its peak
    preload_bytes: int | None = None  # the preload buffer alone (|S| in STI)
    first_token_us: int | None = None  # of a decoder: the planned prompt to the first token of an answer


@dataclass(frozen=True)
class IoCost:
    """Time to read: a request of n bytes takes request_us + n / bytes_per_s with the engine's lanes in use."""

    request_us: float
    bytes_per_s: float  # already derated
    request_bytes: int  # an extent is split into requests of at most this size
    row_us: float  # one embedding row, lanes in use, per distinct token

    def extent_us(self, size: int) -> float:
        """Microseconds for one extent."""
        return self.request_us * -(-size // self.request_bytes) + size * 1e6 / self.bytes_per_s


@dataclass(frozen=True, eq=False)
class BlockCost:
    """Microseconds of compute of a block of one shape."""

    block_us: float  # what it costs beyond its slices (norms, quantisation, barriers)
    slice_us: dict[int, float]  # bits -> unpacking and multiplying one slice, attention included

    def of(self, bits: Sequence[int]) -> float:
        """Microseconds for a block whose kept slices have these bits."""
        return self.block_us + sum(self.slice_us[b] for b in bits) if bits else 0.0

    def scaled(self, ratio: float) -> BlockCost:
        """The same `ratio` times as slow."""
        return BlockCost(self.block_us * ratio, {b: us * ratio for b, us in self.slice_us.items()})


@dataclass(frozen=True, eq=False)
class ComputeCost:
    """Microseconds of compute for an input of the planned length, on the planned threads or on a GPU."""

    blocks: tuple[BlockCost, ...]  # of each shape, as Store.cuts has them
    embed_us: float
    head_us: float
    submit_us: float = 0.0  # waking the pool and returning

    @property
    def layer(self) -> BlockCost:
        """Of a layer of an encoder, whose blocks have one shape."""
        (layer,) = self.blocks
        return layer


@dataclass(frozen=True, eq=False)
class Pass:
    """A chunk of a prompt on its way through the blocks of a decoder."""

    start: int  # its position
    tokens: int
    compute: ComputeCost
    last: bool  # a chunk after which more follow ends before the vocabulary


@dataclass(frozen=True, eq=False)
class SubmodelPath:
    """Nested submodels of an elastic model, from nothing to the whole, that were measured as they are."""

    order: tuple[tuple[int, int], ...]  # (layer, slice) of every shard: each submodel keeps a prefix
    value: Gains  # (layers, slices): what a shard at bits[0] takes off the loss when it joins those before it

    def __post_init__(self) -> None:
        if sorted(self.order) != list(np.ndindex(self.value.shape)):
            raise ValueError("a path of submodels needs every shard once")
        if any(self.order.index((k, s - 1)) > self.order.index((k, s)) for k, s in self.order if s):
            raise ValueError("slices of a layer join in their order")


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything a planner may know. Bits are ascending; shards are (block, slice).

    Gains and presence are 0 behind the slices of a block.
    """

    store: Store
    bits: tuple[int, ...]  # fidelities on offer, e.g. (2, 3, 4, 5, 6, 8, 16)
    gain: Gains  # (blocks, most slices, len(bits)): value of shard at bits[j] over the shard at bits[0]; [..., 0] = 0
    presence: Gains  # (blocks, most slices): value of the shard at bits[0] over leaving it out (elastic models)
    elastic: bool  # may slices and blocks, all of kind layer, be left out?
    io: IoCost
    compute: ComputeCost
    length: int  # tokens planned for
    fixed_bytes: int  # trunk, activations, tables, stacks, code: memory that no decision changes
    table_bytes: int  # embeddings.bin, should it be resident
    budget: Budget
    margin: float = 0.0  # share of the latency budget kept back for jitter
    gpu: ComputeCost | None = None  # the same work on the GPU beside the CPU; None: there is none. The head stays
    hand_over_us: float = 0.0  # handing activations from the CPU to the GPU, or back
    gpu_bytes: int = 0  # memory that is held once any layer is on the GPU, a multiple of 4096
    places: tuple[Place, ...] = ()  # where each block is computed if it is kept; empty: on the CPU, or not decided yet
    path: SubmodelPath | None = None  # of an elastic model: planner ilp keeps a prefix of it; None: any slices
    row_type: str = "int8"  # of the word table: one of ROW_TYPES
    table_streamed: bool = False  # the word table may not be resident, even where the budget allows it
    held: Mapping[int, int] = field(default_factory=dict)  # block -> bits of all its slices, where they are decided
    whole: frozenset[int] = frozenset()  # blocks whose slices all have the same bits: they are worth the same
    prompt: tuple[Pass, ...] = ()  # of a decoder: what comes before the first token of an answer to the planned prompt

    def __post_init__(self) -> None:
        if any(bits not in self.bits for bits in self.held.values()):
            raise ValueError(f"blocks are held at bits {sorted(set(self.held.values()))} that are not on offer")
        if self.prompt and [one.last for one in self.prompt] != [False] * (len(self.prompt) - 1) + [True]:
            raise ValueError("the last chunk of a prompt, and no other, goes on to the vocabulary")
        if self.places and len(self.places) != self.store.blocks:
            raise ValueError(f"{len(self.places)} places for {self.store.blocks} blocks")
        if self.elastic and any(shape.kind != "layer" for shape in self.store.shapes):
            raise ValueError("blocks other than layers cannot be left out")
        if any(len(c.blocks) != len(self.store.cuts) for c in (self.compute, self.gpu) if c is not None):
            raise ValueError(f"there are costs of other shapes than the {len(self.store.cuts)} of the store")
        if "gpu" in self.places and self.gpu is None:
            raise ValueError("layers are placed on a GPU, but it has no costs")
        if self.path is not None and not self.elastic:
            raise ValueError("a model that is not elastic has no submodels")

    @property
    def row_read_bytes(self) -> int:
        """Bytes that are read for an embedding row: whole blocks."""
        return pad(row_stride(self.store.shapes[0].hidden, self.row_type), BLOCK)

    def place(self, block: int) -> Place:
        """Where a block is computed."""
        return self.places[block] if self.places else "cpu"

    def cost(self, place: Place) -> ComputeCost:
        """What computing there costs."""
        if place == "cpu":
            return self.compute
        if self.gpu is None:
            raise ValueError("a layer is placed on a GPU, but it has no costs")
        return self.gpu

    def block_cost(self, block: int, place: Place | None = None) -> BlockCost:
        """What a block costs there; None: where it is placed."""
        return self.cost(place or self.place(block)).blocks[self.store.cut_of[block]]

    def decided(self, block: int, bits: tuple[int, ...], resident: tuple[int, ...]) -> LayerPlan:
        """The decisions for one block, at its place."""
        return LayerPlan(bits, resident, self.place(block) if bits else "cpu")

    @property
    def along_path(self) -> Problem:
        """The same with presence as it was measured along the path of submodels, if there is one."""
        return self if self.path is None else replace(self, presence=self.path.value)

    @property
    def table_may_stay(self) -> bool:
        """May the word embedding table be resident? Not under a cap on |S|, which STI means for shards alone:
        a table outside it would make the cap meaningless."""
        return not self.table_streamed and self.budget.preload_bytes is None


@dataclass(frozen=True)
class LayerPlan:
    """Decisions for one block, by kept slice. An empty one is left out."""

    bits: tuple[int, ...]  # never increasing; 16 or 32 = full precision
    resident: tuple[int, ...]  # bits held in the preload buffer between runs; 0 = none
    place: Place = "cpu"  # where it is computed

    def __post_init__(self) -> None:
        if self.place not in ("cpu", "gpu") or (self.place == "gpu" and not self.bits):
            raise ValueError(f"a layer of {len(self.bits)} slices cannot be placed on {self.place!r}")
        if len(self.bits) != len(self.resident):
            raise ValueError("bits and resident differ in length")
        if any(a < b for a, b in pairwise(self.bits)):
            raise ValueError(f"bits must not increase with the slice: {self.bits}")
        if any(r > b or (b > 8 and r not in (0, b)) for b, r in zip(self.bits, self.resident, strict=True)):
            raise ValueError(f"resident bits must be a prefix of the planned bits: {self.resident} of {self.bits}")
        planes = [r for b, r in zip(self.bits, self.resident, strict=True) if b <= 8]
        full = [r for b, r in zip(self.bits, self.resident, strict=True) if b > 8]
        if any(a < b for part in (planes, full) for a, b in pairwise(part)):
            raise ValueError(f"resident bits must not increase with the slice: {self.resident}")

    @property
    def full(self) -> int:
        """Slices at full precision; they come first."""
        return sum(b > 8 for b in self.bits)


@dataclass(frozen=True)
class Proof:
    """What the planner knows of its answer's quality."""

    status: str  # "optimal", "feasible" (the search ended before proof), "heuristic"
    objective: float
    bound: float | None  # no plan has a larger objective; None for heuristics
    solve_seconds: float
    gap_limit: float = 0.0  # the gap that was enough to end the search

    @property
    def gap(self) -> float | None:
        """Relative distance to the bound."""
        if self.bound is None:
            return None
        return max(0.0, self.bound - self.objective) / max(abs(self.bound), 1e-12)

    @property
    def near_enough(self) -> bool:
        """Whether it was the gap that ended the search, and not the time limit."""
        return self.gap is not None and self.gap <= self.gap_limit


@dataclass(frozen=True)
class Plan:
    """A planner's answer. Load order is by layer, then level, and within a level by slice."""

    planner: str
    layers: tuple[LayerPlan, ...]  # of each block
    table_resident: bool  # the word embedding table stays in memory
    read_ahead: int  # layers whose streamed bytes may be in the working buffer beyond the one in compute
    overlap: bool  # False: load all, then compute (the load-and-exec baseline)
    budget: Budget
    margin: float
    proof: Proof
    notes: tuple[str, ...] = field(default=())
    loss: float | None = None  # on calibration examples, in the units of the importance; None: not measured

    @property
    def quality(self) -> float:
        """What plans of one family are compared by: more is better."""
        return self.proof.objective if self.loss is None else -self.loss

    @property
    def on_gpu(self) -> bool:
        """Whether any layer is computed on the GPU."""
        return any(layer.place == "gpu" for layer in self.layers)

    @property
    def mean_bits(self) -> float:
        """Mean bits over kept shards."""
        bits = [b for layer in self.layers for b in layer.bits]
        return float(np.mean(bits)) if bits else 0.0


@dataclass(frozen=True)
class Claim:
    """What a planner says of its plan, from formulas; `stic.compiler.simulate.check` compares it with the replay."""

    latency_us: float
    peak_bytes: int  # everything the engine holds
    preload_bytes: int
    working_bytes: int
    io_bytes: int
    first_token_us: float = 0.0  # of a decoder: all passes of the planned prompt


def to_json(plan: Plan) -> dict[str, Any]:
    """Plain data for plan.json. Only a decoder's says something of a first token."""
    data = asdict(plan)
    if plan.budget.first_token_us is None:
        del data["budget"]["first_token_us"]
    return {"format": FORMAT, **data}


def from_json(data: dict[str, Any]) -> Plan:
    """Inverse of `to_json`; unknown or missing fields are refused."""
    try:
        data = dict(data)
        version = data.pop("format")
        if version not in range(1, FORMAT + 1):
            raise ValueError("unknown plan format")
        if ("loss" in data) != (version == FORMAT):
            raise ValueError(f"a plan of format {version} {'has' if 'loss' in data else 'lacks'} a loss")
        layers = tuple(_layer(version, **layer) for layer in data.pop("layers"))
        budget = Budget(**data.pop("budget"))
        proof = Proof(**data.pop("proof"))
        return Plan(layers=layers, budget=budget, proof=proof, notes=tuple(data.pop("notes")), **data)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"this is not a plan that stic wrote: {error}") from error


def _layer(version: int, bits: list[int], resident: list[int], place: Place | None = None) -> LayerPlan:
    if (place is None) != (version == 1):
        raise ValueError(f"a layer of plan format {version} {'lacks' if place is None else 'has'} a place")
    return LayerPlan(tuple(bits), tuple(resident), place or "cpu")


def dumps(plan: Plan) -> str:
    """`to_json` as text."""
    return json.dumps(to_json(plan), indent=1)
