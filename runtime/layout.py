"""Sizes and places that follow from a package's tables: slices, records, the cache, embedding rows, scratch memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stic.runtime.format import ALIGN, BLOCK, FULL, LEVEL_BITS, MATRICES, TILE, CacheType, Kind


def pad(n: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-n // multiple) * multiple


def scratch_bytes(max_length: int, head_dim: int, causal: bool = False) -> int:
    """Bytes of a thread's share of region `scratch`, for T = pad16(max_length) keys and D = pad16(head_dim).

    Of an encoder, what outliers add to a block of rows: float32 (T, 16). Then what attention keeps: float32 (T, 16)
    scores, (T) and (2 D), int8 (T, D) keys, (T, D) values, (T, 16) weights and (D, 16) queries. Of a decoder what
    attention over the cache keeps, for 8 queries at a time: float32 (8, T) scores, (8, 16) sums, (8, D) results.
    """
    keys, width = pad(max_length, TILE), pad(head_dim, TILE)
    if causal:
        return 4 * 8 * (keys + TILE + width)
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
    """How a block is cut, and the padded sizes of a slice's matrices; fields as SHAPE's, and the hidden size."""

    kind: Kind
    hidden: int
    slices: int
    heads_per_slice: int = 0
    key_heads_per_slice: int = 0
    head_dim: int = 0
    neurons_per_slice: int = 0
    gated: bool = False
    rows_per_slice: int = 0

    @classmethod
    def layer(cls, hidden: int, slices: int, heads_per_slice: int, head_dim: int, neurons_per_slice: int) -> Shape:
        """The shape of an encoder's layer."""
        return cls("layer", hidden, slices, heads_per_slice, heads_per_slice, head_dim, neurons_per_slice)

    @property
    def padded_hidden(self) -> int:
        """HP."""
        return pad(self.hidden, TILE)

    @property
    def attention_width(self) -> int:
        """A: features of a slice's queries."""
        return pad(self.heads_per_slice * self.head_dim, TILE)

    @property
    def key_width(self) -> int:
        """C: features of a slice's keys, and of its values."""
        return pad(self.key_heads_per_slice * self.head_dim, TILE)

    @property
    def ffn_width(self) -> int:
        """F: features of a slice that `down` reads."""
        return pad(self.neurons_per_slice, TILE)

    @property
    def head_width(self) -> int:
        """R: rows of a slice of the vocabulary."""
        return pad(self.rows_per_slice, TILE)

    @property
    def qkv_width(self) -> int:
        """Rows of `qkv`."""
        return self.attention_width + 2 * self.key_width

    @property
    def up_width(self) -> int:
        """Rows of `up`."""
        return (2 if self.gated else 1) * self.ffn_width

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of a slice's matrices, in the order of a record."""
        return MATRICES[self.kind]

    def matrix(self, name: str) -> tuple[int, int]:
        """(N, K) of one of `matrices`."""
        h, a, f = self.padded_hidden, self.attention_width, self.ffn_width
        sizes = {
            "qkv": (self.qkv_width, h),
            "out": (h, a),
            "up": (self.up_width, h),
            "down": (h, f),
            "head": (self.head_width, h),
        }
        return sizes[name]

    def groups(self, name: str, group: int) -> int:
        """Groups of columns of one of `matrices`."""
        return -(-self.matrix(name)[1] // group)

    @property
    def weights(self) -> int:
        """Stored weights of a slice, padding included."""
        return sum(rows * columns for rows, columns in map(self.matrix, self.matrices))


@dataclass(frozen=True)
class RecordLayout:
    """Byte offsets inside a record, by matrix in the order of `Shape.matrices`."""

    planes: tuple[tuple[int, ...], ...]  # [matrix][plane]; level 7: [matrix][0] is the weight
    tables: tuple[int, ...]  # empty at level 7
    ratios: tuple[int, ...]  # empty where the record holds no ratios
    blocks: tuple[int, ...]  # empty where the record holds no outliers
    outliers: tuple[int, ...]
    size: int


def record_layout(
    shape: Shape, level: int, nested: bool, full_bits: int = 0, outliers: tuple[int, ...] = (), group: int = 0
) -> RecordLayout:
    """Lay out one record; `outliers` counts the entries of each matrix, empty: there are none."""
    at = 0

    def place(size: int) -> int:
        nonlocal at
        start = at
        at = pad(at + size, ALIGN)
        return start

    sizes = [shape.matrix(name) for name in shape.matrices]
    if level == FULL:
        weights = tuple((place(n * k * full_bits // 8),) for n, k in sizes)
        return RecordLayout(weights, (), (), (), (), at)
    planes = tuple(tuple(place(n * k // 8) for _ in range(planes_in(level, nested))) for n, k in sizes)
    tables = tuple(place(1 << LEVEL_BITS[level]) for _ in sizes)
    if nested and level > 0:
        return RecordLayout(planes, tables, (), (), (), at)
    if group:
        ratios = tuple(place(n * -(-k // group)) for n, k in sizes)
        return RecordLayout(planes, tables, ratios, (), (), at)
    blocks = tuple(place(4 * (n // TILE + 1)) for n, _ in sizes)
    entries = tuple(place(4 * count) for count in outliers or [0] * len(sizes))
    return RecordLayout(planes, tables, (), blocks, entries, at)


@dataclass(frozen=True)
class CacheLayout:
    """Byte offsets inside what the cache holds for one key head; each part starts at a multiple of 64."""

    keys: int  # (T / 16, head_dim, 16)
    values: int  # (T, pad16(head_dim))
    key_scales: int  # (T) float32, of int8
    value_scales: int
    size: int


def cache_layout(max_length: int, head_dim: int, cache: CacheType) -> CacheLayout:
    """Lay out the cache of one key head, for T = pad16(max_length) tokens."""
    if cache == "none":
        return CacheLayout(0, 0, 0, 0, 0)
    tokens, width = pad(max_length, TILE), 1 if cache == "int8" else 2
    values = pad(width * tokens * head_dim, ALIGN)
    key_scales = pad(values + width * tokens * pad(head_dim, TILE), ALIGN)
    scales = 4 * tokens if cache == "int8" else 0
    value_scales = key_scales + scales
    return CacheLayout(0, values, key_scales, value_scales, value_scales + scales)


def cache_bytes(shapes: Iterable[Shape], max_length: int, cache: CacheType) -> int:
    """Bytes of region `cache` for blocks of these shapes."""
    heads = [(x.slices * x.key_heads_per_slice, x.head_dim) for x in shapes if x.kind == "attention"]
    return sum(count * cache_layout(max_length, head_dim, cache).size for count, head_dim in heads)


def row_bytes(hidden: int, row_type: str) -> int:
    """Bytes of an embedding row whose values are of one of ROW_TYPES: values, scale, CRC."""
    return pad(2 * hidden, 4) + 4 if row_type == "float16" else pad(hidden, 4) + 8


def row_stride(hidden: int, row_type: str = "int8", packed: bool = False) -> int:
    """Bytes between embedding rows: a power of two up to a block, then whole blocks; `packed`, as decoders have them,
    no more than a row has, rounded up to 8; 0 of tied rows."""
    if row_type == "tied":
        return 0
    size = row_bytes(hidden, row_type)
    if packed:
        return pad(size, 8)
    return 1 << (size - 1).bit_length() if size <= BLOCK else pad(size, BLOCK)


def straddles(row_stride: int) -> bool:
    """Whether rows so far apart may begin in one block and end in another, and be no longer than both."""
    return row_stride % BLOCK != 0 and BLOCK % row_stride != 0


def staging_bytes(hidden: int, row_stride: int) -> int:
    """Bytes of an IO lane's share of region `staging`: the blocks that a row touches.

    Of tied rows what was found of one (its codes, at most 256 values, its ratios; or it at full precision), then the
    blocks that a part of it touches.
    """
    if row_stride:
        return pad(row_stride, BLOCK) + (BLOCK if straddles(row_stride) else 0)
    return 2 * pad(4 * pad(hidden, TILE) + 512, BLOCK) + BLOCK
