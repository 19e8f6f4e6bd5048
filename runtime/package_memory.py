"""The regions of a package's arena, and the order and the places of loading, checked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.checks import Check, Refuse, Rows, fields, pairs, require, within
from stic.runtime.format import ALIGN, BLOCK, CACHES, LEVELS, REGIONS, TILE
from stic.runtime.layout import Shape, cache_bytes, levels_of, pad, scratch_bytes, staging_bytes

Regions = dict[str, tuple[int, int]]

_READ_INTO = ("preload", "table", "working", "staging")
# What was checked before use, and is then trusted as offsets and indices, shares no byte with anything else; nor does
# what outlives a pass.
_TRUSTED = ("trunk", "preload", "table", "working", "staging", "ids", "types", "cache")
_ANY_SIZE = (*REGIONS[: REGIONS.index("working") + 1], "panel", "cache")

# r: a region's `name`, `offset`, `bytes`, what it needs at `least` and at `most`; p: `arena`, the arena's bytes.
REGION_CHECKS = (
    Check(
        "region_place",
        lambda p, r: (
            (r.offset % np.where(r.read & (r.bytes > 0), BLOCK, ALIGN) == 0) & within(r.offset, r.bytes, p.arena)
        ),
        "memory region {r.name} lies outside the arena",
    ),
    Check(
        "region_size",
        lambda p, r: (r.bytes >= r.least) & (r.bytes <= r.most + BLOCK),
        "memory region {r.name} has {r.bytes} bytes and needs {r.least}",
    ),
    Check(
        "region_index",
        lambda p, r: r.any_size | (r.least < 1 << 31),
        "memory region {r.name} is larger than a kernel can index",
    ),
)
# p: `arena`, `sum` of the regions, `panel` of one thread.
ARENA_CHECKS = (
    Check("panel_index", lambda p: p.panel < 1 << 31, "a panel is larger than a kernel can index"),
    Check(
        "arena_size",
        lambda p: 0 < p.arena <= p.sum + (len(REGIONS) + 1) * BLOCK,
        "an arena of {p.arena} bytes for regions of {p.sum}",
    ),
)
# r: two regions that may not overlap, `a` and `b`, with their offsets and ends.
APART_CHECKS = (
    Check(
        "regions_apart",
        lambda p, r: (r.a_end <= r.b_at) | (r.b_end <= r.a_at),
        "memory regions {r.a} and {r.b} overlap",
    ),
)

# r: EXTENT with the offset `region_at` and `region_bytes` of its region, whether it `may_wait`, and the `slices` of its
# block, 0 where there is none; p: the header with `shards`, the bytes of shards.bin.
EXTENT_CHECKS = (
    Check(
        "extent_shard",
        lambda p, r: (r.level < LEVELS) & (r.count >= 1) & (r.first + r.count <= r.slices),
        "extent {i} names a shard that does not exist",
    ),
    Check(
        "extent_file",
        lambda p, r: (
            (r.bytes > 0)
            & (r.bytes % BLOCK == 0)
            & (r.file_offset % BLOCK == 0)
            & within(r.file_offset, r.bytes, p.shards)
        ),
        "extent {i} lies outside shards.bin",
    ),
    Check(
        "extent_memory",
        lambda p, r: (
            (r.destination % BLOCK == 0)
            & (r.destination >= r.region_at)
            & (r.destination + r.bytes <= r.region_at + r.region_bytes)
        ),
        "extent {i} lies outside its memory region",
    ),
    Check(
        "extent_waits",
        lambda p, r: (r.wait_block >= -1) & (r.wait_block < r.block) & (r.may_wait | (r.wait_block == -1)),
        "extent {i} waits for block {r.wait_block}, but is itself of block {r.block}",
    ),
    Check(
        "extents_again",
        lambda p, r: np.add.accumulate(r.bytes) <= 3 * p.shards,
        "extents read the same bytes again and again",
    ),
    Check(
        "extent_order",
        lambda p, r: ~r.streamed | (r.wait_block < r.lowest),
        "extent {i} waits for a block that is loaded after it",
    ),
)
# r: a shard's record in an extent, with the place of both.
HELD_CHECKS = (
    Check(
        "extent_records",
        lambda p, r: (r.bytes > 0) & (r.offset >= r.extent_at) & (r.offset + r.bytes <= r.extent_at + r.extent_bytes),
        "extent {r.extent} does not hold slice {r.slice}",
    ),
    Check("extent_once", lambda p, r: ~r.again, "extent {r.extent} reads slice {r.slice} a second time"),
)


def needs(
    facts: SimpleNamespace, shapes: tuple[Shape, ...], dense: NDArray[Any], kept: NDArray[np.int64]
) -> dict[str, int]:
    """Bytes that the engine writes to each region, if so many slices of each block are kept.

    `facts` has the fields of HEADER and of MODEL and the bytes of `trunk` and `embeddings`; `shapes` are those of the
    blocks; `dense` is the table DENSE.
    """
    h, length = facts, facts.chunk
    tiles, vectors, hidden = pad(length, TILE) // TILE, 4 * TILE, pad(facts.hidden, TILE)
    cut = [(shape, int(slices)) for shape, slices in zip(shapes, kept, strict=True)]
    attention, ffn = max(s * x.attention_width for x, s in cut), max(s * x.ffn_width for x, s in cut)
    widest, groups = max(hidden, attention, ffn), 1
    if h.group:
        own = [s * -(-width // h.group) for x, s in cut for width in (x.attention_width, x.ffn_width)]
        groups = max(-(-hidden // h.group), *own)
    head = max([hidden, *(pad(int(rows), TILE) for rows in dense["rows"])])
    scratch = scratch_bytes(h.max_length, max(shape.head_dim for shape in shapes), bool(h.causal))
    return {
        "trunk": h.trunk,
        "preload": 0,
        "table": h.embeddings if h.table_resident else 0,
        "working": 0,
        "x": tiles * hidden * vectors,
        "y": tiles * hidden * vectors,
        "qkv": tiles * max(s * x.qkv_width for x, s in cut) * vectors,
        "context": tiles * attention * vectors,
        "ffn": tiles * max(s * x.up_width for x, s in cut) * vectors,
        "quantized": tiles * widest * TILE,
        "token_scale": tiles * groups * vectors,
        "token_sum": tiles * groups * vectors,
        "panel": h.threads * TILE * widest,
        "scratch": h.threads * scratch,
        "rows": length * h.row_stride,
        "staging": (h.row_lanes or h.lanes) * staging_bytes(h.hidden, h.row_stride),
        "ids": 4 * length,
        "types": 0 if h.causal else 4 * length,
        "head": 2 * head * vectors if h.dense else 0,
        "output": 0 if h.causal else 4 * h.output_features * (length if h.pooling == 0 else 1),
        "normed": tiles * hidden * vectors if h.causal else 0,
        "turns": tiles * h.rotaries * h.rotary_features * vectors,
        "cache": cache_bytes(shapes, h.max_length, CACHES[h.cache]),
        "logits": 4 * max(s * x.head_width for x, s in cut),
    }


def check_regions(
    facts: SimpleNamespace,
    shapes: tuple[Shape, ...],
    dense: NDArray[Any],
    regions: Regions,
    kept: NDArray[np.int64],
    refuse: Refuse,
) -> None:
    """The regions hold what is written to them under a plan that keeps so many slices of each block.

    `facts`, `shapes` and `dense` as in `needs`, with the plan's `arena_bytes` and the bytes of `shards`.
    """
    least = needs(facts, shapes, dense, kept)
    most = needs(facts, shapes, dense, np.array([shape.slices for shape in shapes]))
    most |= {"preload": 2 * facts.shards, "working": 2 * facts.shards}
    most["head"] = most["head"] or 8 * TILE * pad(facts.hidden, TILE)
    names = np.array(REGIONS, object)

    def column(values: Any) -> NDArray[Any]:
        return np.array([values[name] for name in REGIONS], object)

    offset, size = column({n: r[0] for n, r in regions.items()}), column({n: r[1] for n, r in regions.items()})
    table = Rows(
        name=names,
        offset=offset,
        bytes=size,
        least=column(least),
        most=column(most),
        read=np.isin(REGIONS, _READ_INTO),
        any_size=np.isin(REGIONS, _ANY_SIZE),
    )
    p = SimpleNamespace(arena=facts.arena_bytes, sum=sum(size), panel=least["panel"] // facts.threads)
    require(REGION_CHECKS, refuse, p, table)
    require(ARENA_CHECKS, refuse, p)
    apart = [(a, b) for a in _TRUSTED for b in REGIONS if a != b and regions[a][1] and regions[b][1]]
    require(APART_CHECKS, refuse, p, pairs(regions, apart))


def check_extents(
    header: SimpleNamespace,
    shapes: tuple[Shape, ...],
    extents: NDArray[Any],
    records: NDArray[Any],
    bits: NDArray[np.uint8],
    regions: Regions,
    refuse: Refuse,
) -> None:
    """Every planned record is read exactly once, into its place, and no byte is overwritten before its time.

    `shapes` are those of the blocks, `extents` is the table EXTENT of a plan, `records` RECORD (blocks, LEVELS, most
    slices), `bits` (blocks, most slices).
    """
    if header.resident_extents > header.extents:  # resident ones come first
        raise refuse("extents_resident", "it has more resident extents than extents")
    number = np.arange(len(extents))
    streamed = number >= header.resident_extents
    preload, working = regions["preload"], regions["working"]
    block = extents["block"].astype(np.int64)
    lowest = np.minimum.accumulate(block[::-1])[::-1] if len(block) else block
    slices_of = np.array([shape.slices for shape in shapes])
    rows = Rows(
        extents,
        region_at=np.where(streamed, np.array(working[0], object), np.array(preload[0], object)),
        region_bytes=np.where(streamed, np.array(working[1], object), np.array(preload[1], object)),
        may_wait=streamed & (not header.load_first),
        streamed=streamed,
        lowest=lowest,
        slices=np.where(block < len(shapes), slices_of[np.minimum(block, len(shapes) - 1)], 0),
    )
    require(EXTENT_CHECKS, refuse, header, rows)
    count = extents["count"].astype(np.int64)
    extent, first = np.repeat(number, count), np.repeat(np.cumsum(count) - count, count)
    slices = extents["first"].astype(np.int64)[extent] + np.arange(len(extent)) - first
    place = (block[extent], extents["level"].astype(np.int64)[extent], slices)
    key = np.ravel_multi_index(place, records.shape)
    again = np.ones(len(key), bool)
    again[np.unique(key, return_index=True)[1]] = False
    held = Rows(
        records[place],
        extent=extent,
        slice=slices,
        extent_at=extents["file_offset"][extent].astype(object),
        extent_bytes=extents["bytes"][extent].astype(object),
        again=again,
    )
    require(HELD_CHECKS, refuse, header, held)
    read = np.zeros(records.shape, bool)
    read[place] = True
    for number, slice_ in np.argwhere(bits > 0):
        for level in levels_of(int(bits[number, slice_]), bool(header.nested)):
            if not read[number, level, slice_]:
                raise refuse("shard_read", f"no extent reads block {number} level {level} slice {slice_}")
    resident = header.resident_extents
    _check_overlap(extents[:resident], 0, refuse)
    _check_overlap(extents[resident:], resident, refuse)


def _check_overlap(extents: NDArray[Any], first: int, refuse: Refuse) -> None:
    """No byte is overwritten before the block that uses it has been computed.

    The owner of a byte can change only where an extent begins or ends, so what this takes grows with the number of
    extents, not with the bytes that a plan claims for its region.
    """
    begin = extents["destination"].astype(np.uint64)
    end = begin + extents["bytes"].astype(np.uint64)
    edges = np.unique(np.concatenate([begin, end]))
    owners = np.full(len(edges), -1, np.int64)
    for number, (row, start, stop) in enumerate(
        zip(extents, np.searchsorted(edges, begin), np.searchsorted(edges, end), strict=True), first
    ):
        extent = fields(row)
        mine = owners[start:stop]
        if np.any(mine > extent.wait_block):
            raise refuse("extent_overwrites", f"extent {number} overwrites block {int(mine.max())} before its time")
        mine[:] = extent.block
