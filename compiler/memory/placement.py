"""Where everything lies: resident and streamed extents, and the regions of the engine's one arena.

The working region is a ring of `read_ahead + 1` slots: block k uses slot k mod (read_ahead + 1), and may be
read once block k - 1 - read_ahead has been computed. Two neighbouring slots share one stretch of memory,
one growing up and one growing down, so double buffering (read_ahead = 1) costs max(b_k + b_{k+1}) bytes
and not the sum of two maxima. `stic.compiler.memory.check` verifies the result without this code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stic.compiler.plan import LayerPlan, Plan
from stic.compiler.store import Store
from stic.runtime.format import (
    ALIGN,
    BLOCK,
    BLOCK_ENTRY,
    DENSE,
    EXTENT,
    FILE,
    HEADER,
    LEVELS,
    MODEL,
    PLAN,
    RECORD,
    REGION,
    REGIONS,
    SHAPE,
    TILE,
    WEIGHT_REGIONS,
    CacheType,
)
from stic.runtime.layout import Shape, cache_layout, levels_of, pad, scratch_bytes, staging_bytes
from stic.runtime.limits import LIMITS

# Pages a process touches besides the arena, the index and the stacks of its threads: code and data of the
# engine, of kernels.so and of libc, and the main thread's stack. Observed, not computed, and rounded up to pieces of
# 64 KiB: with it, peaks of the evaluation's processes (VmHWM) stay 0.1 to 0.2 MiB below what their plans claim, and
# `make bench` ends a process that needs more (docs/evaluation.md, "Claimed and measured memory").
PROCESS_BYTES = 31 * (64 << 10)
LANE_STACK_BYTES = 32 << 10  # what an IO lane touches of its stack


@dataclass(frozen=True)
class Extent:
    """One aligned read; fields as in runtime.format.EXTENT, destination relative to its region."""

    block: int
    level: int
    first: int
    count: int
    file_offset: int
    bytes: int
    destination: int
    wait_block: int  # -1: may be read at once


@dataclass(frozen=True)
class Placement:
    """Extents of a plan: resident ones in the preload region, streamed ones in the working region."""

    resident: tuple[Extent, ...]
    streamed: tuple[Extent, ...]  # in load order: block, then level
    preload_bytes: int
    working_bytes: int


def _extents(block: int, plan: LayerPlan, store: Store) -> tuple[list[Extent], list[Extent]]:
    """(resident, streamed) extents of a block, by level, not yet placed."""
    resident: list[Extent] = []
    streamed: list[Extent] = []
    wanted = [set(levels_of(b, store.nested)) for b in plan.bits]
    held = [set(levels_of(r, store.nested)) for r in plan.resident]
    if any(not h <= w for h, w in zip(held, wanted, strict=True)):
        raise ValueError(f"block {block} holds copies that its bits {plan.bits} do not use: {plan.resident}")
    for level in range(LEVELS):
        for out, slices in (
            (resident, [s for s, h in enumerate(held) if level in h]),
            (streamed, [s for s, w in enumerate(wanted) if level in w - held[s]]),
        ):
            if slices:
                first, count = slices[0], slices[-1] - slices[0] + 1
                if count != len(slices):
                    raise ValueError(f"slices {slices} of block {block}, level {level} are not one run")
                offset, size = store.extent(block, level, first, count)
                out.append(Extent(block, level, first, count, offset, size, 0, -1))
    return resident, streamed


def _slots(sizes: list[int], slots: int) -> list[tuple[int, int]]:
    """(base, bytes) of each stretch of memory that slots 2p and 2p + 1 share.

    Blocks at most slots - 1 apart may be held together; `sizes` are streamed bytes by block.
    """
    stretches, base = [], 0
    for slot in range(0, slots, 2):
        lower = range(slot, len(sizes), slots)
        upper = range(slot + 1, len(sizes), slots) if slot + 1 < slots else range(0)
        alone = [sizes[k] for k in (*lower, *upper)]
        together = [sizes[i] + sizes[j] for i in lower for j in upper if abs(i - j) < slots]
        size = max(alone + together, default=0)
        stretches.append((base, size))
        base += size
    return stretches


def place_extents(plan: Plan, store: Store) -> Placement:
    """Give every extent its place.

    Resident extents lie one after another. A streamed extent of block k waits for the latest kept block that
    is at most k - 1 - read_ahead, once any block up to there has streamed; before that there is nothing to
    overwrite. A plan without overlap reads everything first and therefore reuses nothing.
    """
    layers = [_extents(k, layer, store) for k, layer in enumerate(plan.layers)]
    resident: list[Extent] = []
    preload_bytes = 0
    for held, _ in layers:
        for extent in held:
            resident.append(replace(extent, destination=preload_bytes))
            preload_bytes += extent.bytes
    sizes = [sum(extent.bytes for extent in streamed) for _, streamed in layers]
    ahead = min(plan.read_ahead, len(sizes) - 1) if plan.overlap else len(sizes) - 1
    stretches = _slots(sizes, ahead + 1)
    streamed_all: list[Extent] = []
    for k, (_, streamed) in enumerate(layers):
        last = k - 1 - ahead
        kept = [j for j in range(last + 1) if plan.layers[j].bits]
        wait = kept[-1] if kept and any(sizes[: last + 1]) else -1
        base, size = stretches[k % (ahead + 1) // 2]
        at = base if k % (ahead + 1) % 2 == 0 else base + size - sizes[k]
        for extent in streamed:
            streamed_all.append(replace(extent, destination=at, wait_block=wait))
            at += extent.bytes
    working_bytes = sum(size for _, size in stretches)
    return Placement(tuple(resident), tuple(streamed_all), preload_bytes, working_bytes)


@dataclass(frozen=True)
class DecoderSizes:
    """What more the sizes of a decoder's regions follow from; fields as those of runtime.format.HEADER and MODEL."""

    chunk: int
    group: int
    cache: CacheType
    rotaries: int
    rotary_features: int


