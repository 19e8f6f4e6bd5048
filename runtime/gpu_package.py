"""Read the GPU part of a package; what is out of bounds is refused with a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.checks import Check, Refuse, Rows, pairs, require, within
from stic.runtime.format import BLOCK, REGION, TILE
from stic.runtime.gpu_format import (
    GPU,
    GPU_REGIONS,
    GPU_STYLES,
    LAUNCH,
    MOST_LAUNCHES,
    PLACES,
    PRECISION_BITS,
    PROGRAM_FILE,
    GpuPrecision,
    Style,
    state_sizes,
)
from stic.runtime.layout import Shape, pad

_SHARED = {frozenset(("ffn", name)) for name in ("qkv", "context", "scores")}  # may lie over each other
_MOST_GROUP, _MOST_UNITS, _MOST_LOCAL_BYTES = 1024, 1 << 20, 1 << 20
_MOST_BYTES = 1 << 31  # that a kernel can index

# p: the GPU structure with `size` of index.bin, `blocks` of the model and the bytes of kernels.cl, `program`.
PART_CHECKS = (
    Check(
        "gpu_fields",
        lambda p: p.storage_bits in PRECISION_BITS.values() and p.style < len(GPU_STYLES) and p.fallback <= 1,
        "its GPU part has {p.storage_bits}-bit storage, style {p.style}, fallback {p.fallback}",
    ),
    Check("gpu_reserved", lambda p: not any(p.reserved), "a reserved field of its GPU part is set"),
    Check(
        "gpu_launches",
        lambda p: p.launches <= MOST_LAUNCHES,
        f"its GPU part has {{p.launches}} launches, at most {MOST_LAUNCHES} are allowed",
    ),
    Check(
        "gpu_tables",
        lambda p: (
            p.launches_at % 4 == p.places_at % 4 == p.state_at % 4 == 0
            and within(p.launches_at, p.launches * LAUNCH.itemsize, p.size)
            and within(p.places_at, p.blocks, p.size)
            and within(p.state_at, len(GPU_REGIONS) * REGION.itemsize, p.size)
        ),
        "a table of the GPU part lies outside index.bin",
    ),
    Check("gpu_program", lambda p: p.program is not None, f"it has a GPU part, but lists no {PROGRAM_FILE}"),
    Check("gpu_program_size", lambda p: 1 <= p.program <= 1 << 26, f"{PROGRAM_FILE} has {{p.program}} bytes"),
    Check(
        "gpu_weights",
        lambda p: p.preload[0] == 0 and p.working[0] == pad(p.preload[1], BLOCK),
        "its weights are not one stretch: preload at {p.preload[0]}, working at {p.working[0]}",
    ),
    Check(
        "gpu_weights_size",
        lambda p: (
            p.trunk < _MOST_BYTES and pad(p.preload[1], BLOCK) + pad(p.working[1], BLOCK) < _MOST_BYTES - 2 * BLOCK
        ),
        "its weights are more than a GPU kernel can index",
    ),
)
# r: LAUNCH with the `text` of its name.
LAUNCH_CHECKS = (
    Check(
        "launch_name",
        lambda p, r: [0 < len(t) < LAUNCH["name"].itemsize and all(0x20 < b < 0x7F for b in t) for t in r.text],
        "the name of GPU launch {i} is empty, has no end, or cannot be read",
    ),
    Check(
        "launch_twice",
        lambda p, r: [list(r.text).count(text) == 1 for text in r.text],
        "kernel {r.text} is launched in two ways",
    ),
    Check(
        "launch_axes",
        lambda p, r: ((r.local >= 1) & (r.local <= _MOST_GROUP) & (r.group >= 1) & (r.group <= _MOST_UNITS)).all(
            axis=1
        ),
        "kernel {r.text} has work-groups of {r.local} items for {r.group} units",
    ),
    Check(
        "launch_group",
        lambda p, r: (r.local.prod(axis=1) <= _MOST_GROUP) & (r.local_bytes <= _MOST_LOCAL_BYTES) & (r.reserved == 0),
        "kernel {r.text} has work-groups of {r.local} items and {r.local_bytes} bytes of local memory",
    ),
)
# r: a layer's `place` and the `slices` it keeps.
PLACE_CHECKS = (
    Check(
        "gpu_layer",
        lambda p, r: (r.place < len(PLACES)) & ((r.slices > 0) | (r.place == 0)),
        "layer {i} of {r.slices} slices has place {r.place}",
    ),
)
# p: the GPU structure with `tiles` of the longest input and the number of layers `on_gpu`.
SCORES_CHECKS = (
    Check("gpu_any_layer", lambda p: p.on_gpu > 0, "its GPU part places no layer on the GPU"),
    Check(
        "gpu_scores",
        lambda p: 1 <= p.scores_tiles <= p.tiles,
        "its GPU part has room for the scores of {p.scores_tiles} tiles",
    ),
)
# r: a region's `name`, `offset`, `bytes` and what it `needs`.
STATE_CHECKS = (
    Check(
        "state_place",
        lambda p, r: (
            (r.offset % BLOCK == 0)
            & within(r.offset, r.bytes, p.state_bytes)
            & (r.bytes >= r.needs)
            & (r.bytes <= r.needs + BLOCK)
            & (r.needs < _MOST_BYTES)
        ),
        "region {r.name} of the GPU's state lies wrong: {r.bytes} bytes at {r.offset}",
    ),
)
# p: the GPU structure with the `sum` of its regions; r: two regions that may not overlap.
APART_CHECKS = (
    Check(
        "state_apart",
        lambda p, r: (r.a_end <= r.b_at) | (r.b_end <= r.a_at),
        "regions {r.a} and {r.b} of the GPU's state overlap",
    ),
)
SIZE_CHECKS = (
    Check(
        "state_size",
        lambda p: p.state_bytes <= p.sum,
        "{p.state_bytes} bytes of GPU state for regions of {p.sum}",
    ),
)


@dataclass(frozen=True, eq=False)
class GpuPart:
    """Where a package's layers run, and what the GPU needs for its own."""

    style: Style
    storage: GpuPrecision
    fallback: bool
    launches: NDArray[Any]  # LAUNCH
    places: tuple[str, ...]  # of PLACES, one a layer
    regions: Mapping[str, tuple[int, int]]  # name -> (offset, bytes) in the state buffer
    scores_tiles: int
    state_bytes: int


