"""How small random decoders are cut, and where the bytes of their packages go; see random_decoders.py."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.architecture import Architecture, Attention, FeedForward
from stic.runtime.format import ALIGN, BLOCK, EXTENT, LEVELS, REGION, REGIONS, WEIGHT_REGIONS
from stic.runtime.layout import Shape, levels_of, pad
from stic.runtime.package_memory import needs

GROUP = 64
CLAIM_BESIDE_ARENA = 4 << 20
Bits = tuple[tuple[int, ...], ...]  # [block][slice]


@dataclass(frozen=True)
class Made:
    """How a package is made beside its architecture."""

    plans: tuple[Bits, ...]
    resident: tuple[frozenset[int], ...] = (frozenset(),)  # blocks that each plan keeps in memory
    chunk: int = 16
    key_heads_per_slice: int = 1
    ffn_slices: int = 2
    head_slices: int = 2
    cache: str = "float16"
    row_type: str = "int8"
    threads: int = 2
    lanes: int = 2
    table_resident: bool = False
    full_bits: int = 16
    load_first: bool = False
    nested: bool = False
    seed: int = 0

    def levels(self, bits: int) -> tuple[int, ...]:
        """Levels that a slice at these bits reads."""
        return tuple(levels_of(bits, self.nested))

    def held(self, plan: int) -> frozenset[int]:
        """Blocks that a plan keeps in memory."""
        return self.resident[plan] if len(self.resident) > 1 else self.resident[0]


def shapes_of(architecture: Architecture, made: Made) -> tuple[Shape, ...]:
    """How every block is cut."""
    found = []
    for block in architecture.blocks:
        if isinstance(block, Attention):
            slices = block.key_heads // made.key_heads_per_slice
            heads = block.heads // slices
            cut = Shape("attention", architecture.hidden, slices, heads, made.key_heads_per_slice, block.head_dim)
        elif isinstance(block, FeedForward):
            each = -(-block.neurons // made.ffn_slices)
            cut = Shape("feed_forward", architecture.hidden, made.ffn_slices, neurons_per_slice=each, gated=block.gated)
        else:
            each = -(-block.rows // made.head_slices)
            cut = Shape("vocabulary", architecture.hidden, made.head_slices, rows_per_slice=each)
        found.append(cut)
    return tuple(found)


def uniform(architecture: Architecture, made: Made, bits: int) -> Bits:
    """The same bits everywhere."""
    return tuple((bits,) * shape.slices for shape in shapes_of(architecture, made))


def lay_out_regions(shapes: tuple[Shape, ...], facts: SimpleNamespace) -> tuple[NDArray[Any], int]:
    """Table REGION, each just as large as it must be, and where the weights begin, which come last."""
    kept = np.array([shape.slices for shape in shapes])
    sizes = needs(facts, shapes, np.zeros(0, [("rows", "<u4")]), kept)
    regions, at = np.zeros(len(REGIONS), REGION), 0
    for row, name in zip(regions, REGIONS, strict=True):
        if name not in WEIGHT_REGIONS:
            at = pad(at, BLOCK if name in ("table", "staging") else ALIGN)
            row["offset"], row["bytes"] = at, sizes[name]
            at += sizes[name]
    return regions, pad(at, BLOCK)


def place_plan(
    plan: Any, start: int, number: int, made: Made, shapes: tuple[Shape, ...], records: NDArray[Any]
) -> NDArray[Any]:
    """Fill a row of PLAN but for the places of its tables; returns table EXTENT. Weights begin at `start`.

    Resident blocks lie one after another; streamed ones take turns in two halves of `working`, or, where all is read
    before anything is computed, lie one after another, too.
    """
    spans = _spans(made, made.plans[number], shapes, records)
    size = [sum(span[4] - span[3] for span in block) for block in spans]
    held = [b for b in range(len(shapes)) if b in made.held(number)]
    streamed = [b for b in range(len(shapes)) if b not in held]
    preload = sum(size[b] for b in held)
    half = max((size[b] for b in streamed), default=0)
    working = sum(size[b] for b in streamed) if made.load_first else 2 * half
    extents, at = [], start
    for turn, b in enumerate((*held, *streamed)):
        order, wait = turn - len(held), -1
        if order >= 0 and not made.load_first:
            at = start + preload + order % 2 * half
            wait = streamed[order - 2] if order >= 2 else -1
        for level, first, count, begin, end in spans[b]:
            extents.append((begin, at, end - begin, b, level, first, count, wait))
            at += end - begin
    plan["extents"], plan["resident_extents"] = len(extents), sum(len(spans[b]) for b in held)
    plan["load_first"], plan["predicted_us"], plan["quality"] = made.load_first, 1000 * (number + 1), number
    plan["preload"], plan["working"] = (start, preload), (start + preload, working)
    plan["arena_bytes"] = start + preload + working
    plan["claimed_bytes"] = plan["arena_bytes"] + CLAIM_BESIDE_ARENA
    return np.array(extents, EXTENT)


def _spans(
    made: Made, bits: tuple[tuple[int, ...], ...], shapes: tuple[Shape, ...], records: NDArray[Any]
) -> list[list[tuple[int, int, int, int, int]]]:
    """What a plan reads of each block: (level, first slice, slices, begin, end) in shards.bin."""
    spans, at = [], 0
    for own, shape in zip(bits, shapes, strict=True):
        table = records[at : at + LEVELS * shape.slices].reshape(LEVELS, shape.slices)
        at += LEVELS * shape.slices
        found = []
        for level in range(LEVELS):
            used = [s for s in range(shape.slices) if level in made.levels(own[s])]
            if used:
                begin, last = int(table[level, used[0]]["offset"]) // BLOCK * BLOCK, table[level, used[-1]]
                found.append((level, used[0], len(used), begin, pad(int(last["offset"] + last["bytes"]), BLOCK)))
        spans.append(found)
    return spans