@dataclass(frozen=True)
class Sizes:
    """What the sizes of the engine's regions follow from, decisions of the plan aside."""

    shapes: tuple[Shape, ...]  # of each block, of which all slices are kept
    max_length: int  # tokens
    trunk_bytes: int
    row_stride: int  # of embeddings.bin; 0: rows are tied
    head_width: int  # widest input or output of the head's linear maps; 0: no head
    output_floats: int  # max_length * features, or features; 0 of a decoder
    threads: int
    lanes: int  # that read extents
    row_lanes: int  # that read embedding rows, those included
    stack_bytes: int
    decoder: DecoderSizes | None = None  # None: an encoder

    @property
    def hidden(self) -> int:
        """Features of the hidden states."""
        return self.shapes[0].hidden


def _buffers(z: Sizes) -> dict[str, int]:
    """Bytes of the regions that no decision changes, as runtime.format.REGIONS defines them."""
    chunk = z.max_length if z.decoder is None else z.decoder.chunk
    tiles, hidden = -(-chunk // TILE), z.shapes[0].padded_hidden
    attention = max(x.slices * x.attention_width for x in z.shapes)
    widest = max(hidden, attention, max(x.slices * x.ffn_width for x in z.shapes))
    groups = 1 if z.decoder is None else _most_groups(z.shapes, z.decoder.group)
    vector = 4 * TILE  # one feature of one tile
    head_dim = max(x.head_dim for x in z.shapes)
    return {
        "trunk": z.trunk_bytes,
        "x": tiles * hidden * vector,
        "y": tiles * hidden * vector,
        "qkv": tiles * max(x.slices * x.qkv_width for x in z.shapes) * vector,
        "context": tiles * attention * vector,
        "ffn": tiles * max(x.slices * x.up_width for x in z.shapes) * vector,
        "quantized": tiles * widest * TILE,
        "token_scale": tiles * groups * vector,
        "token_sum": tiles * groups * vector,
        "panel": z.threads * TILE * widest,
        "scratch": z.threads * scratch_bytes(z.max_length, head_dim, z.decoder is not None),
        "rows": chunk * z.row_stride,
        "staging": z.row_lanes * staging_bytes(z.hidden, z.row_stride),
        "ids": 4 * chunk,
        "types": 4 * chunk if z.decoder is None else 0,
        "head": 2 * pad(z.head_width, TILE) * vector,
        "output": 4 * z.output_floats,
        **_decoder_buffers(z, tiles),
    }


def _most_groups(shapes: tuple[Shape, ...], group: int) -> int:
    """Groups of a token's features, before any matrix."""
    joined = [(x.slices, width) for x in shapes for width in (x.attention_width, x.ffn_width)]
    return max(-(-shapes[0].padded_hidden // group), *(slices * -(-width // group) for slices, width in joined))


def _decoder_buffers(z: Sizes, tiles: int) -> dict[str, int]:
    """Bytes of the regions that only decoders have."""
    d, vector = z.decoder, 4 * TILE
    if d is None:
        return dict.fromkeys(("normed", "turns", "cache", "logits"), 0)
    heads = [(x.slices * x.key_heads_per_slice, x.head_dim) for x in z.shapes if x.kind == "attention"]
    return {
        "normed": tiles * z.shapes[0].padded_hidden * vector,
        "turns": tiles * d.rotaries * d.rotary_features * vector,
        "cache": sum(count * cache_layout(z.max_length, head_dim, d.cache).size for count, head_dim in heads),
        "logits": 4 * max(x.slices * x.head_width for x in z.shapes),
    }


def regions(
    z: Sizes, preload_bytes: int, working_bytes: int, table_bytes: int, weights_first: bool = False
) -> tuple[dict[str, tuple[int, int]], int]:
    """Lay out the arena: ({name: (offset, bytes)} for all of REGIONS, arena bytes).

    What is read with O_DIRECT starts at multiples of 4096, the rest at multiples of 64. `ffn` lies over
    `qkv` and `context`, which are dead by then; so does `rows`, which is dead when the first layer starts.
    `table_bytes` is 0 when the table is not resident. `preload` and `working` come last, so that the arena of a plan
    is a prefix of that of a larger one; or, `weights_first`, at the start, where a GPU shares them.
    """
    sizes = _buffers(z) | {"preload": preload_bytes, "working": working_bytes, "table": table_bytes}
    placed: dict[str, tuple[int, int]] = {}
    at = 0
    for name in (*(WEIGHT_REGIONS if weights_first else ()), "table", "staging", "trunk", "x", "y"):
        placed[name] = (at, sizes[name])
        at = pad(at + sizes[name], BLOCK)
    shared = at
    for name in ("qkv", "context"):
        placed[name] = (at, sizes[name])
        at = pad(at + sizes[name], ALIGN)
    for name in ("ffn", "rows"):
        placed[name] = (shared, sizes[name])
        at = max(at, pad(shared + sizes[name], ALIGN))
    for name in REGIONS:
        if name not in placed and name not in WEIGHT_REGIONS:
            placed[name] = (at, sizes[name])
            at = pad(at + sizes[name], ALIGN)
    at = pad(at, BLOCK)
    for name in () if weights_first else WEIGHT_REGIONS:
        placed[name] = (at, sizes[name])
        at = pad(at + sizes[name], BLOCK)
    return {name: placed[name] for name in REGIONS}, at


def index_bytes(store: Store, plans: int = 1) -> int:
    """Upper bound of index.bin for a package of so many plans: for each its bits and two extents for every
    (block, level); all optional tables full."""
    runs, shards = store.blocks * LEVELS, sum(store.slices)
    plan = PLAN.itemsize + shards + runs * 2 * EXTENT.itemsize
    tables = (
        MODEL.itemsize
        + LIMITS["files"] * FILE.itemsize
        + len(store.cuts) * SHAPE.itemsize
        + store.blocks * BLOCK_ENTRY.itemsize
        + LEVELS * shards * RECORD.itemsize
        + plans * plan
        + LIMITS["dense"] * DENSE.itemsize
        + len(REGIONS) * REGION.itemsize
    )
    aligned = (9 + 2 * plans) * ALIGN  # between tables
    return pad(HEADER.itemsize + tables + aligned, BLOCK)


def in_context(z: Sizes, context: int) -> Sizes:
    """The sizes of a decoder at another context: its cache, scratch and rotary table follow it."""
    d = z.decoder
    if d is None:
        raise ValueError("an encoder's sizes have no context")
    turns = 4 * d.rotaries * d.rotary_features  # of a position
    chunk = min(d.chunk, context)
    trunk_bytes = z.trunk_bytes - turns * (z.max_length - context)
    return replace(z, max_length=context, trunk_bytes=trunk_bytes, decoder=replace(d, chunk=chunk))


def fixed_bytes(z: Sizes, store: Store, plans: int = 1) -> int:
    """Memory that no decision changes, in a package of so many plans: arena without extents and table, index, stacks,
    code.

    A plan's claim is this + preload_bytes + working_bytes + table_bytes (when resident), all of which are
    multiples of 4096.
    """
    _, arena = regions(z, 0, 0, 0)
    stacks = (z.threads - 1) * z.stack_bytes + z.row_lanes * LANE_STACK_BYTES
    return arena + index_bytes(store, plans) + stacks + PROCESS_BYTES
