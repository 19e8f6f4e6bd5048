"""What layers on a GPU keep in its memory: regions of one state buffer, the codes table, a copy of the trunk.

A phone's GPU has no memory of its own, so all of it counts against the memory budget. `stic.compiler.memory.check`
verifies the regions without this code.
"""

from __future__ import annotations

from dataclasses import dataclass

from stic.compiler.memory.placement import Sizes
from stic.compiler.store import Store
from stic.runtime.format import ALIGN, BLOCK, REGION, TILE
from stic.runtime.gpu_format import (
    GPU,
    GPU_REGIONS,
    LAUNCH,
    MOST_LAUNCHES,
    PRECISION_BITS,
    GpuPrecision,
    codes_bytes,
    state_sizes,
)
from stic.runtime.layout import pad

# Attention takes as many query tiles at once as this holds, and at least one: the scores of all would grow with the
# square of the input, and more launches cost little once each has work for every core.
SCORES_BYTES = 1 << 20


@dataclass(frozen=True)
class GpuState:
    """The GPU's state buffer."""

    regions: dict[str, tuple[int, int]]  # GPU_REGIONS -> (offset, bytes)
    scores_tiles: int
    state_bytes: int


def gpu_state(z: Sizes, storage: GpuPrecision) -> GpuState:
    """Lay out the state for activations stored as `storage`; `ffn` lies over `qkv`, `context` and `scores`."""
    tiles = -(-z.max_length // TILE)
    scores_tiles = _scores_tiles(z, tiles)
    sizes = state_sizes(
        z.shapes[0], z.shapes[0].slices, z.max_length, PRECISION_BITS[storage], scores_tiles, z.row_stride
    )
    placed: dict[str, tuple[int, int]] = {}
    at = 0
    for name in ("x", "y", "quantized", "token_scale", "token_sum", "rows", "types", "qkv", "context", "scores"):
        placed[name] = (at, sizes[name])
        at = pad(at + sizes[name], BLOCK)
    shared = placed["qkv"][0]
    placed["ffn"] = (shared, sizes["ffn"])
    at = max(at, pad(shared + sizes["ffn"], BLOCK))
    return GpuState({name: placed[name] for name in GPU_REGIONS}, scores_tiles, at)


def _scores_tiles(z: Sizes, tiles: int) -> int:
    """Query tiles at a time: what SCORES_BYTES holds, spread evenly over the passes that this makes."""
    one = 4 * z.shapes[0].slices * z.shapes[0].heads_per_slice * TILE * TILE * tiles
    passes = -(-tiles // max(1, SCORES_BYTES // one))
    return -(-tiles // passes)


def gpu_index_bytes(layers: int) -> int:
    """Upper bound of what the GPU part adds to index.bin."""
    tables = GPU.itemsize + MOST_LAUNCHES * LAUNCH.itemsize + layers + len(GPU_REGIONS) * REGION.itemsize
    return pad(tables + 4 * ALIGN, BLOCK)  # between tables


def gpu_bytes(z: Sizes, store: Store, storage: GpuPrecision) -> int:
    """Memory that a plan holds beside everything else once any layer is on the GPU; a multiple of 4096."""
    held = gpu_state(z, storage).state_bytes + pad(z.trunk_bytes, BLOCK) + codes_bytes(store.blocks, store.most_slices)
    return held + gpu_index_bytes(store.blocks)
