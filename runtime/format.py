"""The package on disk. This docstring is the specification; `runtime/src/format.h` is its twin in C.

A package is a directory. All numbers are little-endian; CRC means CRC-32 as in zlib (ISO-HDLC polynomial).

    index.bin        header and tables, described below
    trunk.bin        what belongs to no shard: norms, biases, scales, positions, head
    embeddings.bin   one row a token id
    shards.bin       one record per (layer, level, slice)
    kernels.so       compiled kernels, plain C functions
    kernels.cl       kernels for a GPU, OpenCL C; only in packages with a GPU part
    plan.json        the plan and its predicted timeline, for people
    tokenizer.json   optional

**index.bin** starts with `HEADER`, whose fields say where the tables are (byte offsets into index.bin) and
how long:

    files     FILE     every other file of the package with its size and CRC. Sizes are checked at open, CRCs
                       before first use, except those of shards.bin and embeddings.bin, which go by record and row
    layers    LAYER    one a layer: slices kept, slices at full precision, offsets into the trunk
    bits      uint8    (layers, slices): planned bits of each shard, 0 = left out
    records   RECORD   (layers, LEVELS, slices): place of each record in shards.bin; bytes 0 = not in this package
    extents   EXTENT   resident ones first, then streamed ones in load order
    dense     DENSE    the head's linear maps
    regions   REGION   one for each of REGIONS: where the engine keeps what inside its one arena
    plans     PLAN     every plan of a plan family

`index_crc` is the CRC of index.bin with that field set to zero. A reader refuses another `major`, and any
`minor` above its own. A package says the least minor that it needs: 2 with a plan family, 1 with a GPU part, else 0.

**GPU part**, where `gpu_at` is not 0: which layers run on a GPU, and how; see `stic.runtime.gpu_format`.

**Plan family**, where `plans` is not 0: a table PLAN of so many entries, at least 2, at `plans_at`. Each is a plan of
the same model for another budget, with its own tables `bits` and `extents`; files, records, the trunk and the head
serve all. Entry 0 is the plan to run where no budget is given, and repeats the header. A plan's slices kept and slices
at full precision follow from its bits. All regions but `preload` and `working` are the same for all plans, and these
two come last, in this order, each at the next block: the arena of a plan, which ends with its `working`, is a prefix of
that of a larger one. A plan's resident extents are in ascending order of (layer, level), their destinations ascend, and
each is exactly the blocks that its records touch: what two plans keep resident can be moved in place from one to
another. A package with a GPU part has no family.

**Geometry.** pad16(n) rounds up to 16. H = hidden, HP = pad16(H), A = pad16(heads_per_slice * head_dim), FP
= pad16(neurons_per_slice). A shard has four matrices (N, K), padded with zeros: qkv (3A, HP), rows q | k | v, each
padded to A; out (HP, A); up (FP, HP); down (HP, FP).

**Blocks.** Codes are stored as kernels walk through them: 16 rows make a block, and inside it `interleave` = q (4 or
8) neighbouring columns of a row lie together, (K/q, 16, q). The code of row n and column k is at `position`

    (k // q) * 16 * q + (n % 16) * q + k % q

of its block n // 16, and the blocks follow one another (`stic.runtime.blocks`).

**Levels.** Level 0 holds 2 bits, levels 1..6 hold 3..8 bits, level 7 full precision (`full_bits`: 16 or 32; 0 where
no plan of the package uses it, and then no record is of level 7). In a nested store a shard at b bits reads levels
0..b-2; otherwise (`nested` = 0) it reads level b-2 alone, whose record then holds all b planes. Level 7 is always read
alone.

**Record** of levels 0..6: parts in this order, each starting at a multiple of 64 bytes from the record's
start, zeros between:

    planes    for each matrix in turn, its planes of this level, most significant first, N*K/8 bytes each; code i,
              counted through the blocks, is bit i%8 of byte i/8
    tables    for each matrix in turn, 2^bits int8: the value of each code, at most 127 in magnitude
    blocks    (level 0, or any level that is not nested) for each matrix in turn, uint32 (N/16 + 1): first outlier
              entry of each block of 16 rows, counted from the matrix's first entry
    outliers  for each matrix in turn its entries {uint16 position in the block; float16 value}, a block's entries
              in ascending order of position. The code at an outlier is 2^(bits-1)

A record of level 7 holds for each matrix in turn (N, K) float16 or float32, row by row. A record's size is a multiple
of 64. The stored records of one (layer, level) are neighbouring slices, contiguous in their order, and share no block
of 4096 bytes with other records, so that a range of slices is one read. What no plan of the package reads may be
absent.

**Arithmetic.** weight[n, k] = scale[n] * table[code[n, k]], except at outliers, where it is the entry's
value: products take every code as it is, and the outliers then add value - scale[n] * table[2^(bits-1)]. `scale`
(float32, in the trunk) belongs to a row of a slice for qkv and up, and to a row of the whole layer for out and down.
`stic.runtime.reference` is the normative use of it.

**Row** of embeddings.bin, `row_stride` bytes apart: H values of `row_type`, zeros to a multiple of 4, for int8 the
float32 scale that they are multiplied with, uint32 CRC of what precedes. A row never straddles a 4096-byte block unless
it is longer than one, and then starts at one.

**Positions.** Token t has position row t. Where `padding` is not 0, tokens whose id is padding - 1 have position row
max_length, and row t belongs to the t-th of the others, counted from 0.

**Trunk**: tensors at multiples of 64 bytes. position float16 (max_length, or max_length + 1 where `padding` is not 0,
HP), token_type float16 (max(types, 1), HP), embedding gamma and beta float32 (HP); per layer float32: qkv_scale,
qkv_bias (slices, 3A), out_scale, out_bias (HP), up_scale, up_bias (slices, FP), down_scale, down_bias (HP), two norms'
gamma and beta (HP); head: weight float16 (pad16(out), pad16(in)), bias float32 (pad16(out)).

Every tensor's numbers are finite, as are a row's scale, weights of level 7 and outliers. Layers that are left out have
their tensors as well.

**Names** of files are printable ASCII without a slash or space, do not start with a dot, and end with zeros; no two are
the same. Tables of index.bin start at multiples of 8.

**Extent**: slices first .. first+count-1 of one (layer, level), read from `file_offset` (multiple of 4096)
for `bytes` (multiple of 4096; shards.bin and embeddings.bin are padded with zeros to one) to arena offset
`destination` (multiple of 4096). A streamed extent may be read only when layer `wait_layer` has been computed
(-1: at once), because it reuses that layer's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

MAGIC = b"STICPKG\0"
# 1: a package may have a GPU part; 2: a plan family; 3: lanes for embedding rows; 4: padding; 5: float16 embedding rows
MAJOR, MINOR = 2, 5
BLOCK = 4096  # alignment of everything that is read with O_DIRECT
ALIGN = 64  # alignment of everything a kernel loads from
TILE = 16  # tokens in a tile, rows in a block
INTERLEAVES = (4, 8)  # columns of a row that may lie together
LEVEL_BITS = (2, 3, 4, 5, 6, 7, 8)
LEVELS = len(LEVEL_BITS) + 1
FULL = LEVELS - 1  # level of full precision
MATRICES = ("qkv", "out", "up", "down")

ARCHITECTURES = ("x86_64", "aarch64")
Activation = Literal["gelu", "gelu_tanh", "relu"]  # of feed-forward networks
ACTIVATIONS = ("none", *get_args(Activation), "tanh")  # of the head's linear maps
Pooling = Literal["tokens", "first", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ROW_TYPES = ("int8", "float16")  # of the values of an embedding row
# Bit i of HEADER.features: an instruction set extension without which the kernels must not run.
FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_vbmi",
    "asimd",
    "asimddp",
    "gfni",
    "avx_vnni",
    "i8mm",
)

# What the engine keeps in its arena. Tiles = ceil(max_length / 16); S = most slices kept by any layer.
REGIONS = (
    "trunk",  # trunk.bin
    "preload",  # resident extents
    "table",  # embeddings.bin, when resident
    "working",  # streamed extents
    "x",  # float32 (tiles, HP, 16): hidden states
    "y",  # float32 (tiles, HP, 16): output of a projection
    "qkv",  # float32 (tiles, S * 3A, 16)
    "context",  # float32 (tiles, S * A, 16)
    "ffn",  # float32 (tiles, S * FP, 16)
    "quantized",  # int8 (tiles, K / q, 16, q), K = max(HP, S * A, S * FP)
    "token_scale",  # float32 (tiles, 16)
    "token_sum",  # int32 (tiles, 16)
    "panel",  # a thread: 16 * K bytes
    "scratch",  # a thread: sums of outliers, attention's working memory: see `scratch_bytes`
    "rows",  # embedding rows of the input, (max_length, row_stride)
    "staging",  # a lane that reads rows: one block-aligned row read
    "ids",  # int32 (max_length): token ids
    "types",  # int32 (max_length): token types
    "head",  # float32 2 * (widest head layer, 16)
    "output",  # float32: max_length * features, or features
)
# What a plan decides about; the other regions are the same for all plans of a package.
WEIGHT_REGIONS = ("preload", "working")

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("major", "<u4"),
        ("minor", "<u4"),
        ("index_bytes", "<u4"),
        ("index_crc", "<u4"),
        ("architecture", "<u4"),  # index into ARCHITECTURES
        ("features", "<u4"),  # bit set over FEATURES
        ("hidden", "<u4"),
        ("heads_per_slice", "<u4"),
        ("head_dim", "<u4"),
        ("slices", "<u4"),
        ("layers", "<u4"),
        ("neurons_per_slice", "<u4"),
        ("vocabulary", "<u4"),
        ("max_length", "<u4"),  # longest input this package was compiled for, tokens
        ("types", "<u4"),  # rows of the token type table; 0: the model has none
        ("row_stride", "<u4"),  # bytes between rows of embeddings.bin
        ("nested", "<u4"),
        ("full_bits", "<u4"),  # 0: no level 7
        ("pooling", "<u4"),  # index into POOLINGS
        ("normalize", "<u4"),  # 1: the output vector is scaled to length 1
        ("output_features", "<u4"),
        ("threads", "<u4"),  # compute threads the arena has room for
        ("lanes", "<u4"),  # IO lanes that read extents
        ("request_bytes", "<u4"),  # an extent is read in requests of at most this size
        ("stack_bytes", "<u4"),  # stack of every thread the engine starts
        ("table_resident", "<u4"),  # 1: embeddings.bin is held in region `table`
        ("position_at", "<u4"),  # offsets into the trunk
        ("token_type_at", "<u4"),
        ("embedding_gamma_at", "<u4"),
        ("embedding_beta_at", "<u4"),
        ("files_at", "<u4"),  # offsets into index.bin, and lengths
        ("files", "<u4"),
        ("layers_at", "<u4"),
        ("bits_at", "<u4"),
        ("records_at", "<u4"),
        ("extents_at", "<u4"),
        ("extents", "<u4"),
        ("resident_extents", "<u4"),
        ("dense_at", "<u4"),
        ("dense", "<u4"),
        ("regions_at", "<u4"),
        ("arena_bytes", "<u8"),
        ("claimed_bytes", "<u8"),  # the plan's claim: arena, index, stacks, code, what the GPU keeps
        ("deadline_us", "<u4"),  # 0: none
        ("predicted_us", "<u4"),
        ("load_first", "<u4"),  # 1: read everything before computing anything; then no extent waits for a layer
        ("interleave", "<u4"),  # q, one of INTERLEAVES
        ("cores", "<u8"),  # bit i: compute threads should run on processor i; 0: on any
        ("gpu_at", "<u4"),  # offset of the GPU part (gpu_format.GPU), a multiple of 4; 0: none
        ("plans_at", "<u4"),
        ("plans", "<u4"),  # of a plan family; 0: the header's plan is the only one
        ("row_lanes", "<u4"),  # IO lanes that read embedding rows, `lanes` of which read extents; 0: as many
        ("padding", "<u4"),  # token id + 1 that positions skip; 0: none
        ("row_type", "<u4"),  # index into ROW_TYPES
    ]
)
FILE = np.dtype([("name", "S32"), ("bytes", "<u8"), ("crc", "<u4"), ("reserved", "<u4")])
LAYER = np.dtype(
    [
        ("slices", "<u4"),  # slices kept; 0: the layer is left out
        ("full", "<u4"),  # the first `full` of them are at full precision
        ("qkv_scale_at", "<u4"),
        ("qkv_bias_at", "<u4"),
        ("out_scale_at", "<u4"),
        ("out_bias_at", "<u4"),
        ("attention_gamma_at", "<u4"),
        ("attention_beta_at", "<u4"),
        ("up_scale_at", "<u4"),
        ("up_bias_at", "<u4"),
        ("down_scale_at", "<u4"),
        ("down_bias_at", "<u4"),
        ("ffn_gamma_at", "<u4"),
        ("ffn_beta_at", "<u4"),
    ]
)
RECORD = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc", "<u4")])
EXTENT = np.dtype(
    [
        ("file_offset", "<u8"),
        ("destination", "<u8"),
        ("bytes", "<u4"),
        ("layer", "<u2"),
        ("level", "<u2"),
        ("first", "<u2"),
        ("count", "<u2"),
        ("wait_layer", "<i4"),
    ]
)
DENSE = np.dtype(
    [
        ("rows", "<u4"),  # features out
        ("columns", "<u4"),  # features in
        ("activation", "<u4"),  # index into ACTIVATIONS
        ("weight_at", "<u4"),
        ("bias_at", "<u4"),
        ("reserved", "<u4"),
    ]
)
REGION = np.dtype([("offset", "<u8"), ("bytes", "<u8")])
PLAN = np.dtype(
    [
        ("bits_at", "<u4"),  # what the header's fields of these names say of plan 0
        ("extents_at", "<u4"),
        ("extents", "<u4"),
        ("resident_extents", "<u4"),
        ("load_first", "<u4"),
        ("deadline_us", "<u4"),
        ("predicted_us", "<u4"),
        ("reserved", "<u4"),  # zero
        ("arena_bytes", "<u8"),
        ("claimed_bytes", "<u8"),
        ("preload", REGION),  # the plan's place of these regions
        ("working", REGION),
        ("quality", "<f8"),  # finite; more is better; comparable within a family only
    ]
)

# Bounds that keep every product of sizes far from overflow; a package beyond them is refused.
LIMITS = {
    "architecture": len(ARCHITECTURES) - 1,
    "features": (1 << len(FEATURES)) - 1,
    "hidden": 4096,
    "heads_per_slice": 256,
    "head_dim": 1024,
    "slices": 256,
    "layers": 256,
    "neurons_per_slice": 4096,
    "vocabulary": 1 << 22,
    "max_length": 4096,
    "types": 64,
    "row_stride": 1 << 15,
    "row_type": len(ROW_TYPES) - 1,
    "nested": 1,
    "pooling": len(POOLINGS) - 1,
    "normalize": 1,
    "threads": 64,
    "lanes": 16,
    "row_lanes": 16,
    "files": 16,
    "extents": 1 << 20,  # of all plans together
    "plans": 64,
    "dense": 8,
    "output_features": 1 << 16,
    "request_bytes": 1 << 24,
    "stack_bytes": 1 << 23,
    "table_resident": 1,
    "load_first": 1,
}
# The least of these; that of the others is 0.
LEAST = {
    "hidden": 1,
    "heads_per_slice": 1,
    "head_dim": 1,
    "slices": 1,
    "layers": 1,
    "neurons_per_slice": 1,
    "vocabulary": 1,
    "max_length": 1,
    "row_stride": 1,
    "threads": 1,
    "lanes": 1,
    "files": 5,
    "output_features": 1,
    "request_bytes": BLOCK,
    "stack_bytes": 1 << 14,  # PTHREAD_STACK_MIN of glibc on x86-64
}


def offset_of(structure: np.dtype[np.void], field: str) -> int:
    """Bytes that lie before a field of one of the structures above."""
    if structure.fields is None:
        raise KeyError(field)
    return structure.fields[field][1]


def pad(n: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-n // multiple) * multiple


def scratch_bytes(max_length: int, head_dim: int) -> int:
    """Bytes of a thread's share of region `scratch`, for T = pad16(max_length) keys and D = pad16(head_dim).

    What outliers add to a block of rows: float32 (T, 16). Then what attention keeps: float32 (T, 16) scores, (T) and
    (2 D), int8 (T, D) keys, (T, D) values, (T, 16) weights and (D, 16) queries.
    """
    keys, width = pad(max_length, TILE), pad(head_dim, TILE)
    attention = 4 * (keys * (TILE + 1) + 2 * width) + 2 * keys * width + TILE * (keys + width)
    return 4 * keys * TILE + attention


def levels_of(bits: int, nested: bool) -> tuple[int, ...]:
    """Levels that a shard at `bits` reads, in load order; bits 16 and 32 mean level 7, 0 means none."""
    if bits == 0:
        return ()
    if bits in (16, 32):
        return (FULL,)
    level = LEVEL_BITS.index(bits)
    return tuple(range(level + 1)) if nested else (level,)


def planes_in(level: int, nested: bool) -> int:
    """Planes that a record of `level` (0..6) holds."""
    bits = LEVEL_BITS[level]
    return (2 if level == 0 else 1) if nested else bits


@dataclass(frozen=True)
class Shape:
    """Padded sizes of one shard's matrices."""

    hidden: int
    heads_per_slice: int
    head_dim: int
    neurons_per_slice: int

    @property
    def padded_hidden(self) -> int:
        return pad(self.hidden, TILE)

    @property
    def attention_width(self) -> int:
        return pad(self.heads_per_slice * self.head_dim, TILE)

    @property
    def ffn_width(self) -> int:
        return pad(self.neurons_per_slice, TILE)

    def matrix(self, name: str) -> tuple[int, int]:
        """(N, K) of one of MATRICES."""
        h, a, f = self.padded_hidden, self.attention_width, self.ffn_width
        return {"qkv": (3 * a, h), "out": (h, a), "up": (f, h), "down": (h, f)}[name]


