"""The package on disk. This docstring is the specification; `runtime/src/format.h` is its twin in C.

A package is a directory. All numbers are little-endian; CRC means CRC-32 as in zlib (ISO-HDLC polynomial).

    index.bin        header and tables, described below
    trunk.bin        what belongs to no shard: norms, biases, scales, positions, head
    embeddings.bin   one row a token id; empty where rows are tied
    shards.bin       one record per (block, level, slice)
    kernels.so       compiled kernels, plain C functions
    kernels.cl       kernels for a GPU, OpenCL C; only in packages with a GPU part
    plan.json        the plan and its predicted timeline, for people
    tokenizer.json   optional

**index.bin** starts with `HEADER`, whose fields say where the tables are (byte offsets into index.bin) and
how long:

    model     MODEL    one entry: what is computed
    files     FILE     every other file of the package with its size and CRC. Sizes are checked at open, CRCs
                       before first use, except those of shards.bin and embeddings.bin, which go by record and row
    shapes    SHAPE    how a block is cut, and the sizes of its slices; many blocks share one
    blocks    BLOCK    one a block, in the order of computation: its shape, and offsets into the trunk
    records   RECORD   for each block in turn (LEVELS, slices): place of each record in shards.bin; bytes 0 = not in
                       this package
    dense     DENSE    the head's linear maps, of encoders
    regions   REGION   one for each of REGIONS: where the engine keeps what inside its one arena; those of
                       WEIGHT_REGIONS are zeros here, since each plan has its own
    plans     PLAN     at least one; the first is the plan to run where no budget is given
    (a plan)  uint8    planned bits of each shard, for each block in turn (slices), 0 = left out
    (a plan)  EXTENT   resident ones first, then streamed ones in load order

`index_crc` is the CRC of index.bin with that field set to zero. A reader refuses another `major`, and any
`minor` above its own. A package says the least minor that it needs: 1 for decoders whose rows are tied or may straddle
blocks, else 0.

**Plans** are of the same model, each for another budget, with its own bits and extents; files, records, the trunk and
the head serve all. Of a block a plan keeps the first slices, at bits that do not increase; only blocks of kind layer
may keep fewer than all. What is kept, and what of it at full precision, follows from the bits. All regions but
`preload` and `working` are the same for all plans. Where there are several plans, a plan family, these two come last,
in this order, each at the next block: the arena of a plan, which ends with its `working`, is a prefix of that of a
larger one. A family's resident extents are in ascending order of (block, level), their destinations ascend, and each
is exactly the blocks of 4096 bytes that its records touch: what two plans keep resident can be moved in place from one
to another.

**GPU part**, where `gpu_at` is not 0: which blocks run on a GPU, and how; see `stic.runtime.gpu_format`. Such a package
has one plan, and blocks of kind layer.

**Two kinds of models.** An encoder (`causal` = 0) has blocks of kind layer, no groups, and `chunk` = `max_length`. A
decoder (`causal` = 1) has blocks of the other kinds, of which the last one, and no other, is of kind vocabulary, and a
store in groups; `max_length` is its context, `chunk` the most tokens that are computed at once.

**Blocks.** pad16(n) rounds up to 16. HP = pad16(hidden), A = pad16(heads_per_slice * head_dim), C =
pad16(key_heads_per_slice * head_dim), F = pad16(neurons_per_slice), R = pad16(rows_per_slice). Matrices of a slice
(N, K), padded with zeros, by kind:

    layer          qkv (A + 2C, HP), out (HP, A), up (F, HP), down (HP, F); as many key heads as heads
    attention      qkv (A + 2C, HP), out (HP, A); heads_per_slice is a multiple of key_heads_per_slice, whose queries
                   stand together in their order
    feed_forward   up (2F if gated, else F; HP), down (HP, F)
    vocabulary     head (R, HP)

Rows of qkv are q | k | v, padded to A, C and C; those of a gated up are gate | up, padded to F each. Fields of SHAPE
that a kind does not name are 0. The last slices of neurons or of rows may have fewer than others, down to none; the
vocabulary has `output_features` rows in all. A `parallel` feed-forward block follows an attention block and reads what
that one read. `rotary` is 1 + the table that queries and keys turn by, 0: they do not turn; `window` the tokens that a
token attends to, itself included, 0: all before it; `softcap` c > 0 makes scores, or logits, s into c tanh(s / c).

**Codes** are stored as kernels walk through them: 16 rows make a block of rows, and inside it `interleave` = q (4 or
8) neighbouring columns of a row lie together, (K/q, 16, q). The code of row n and column k is at `position`

    (k // q) * 16 * q + (n % 16) * q + k % q

of its block of rows n // 16, and these follow one another (`stic.runtime.blocks`).

**Levels.** Level 0 holds 2 bits, levels 1..6 hold 3..8 bits, level 7 full precision (`full_bits`: 16 or 32; 0 where
no plan of the package uses it, and then no record is of level 7). In a nested store a shard at b bits reads levels
0..b-2; otherwise (`nested` = 0) it reads level b-2 alone, whose record then holds all b planes. Level 7 is always read
alone.

**Record** of levels 0..6: parts in this order, each starting at a multiple of 64 bytes from the record's
start, zeros between:

    planes    for each matrix in turn, its planes of this level, most significant first, N*K/8 bytes each; code i,
              counted through the blocks of rows, is bit i%8 of byte i/8
    tables    for each matrix in turn, 2^bits int8: the value of each code, at most 127 in magnitude

and then, in level 0 and in any level that is not nested, of a store without groups (`group` = 0)

    blocks    for each matrix in turn, uint32 (N/16 + 1): first outlier entry of each block of 16 rows, counted from the
              matrix's first entry
    outliers  for each matrix in turn its entries {uint16 position in the block of rows; float16 value}, a block's
              entries in ascending order of position. The code at an outlier is 2^(bits-1)

and of a store in groups

    ratios    for each matrix in turn, uint8 (N/16, ceil(K/group), 16)

A record of level 7 holds for each matrix in turn (N, K) float16 or float32, row by row. A record's size is a multiple
of 64. The stored records of one (block, level) are neighbouring slices, contiguous in their order, and share no block
of 4096 bytes with other records, so that a range of slices is one read. What no plan of the package reads may be
absent.

**Arithmetic.** Without groups, weight[n, k] = scale[n] * table[code[n, k]], except at outliers, where it is the entry's
value: products take every code as it is, and the outliers then add value - scale[n] * table[2^(bits-1)]. In groups of
`group` columns, counted from the slice's first, weight[n, k] = scale[n] * ratio[n, k // group] * table[code[n, k]].
`scale` (float32, in the trunk) belongs to a row of a slice for qkv, up and head, and to a row of the whole block for
out and down. `stic.runtime.reference` is the normative use of it.

**Row** of embeddings.bin, `row_stride` bytes apart: H = hidden values of `row_type`, zeros to a multiple of 4, for int8
the float32 scale that they are multiplied with, uint32 CRC of what precedes. An encoder's row never straddles a
4096-byte block unless it is longer than one, and then starts at one; a decoder's may begin anywhere. What a row says is
multiplied by `embedding_multiplier`, which is 1 in encoders.

**Tied rows.** A decoder's rows may be those of its vocabulary block, at the bits that the plan has for them: `row_type`
is tied, `row_stride` 0, the vocabulary as large as `output_features`, and `table_resident` 0. The row of token n, with
r = n % rows_per_slice in slice n // rows_per_slice, is, each operation rounded to float32 by itself,

    x[k] = ((embedding_multiplier * scale[r]) * ratio[r, k // group]) * table[code[r, k]]     of levels 0..6
    x[k] = embedding_multiplier * weight[r, k]                                                of level 7

to which the position's row, if there is one, is then added: one more rounding. Rows that are not in memory are read
from shards.bin by themselves, 16 rows of each plane at once. No CRC covers them alone: whoever reads them computes
logits in the end, and then the whole vocabulary is read and verified.

**Positions.** Token t has position row t. Where `padding` is not 0, tokens whose id is padding - 1 have position row
max_length, and row t belongs to the t-th of the others, counted from 0.

**Trunk**: tensors at multiples of 64 bytes; the offset of one that a model does not have is ABSENT. For each field
`*_at` of MODEL: position float16 (max_length, or max_length + 1 where `padding` is not 0, HP), token_type float16
(max(types, 1), HP), embedding_gamma, embedding_beta float32 (HP), rotary float32 (rotaries, max_length,
rotary_features): a row has the cosines of each pair of features, then their sines, times the magnitude. Of BLOCK,
float32:

    qkv_, up_, head_ scale, bias              (slices, N)    scales are present where the kind has the matrix
    out_, down_ scale, bias                   (HP)
    input_, branch_, post_ gamma, beta        (HP)           norms of what the block reads, of what it adds to the
                                                             stream, of the stream after that
    attention_ gamma, beta                    (HP)           of kind layer: of the stream between out and up
    query_norm_ gamma, beta                   (slices, A)    of queries, before they turn; a norm over all heads has
    key_norm_ gamma, beta                     (slices, C)    no padding among them

DENSE: weight float16 (pad16(out), pad16(in)), bias float32 (pad16(out)). An encoder has position, token_type and
embedding_*, and of each of its blocks every bias and the norms attention_ and post_. A decoder has neither token_type
nor embedding_*, and its blocks have no attention_; position, biases, norms and betas are optional, but there is no beta
without its gamma, and norms of queries and keys come together. Every tensor's numbers are finite, as are a row's scale,
weights of level 7 and outliers. Blocks that are left out have their tensors as well.

**Cache** of a decoder: region `cache` holds for each attention block in turn, for each of its key heads in turn, what
`cache_layout` says: keys (T / 16, head_dim, 16), tokens in the lanes, values (T, pad16(head_dim)), for T =
pad16(max_length); float16, or int8 and then a float32 scale for each token (T) of keys, and of values.

**Names** of files are printable ASCII without a slash or space, do not start with a dot, and end with zeros; no two are
the same. Tables of index.bin start at multiples of 8.

**Extent**: slices first .. first+count-1 of one (block, level), read from `file_offset` (multiple of 4096)
for `bytes` (multiple of 4096; shards.bin and embeddings.bin are padded with zeros to one) to arena offset
`destination` (multiple of 4096). A streamed extent may be read only when block `wait_block` has been computed
(-1: at once), because it reuses that block's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from stic.runtime.architecture import NORM_KINDS

MAGIC = b"STICPKG\0"
MAJOR, MINOR = 3, 1
BLOCK = 4096  # alignment of everything that is read with O_DIRECT
ALIGN = 64  # alignment of everything a kernel loads from
TILE = 16  # tokens in a tile, rows in a block
INTERLEAVES = (4, 8)  # columns of a row that may lie together
GROUPS = (0, 64)  # columns that may share a ratio; 0: none do
LEVEL_BITS = (2, 3, 4, 5, 6, 7, 8)
LEVELS = len(LEVEL_BITS) + 1
FULL = LEVELS - 1  # level of full precision
ABSENT = 0xFFFFFFFF  # offset of a tensor that a model does not have

Kind = Literal["layer", "attention", "feed_forward", "vocabulary"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# The matrices of a slice, in the order of a record.
MATRICES: Mapping[Kind, tuple[str, ...]] = {
    "layer": ("qkv", "out", "up", "down"),
    "attention": ("qkv", "out"),
    "feed_forward": ("up", "down"),
    "vocabulary": ("head",),
}
JOINED = ("out", "down")  # whose columns belong to slices; rows of the others do

MACHINES = ("x86_64", "aarch64")
Activation = Literal["gelu", "gelu_tanh", "relu"]  # of feed-forward networks
ACTIVATIONS = ("none", *get_args(Activation), "tanh")  # of the head's linear maps
Pooling = Literal["tokens", "first", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
RowType = Literal["int8", "float16", "tied"]
ROW_TYPES: tuple[RowType, ...] = get_args(RowType)  # values of an embedding row; tied: a row of the vocabulary block
CacheType = Literal["none", "float16", "int8"]
CACHES: tuple[CacheType, ...] = get_args(CacheType)
NORMS = NORM_KINDS
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
# Bit i of BLOCK.flags.
FLAGS = (
    "parallel",  # a feed-forward block reads what the attention block before it read
    "whole_head_norm",  # norms of queries and keys are over all heads together, not over each
    "layer_head_norm",  # these norms are layer norms, not RMS norms
)

# What the engine keeps in its arena. Tiles = ceil(chunk / 16); S = slices that a plan keeps of a block; "most" means of
# any block. G = 1 without groups, else the most groups of a token's features: ceil(HP / group), S * ceil(A / group),
# S * ceil(F / group). A region that a model has no use for has 0 bytes.
REGIONS = (
    "trunk",  # trunk.bin
    "preload",  # resident extents
    "table",  # embeddings.bin, when resident
    "working",  # streamed extents
    "x",  # float32 (tiles, HP, 16): hidden states
    "y",  # float32 (tiles, HP, 16): output of a projection
    "qkv",  # float32 (tiles, most S * (A + 2C), 16)
    "context",  # float32 (tiles, most S * A, 16)
    "ffn",  # float32 (tiles, most S * rows of up, 16)
    "quantized",  # int8 (tiles, K / q, 16, q), K = most of HP, S * A, S * F
    "token_scale",  # float32 (tiles, G, 16)
    "token_sum",  # int32 (tiles, G, 16)
    "panel",  # a thread: 16 * K bytes
    "scratch",  # a thread: sums of outliers, attention's working memory: see `scratch_bytes`
    "rows",  # embedding rows of the input, (chunk, row_stride)
    "staging",  # a lane that reads rows: see `staging_bytes`
    "ids",  # int32 (chunk): token ids
    "types",  # int32 (chunk): token types
    "head",  # float32 2 * (widest head layer, 16)
    "output",  # float32: max_length * features, or features
    "normed",  # of decoders, as those that follow. float32 (tiles, HP, 16): what a block's matrices read
    "turns",  # float32 (tiles, rotaries, rotary_features, 16): rows of the rotary tables
    "cache",  # keys and values of all tokens: see `cache_layout`
    "logits",  # float32 (slices * R) of the vocabulary
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
        ("machine", "<u4"),  # index into MACHINES
        ("features", "<u4"),  # bit set over FEATURES
        ("cores", "<u8"),  # bit i: compute threads should run on processor i; 0: on any
        ("interleave", "<u4"),  # q, one of INTERLEAVES
        ("group", "<u4"),  # one of GROUPS
        ("nested", "<u4"),
        ("full_bits", "<u4"),  # 0: no level 7
        ("row_stride", "<u4"),  # bytes between rows of embeddings.bin; 0: rows are tied
        ("row_type", "<u4"),  # index into ROW_TYPES
        ("table_resident", "<u4"),  # 1: embeddings.bin is held in region `table`
        ("threads", "<u4"),  # compute threads the arena has room for
        ("lanes", "<u4"),  # IO lanes that read extents
        ("row_lanes", "<u4"),  # IO lanes that read embedding rows, `lanes` of which read extents; 0: as many
        ("request_bytes", "<u4"),  # an extent is read in requests of at most this size
        ("stack_bytes", "<u4"),  # stack of every thread the engine starts
        ("model_at", "<u4"),  # offsets into index.bin, and lengths
        ("files_at", "<u4"),
        ("files", "<u4"),
        ("shapes_at", "<u4"),
        ("shapes", "<u4"),
        ("blocks_at", "<u4"),
        ("blocks", "<u4"),
        ("records_at", "<u4"),
        ("dense_at", "<u4"),
        ("dense", "<u4"),
        ("regions_at", "<u4"),
        ("plans_at", "<u4"),
        ("plans", "<u4"),
        ("gpu_at", "<u4"),  # offset of the GPU part (gpu_format.GPU), a multiple of 4; 0: none
    ]
)
MODEL = np.dtype(
    [
        ("hidden", "<u4"),
        ("vocabulary", "<u4"),  # rows of embeddings.bin
        ("max_length", "<u4"),  # tokens: longest input of an encoder, context of a decoder
        ("chunk", "<u4"),  # tokens that are computed at once, at most
        ("causal", "<u4"),  # 1: a decoder
        ("types", "<u4"),  # rows of the token type table; 0: the model has none
        ("padding", "<u4"),  # token id + 1 that positions skip; 0: none
        ("pooling", "<u4"),  # index into POOLINGS
        ("normalize", "<u4"),  # 1: the output vector is scaled to length 1
        ("output_features", "<u4"),
        ("norm", "<u4"),  # index into NORMS: of hidden states
        ("cache", "<u4"),  # index into CACHES
        ("rotaries", "<u4"),  # rotary tables
        ("rotary_features", "<u4"),  # of a head that turn, in every table; an even number
        ("embedding_multiplier", "<f4"),
        ("position_at", "<u4"),  # offsets into the trunk
        ("token_type_at", "<u4"),
        ("embedding_gamma_at", "<u4"),
        ("embedding_beta_at", "<u4"),
        ("rotary_at", "<u4"),
    ]
)
FILE = np.dtype([("name", "S32"), ("bytes", "<u8"), ("crc", "<u4"), ("reserved", "<u4")])
SHAPE = np.dtype(
    [
        ("kind", "<u4"),  # index into KINDS
        ("slices", "<u4"),
        ("heads_per_slice", "<u4"),
        ("key_heads_per_slice", "<u4"),
        ("head_dim", "<u4"),
        ("neurons_per_slice", "<u4"),
        ("gated", "<u4"),
        ("rows_per_slice", "<u4"),
    ]
)
# What a block has in the trunk, in the order of BLOCK; `<role>_at` is the offset.
ROLES = (
    *(f"{matrix}_{part}" for matrix in ("qkv", "out", "up", "down", "head") for part in ("scale", "bias")),
    *(f"{norm}_{part}" for norm in ("input", "branch", "post", "attention") for part in ("gamma", "beta")),
    *(f"{norm}_{part}" for norm in ("query_norm", "key_norm") for part in ("gamma", "beta")),
)
BLOCK_ENTRY = np.dtype(
    [
        ("shape", "<u4"),  # index into table SHAPE
        ("flags", "<u4"),  # bit set over FLAGS
        ("window", "<u4"),  # tokens; 0: none
        ("rotary", "<u4"),  # rotary table + 1; 0: none
        ("softcap", "<f4"),  # of scores, or of logits; 0: none
        *((f"{role}_at", "<u4") for role in ROLES),  # offsets into the trunk
    ]
)
RECORD = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc", "<u4")])
EXTENT = np.dtype(
    [
        ("file_offset", "<u8"),
        ("destination", "<u8"),
        ("bytes", "<u4"),
        ("block", "<u2"),
        ("level", "<u2"),
        ("first", "<u2"),
        ("count", "<u2"),
        ("wait_block", "<i4"),
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
        ("bits_at", "<u4"),  # offsets into index.bin, and lengths
        ("extents_at", "<u4"),
        ("extents", "<u4"),
        ("resident_extents", "<u4"),
        ("load_first", "<u4"),  # 1: read everything before computing anything; then no extent waits for a block
        ("deadline_us", "<u4"),  # 0: none
        ("predicted_us", "<u4"),
        ("reserved", "<u4"),  # zero
        ("arena_bytes", "<u8"),
        ("claimed_bytes", "<u8"),  # the plan's claim: arena, index, stacks, code, what the GPU keeps
        ("preload", REGION),  # the plan's place of these regions
        ("working", REGION),
        ("quality", "<f8"),  # finite; more is better; comparable within a family only
    ]
)


def offset_of(structure: np.dtype[np.void], field: str) -> int:
    """Bytes that lie before a field of one of the structures above."""
    if structure.fields is None:
        raise KeyError(field)
    return structure.fields[field][1]