def read_gpu(
    index: bytes,
    header: SimpleNamespace,
    shape: Shape,
    kept: NDArray[Any],
    sizes: Mapping[str, int],
    regions: Mapping[str, tuple[int, int]],
    refuse: Refuse,
) -> GpuPart:
    """Parse the GPU part that `header` leads to; `refuse` makes the error.

    `kept` has the slices that each layer keeps, `sizes` the bytes of each file, `regions` the arena's regions.
    """
    if header.gpu_at % 4 or header.gpu_at + GPU.itemsize > len(index):
        raise refuse("gpu_place", "the GPU part lies outside index.bin")
    row = np.frombuffer(index, GPU, 1, header.gpu_at)[0]
    part = SimpleNamespace(**{name: row[name].tolist() for name in GPU.names or ()})
    part.size, part.blocks, part.trunk, part.program = (
        len(index),
        header.blocks,
        sizes["trunk.bin"],
        sizes.get(PROGRAM_FILE),
    )
    part.preload, part.working = regions["preload"], regions["working"]
    require(PART_CHECKS, refuse, part)
    launches = np.frombuffer(index, LAUNCH, part.launches, part.launches_at)
    names = np.array([name.split(b"\0")[0] for name in launches["name"]], object)
    require(LAUNCH_CHECKS, refuse, part, Rows(launches, text=names))
    places = np.frombuffer(index, np.uint8, header.blocks, part.places_at)
    require(PLACE_CHECKS, refuse, part, Rows(place=places, slices=kept))
    part.on_gpu, part.tiles = int(np.count_nonzero(places)), pad(header.max_length, TILE) // TILE
    require(SCORES_CHECKS, refuse, part)
    rows = np.frombuffer(index, REGION, len(GPU_REGIONS), part.state_at)
    placed = {name: (int(row["offset"]), int(row["bytes"])) for name, row in zip(GPU_REGIONS, rows, strict=True)}
    needed = state_sizes(
        shape, int(np.max(kept)), header.max_length, part.storage_bits, part.scores_tiles, header.row_stride
    )
    _check_state(part, rows, placed, needed, refuse)
    storage = {bits: name for name, bits in PRECISION_BITS.items()}[part.storage_bits]
    return GpuPart(
        GPU_STYLES[part.style],
        storage,
        bool(part.fallback),
        launches,
        tuple(PLACES[place] for place in places),
        placed,
        part.scores_tiles,
        part.state_bytes,
    )


def _check_state(
    part: SimpleNamespace,
    rows: NDArray[Any],
    placed: Mapping[str, tuple[int, int]],
    needed: Mapping[str, int],
    refuse: Refuse,
) -> None:
    """Every region is large enough, aligned, inside the buffer, and apart from the others."""
    names = np.array(GPU_REGIONS, object)
    needs = np.array([needed[name] for name in GPU_REGIONS], object)
    require(STATE_CHECKS, refuse, part, Rows(rows, name=names, needs=needs))
    require(
        APART_CHECKS, refuse, part, pairs(placed, [p for p in combinations(placed, 2) if frozenset(p) not in _SHARED])
    )
    part.sum = sum(size + BLOCK for _, size in placed.values())
    require(SIZE_CHECKS, refuse, part)