@dataclass(frozen=True)
class RecordLayout:
    """Byte offsets inside a record, by matrix in the order of MATRICES."""

    planes: tuple[tuple[int, ...], ...]  # [matrix][plane]; level 7: [matrix][0] is the weight
    tables: tuple[int, ...]  # empty at level 7
    blocks: tuple[int, ...]  # empty where the record holds no outliers
    outliers: tuple[int, ...]
    size: int


def record_layout(
    shape: Shape, level: int, nested: bool, full_bits: int = 0, outliers: tuple[int, ...] = (0, 0, 0, 0)
) -> RecordLayout:
    """Lay out one record; `outliers` counts the entries of each matrix."""
    at = 0

    def place(size: int) -> int:
        nonlocal at
        start = at
        at = pad(at + size, ALIGN)
        return start

    sizes = [shape.matrix(name) for name in MATRICES]
    if level == FULL:
        weights = tuple((place(n * k * full_bits // 8),) for n, k in sizes)
        return RecordLayout(weights, (), (), (), at)
    planes = tuple(tuple(place(n * k // 8) for _ in range(planes_in(level, nested))) for n, k in sizes)
    tables = tuple(place(1 << LEVEL_BITS[level]) for _ in sizes)
    if nested and level > 0:
        return RecordLayout(planes, tables, (), (), at)
    blocks = tuple(place(4 * (n // TILE + 1)) for n, _ in sizes)
    entries = tuple(place(4 * count) for count in outliers)
    return RecordLayout(planes, tables, blocks, entries, at)


def row_bytes(hidden: int, row_type: str) -> int:
    """Bytes of an embedding row whose values are of one of ROW_TYPES: values, scale, CRC."""
    return pad(2 * hidden, 4) + 4 if row_type == "float16" else pad(hidden, 4) + 8


def row_stride(hidden: int, row_type: str = "int8") -> int:
    """Bytes between embedding rows: a power of two up to a block, then whole blocks."""
    size = row_bytes(hidden, row_type)
    return 1 << (size - 1).bit_length() if size <= BLOCK else pad(size, BLOCK)
