"""The GPU part of a package: layers placed on a GPU, their kernels, and what they keep in the GPU's memory.

It stands in index.bin as one `GPU` structure at HEADER.gpu_at; `runtime/src/format.h` is its twin in C. Its fields
lead to three tables, each at an offset into index.bin that is a multiple of 4:

    launches  LAUNCH  how each kernel of kernels.cl is started
    places    uint8   one a layer, an index into PLACES; a layer that is left out has 0
    state     REGION  one for each of GPU_REGIONS: where it lies inside the GPU's state buffer

**Kernels** come as text, since every driver compiles for its own device. kernels.cl is compiled with two definitions,
STIC_DOT and STIC_WIDTHS, that its first lines explain. Every package also has the kernels of its CPU, and the head
always runs there; the embedding runs where the first layer that is kept does.

**Weights** are read by GPU kernels from the bytes of regions `preload` and `working`. In a package with a GPU part
`preload` starts at arena offset 0, and `working` at the next multiple of 4096 behind its end: that stretch is one
buffer, which the GPU and the IO lanes share.

**State** is one buffer of `state_bytes`; regions start at multiples of 4096 and do not overlap, except that `ffn` may
lie over `qkv`, `context` and `scores`, which are dead by then. The codes table (CODES_BYTES for each matrix of each
slice) and a copy of trunk.bin are kept beside it.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from stic.runtime.format import BLOCK, MATRICES, TILE
from stic.runtime.layout import Shape, pad

Style = Literal["mali", "adreno"]
GpuPrecision = Literal["float16", "float32"]
GPU_STYLES: tuple[Style, ...] = get_args(Style)  # families of GPUs: without and with local memory of their own
PRECISION_BITS: dict[GpuPrecision, int] = {"float16": 16, "float32": 32}  # of stored activations
Place = Literal["cpu", "gpu"]
PLACES: tuple[Place, ...] = get_args(Place)
GpuArithmetic = Literal["float", "int8"]  # of products: kernels.cl has both
MOST_LAUNCHES = 64
CODES_BYTES = 48  # of the codes table, for each matrix of each slice of each layer
PROGRAM_FILE = "kernels.cl"

# Shapes as in format.REGIONS; S = float16 or float32 by `storage_bits`; M = most slices kept by any layer.
GPU_REGIONS = (
    "x",  # S (tiles, HP, 16): hidden states
    "y",  # float32 (tiles, HP, 16): output of a projection
    "qkv",  # S (tiles, M * 3A, 16)
    "context",  # S (tiles, M * A, 16)
    "ffn",  # S (tiles, M * FP, 16)
    "quantized",  # int8 (tiles, K / 4, 16, 4), K = max(HP, M * A, M * FP)
    "token_scale",  # float32 (tiles, 16)
    "token_sum",  # int32 (tiles, 16)
    "scores",  # float32 (M * heads_per_slice, scores_tiles, 16 * tiles, 16): attention, so many query tiles at a time
    "rows",  # embedding rows of the input, (max_length, row_stride)
    "types",  # int32 (max_length): token types
)

GPU = np.dtype(
    [
        ("storage_bits", "<u4"),  # 16 or 32: stored activations
        ("style", "<u4"),  # index into GPU_STYLES: what kernels.cl was written for
        ("fallback", "<u4"),  # 1: where the GPU fails, its layers may run on the CPU and the plan still holds
        ("launches_at", "<u4"),
        ("launches", "<u4"),
        ("places_at", "<u4"),
        ("state_at", "<u4"),
        ("scores_tiles", "<u4"),  # query tiles that region `scores` has room for
        ("state_bytes", "<u8"),
        ("reserved", "<u4", (4,)),  # zero
    ]
)
LAUNCH = np.dtype(
    [
        ("name", "S24"),
        ("local", "<u4", (3,)),  # work-items of a work-group along each axis; 1 along axes that are not used
        ("group", "<u4", (3,)),  # units of work of one work-group along each axis
        ("local_bytes", "<u4"),  # local memory of a work-group
        ("reserved", "<u4"),  # zero
    ]
)


def state_sizes(
    shape: Shape, slices: int, max_length: int, storage_bits: int, scores_tiles: int, row_stride: int
) -> dict[str, int]:
    """Bytes of each of GPU_REGIONS for layers of at most `slices` slices, as the comments above define them."""
    tiles = -(-max_length // TILE)
    hidden, attention, ffn = shape.padded_hidden, slices * shape.attention_width, slices * shape.ffn_width
    stored, single = tiles * TILE * storage_bits // 8, tiles * TILE * 4  # one feature of every token
    return {
        "x": hidden * stored,
        "y": hidden * single,
        "qkv": 3 * attention * stored,
        "context": attention * stored,
        "ffn": ffn * stored,
        "quantized": max(hidden, attention, ffn) * tiles * TILE,
        "token_scale": single,
        "token_sum": single,
        "scores": slices * shape.heads_per_slice * scores_tiles * TILE * single,
        "rows": max_length * row_stride,
        "types": 4 * max_length,
    }


def codes_bytes(layers: int, slices: int) -> int:
    """Bytes of the codes table, whole blocks."""
    return pad(CODES_BYTES * len(MATRICES["layer"]) * layers * slices, BLOCK)
