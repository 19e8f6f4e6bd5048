"""stic_attention: one head. Both products are int8, in the dot product's own micro-kernels; lanes are queries.

    K, V  ->  int8 panels, once a call          K: a scale a key       (head_dim/q, 16 keys, q), tile by tile
                                                V: a scale a feature   (keys/q, 16 features, q), by 16 features
    for every tile of 16 queries
      Q   ->  int8                              a scale a query        (head_dim/q, 16 queries, q)
      S[key][16 queries] = K . Q                the dot micro-kernel: rows are keys
      P[key][16 queries] = 2^(S - max S)        as int8: round(254 P) - 127, so that all 8 bits are used
      O[feature][16 queries] = V . P            the dot micro-kernel: rows are features, summed over keys

With 512-bit VNNI, 32 features and 128 keys, a tile of queries takes 2 x 1,024 vpdpbusd and 128 times about 20
instructions of softmax; turning K and V round costs a tenth of that when shared by 8 tiles. Softmax is bound by the
multiply-add pipes. Quantising the operands costs accuracy what rounding activations costs anywhere in the layer:
on all-MiniLM-L6-v2 at 8 bits, 1 - cosine to float32 goes from .00246 to .00251.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from tvm import tirx

from stic.runtime.format import TILE
from stic.schedules.cpu.dot import MicroKernel
from stic.schedules.cpu.int8 import ROUND, ROUND_BITS, in_groups, keep_greatest, low_bytes, scale_and_inverse
from stic.schedules.cpu.isa import panel_zero
from stic.schedules.cpu.vector_math import exp2_16, fma, maximum
from stic.schedules.pack import interleave, pad16
from stic.schedules.shape import KernelShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
    T,
    bind,
    bits,
    cast,
    f32,
    i32,
    kernel,
    load,
    local,
    loop,
    pick,
    splat,
    store,
    transpose16,
    when,
)
from stic.targets.target import Target

_LEAST = -3.0e38  # below every score
_LOG2_E = 1.44269504088896341
_HALF, _WHOLE = 127, 254  # a weight P in [0, 1] is the int8 round(_WHOLE * P) - _HALF
_STEP = 8  # features quantised in one turn
_FLOATS, _INTS = f"float32x{LANES}", f"int32x{LANES}"


class _Head:
    """Buffers of one call, and the steps of the picture above.

    Scratch, for T = ceil(rows / 16) tiles of keys and HP = head_dim rounded up to 16:
    floats: scores (16 T, 16) | scale of each key (16 T) | scale of each feature (HP) | 127 times the sum of V (HP).
    bytes: panels of K (T, 16 HP) | panels of V (HP / 16, 256 T) | weights P (256 T) | Q (16 HP).
    """

    def __init__(
        self, target: Target, shape: KernelShape, micro: MicroKernel, floats: Buffer, bytes_: Buffer, rows: Expr
    ) -> None:
        self.target, self.micro, self.q = target, micro, interleave(target)
        self.zero = panel_zero(target)
        self.width, self.padded = shape.head_dim, pad16(shape.head_dim)
        self.floats, self.bytes, self.rows = floats, bytes_, rows
        self.tiles = bind((rows + TILE - 1) // TILE)
        self.key_scale_at = bind(self.tiles * (TILE * LANES))
        self.feature_scale_at = bind(self.key_scale_at + self.tiles * TILE)
        self.v_at = bind(self.tiles * (TILE * self.padded))
        self.p_at = bind(self.v_at * 2)
        self.q_at = bind(self.p_at + self.tiles * (TILE * TILE))

    def put(self, at: Expr, packed: Sequence[Expr], flip: int = 0) -> None:
        """Store vectors of four bytes a lane as groups of q bytes a lane; `flip` is xored to each byte."""
        word = flip * 0x01010101
        flipped = [bind(vector ^ i32(word - (1 << 32))) for vector in packed] if flip else packed
        for i, vector in enumerate(in_groups(flipped, self.q)):
            store(self.bytes, at + i * (LANES * self.q), vector, LANES * self.q)

    def quantize(self, x: Buffer, x_at: Expr, at: Expr, flip: int) -> Expr:
        """Emit the int8 form of head_dim rows of 16 lanes; features past the head are 0. Returns the lanes' scales."""
        whole = self.width - self.width % _STEP

        def row(d: Expr) -> Expr:
            return load(x, x_at + d * LANES)

        def rounded(first: Expr, count: int, inverse: Expr) -> None:
            values = [fma(row(first + j), inverse, f32(ROUND)) if j < count else f32(ROUND) for j in range(_STEP)]
            self.put(at + first * LANES, [low_bytes(self.target, values[j : j + 4]) for j in (0, 4)], flip)

        with local((2 * LANES, "int32")) as (greatest,):
            for chain in range(2):
                store(greatest, chain * LANES, i32(0))
            with loop(self.width // 2) as pair:
                for chain in range(2):
                    keep_greatest(greatest, chain * LANES, row(pair * 2 + chain))
            if self.width % 2:
                keep_greatest(greatest, 0, row(self.width - 1))
            keep_greatest(greatest, 0, load(greatest, LANES))
            scale, inverse = scale_and_inverse(load(greatest, 0))
            with loop(whole // _STEP) as i:
                rounded(i * _STEP, _STEP, inverse)
            for first in range(whole, self.padded, _STEP):
                rounded(first, max(0, self.width - first), inverse)
            return scale

    def keys(self, k: Buffer, qkv_rows: Expr) -> None:
        """Emit the panels of K and the scale of every key."""
        with loop(self.tiles) as tile:
            scale = self.quantize(k, tile * qkv_rows * TILE, tile * (TILE * self.padded), self.zero)
            store(self.floats, self.key_scale_at + tile * TILE, scale)

    def values(self, v: Buffer, qkv_rows: Expr) -> None:
        """Emit the panels of V, the scale of every feature and _HALF times the sum of its int8."""
        square = (LANES * LANES, "float32")
        with (
            loop(self.padded // TILE) as block,
            local(square, square, (LANES * LANES, "int32"), (LANES, "int32")) as (
                tokens,
                spare,
                greatest,
                sums,
            ),
        ):

            def feature(tile: Expr, d: int) -> Expr:
                """Row d of the block for one tile of keys; zero past the input's end and past the head's."""
                here, row = T.ramp(tile * TILE, 1, LANES) < splat(self.rows), block * TILE + d
                if self.width % TILE:  # rows past the head are the next one's, or past the buffer's end
                    here = tirx.And(here, splat(row < self.width))
                    row = T.min(row, self.width - 1)
                return pick(here, load(v, (tile * qkv_rows + row) * TILE), f32(0.0))

            for d in range(TILE):
                store(greatest, d * LANES, i32(0))
            with loop(self.tiles) as tile:
                for d in range(TILE):
                    keep_greatest(greatest, d * LANES, feature(tile, d))
            for d in range(TILE):
                store(tokens, d * LANES, bits(load(greatest, d * LANES), _FLOATS))
            transpose16(tokens, spare)
            for j in range(1, TILE):
                store(tokens, 0, maximum(load(tokens, j * LANES), load(tokens, 0)))
            scale, inverse = scale_and_inverse(bits(load(tokens, 0), _INTS))
            store(sums, 0, i32(0))
            with loop(self.tiles) as tile:
                for d in range(TILE):
                    store(tokens, d * LANES, feature(tile, d))
                transpose16(tokens, spare)
                rounded = [fma(load(tokens, j * LANES), inverse, f32(ROUND)) for j in range(TILE)]
                for value in rounded:
                    store(sums, 0, load(sums, 0) + (bits(value, _INTS) - i32(ROUND_BITS)))
                groups = [low_bytes(self.target, rounded[j : j + 4]) for j in range(0, TILE, 4)]
                self.put(self.v_at + (block * self.tiles + tile) * (TILE * TILE), groups, self.zero)
            at = bind(self.feature_scale_at + block * TILE)
            store(self.floats, at, scale)
            store(self.floats, at + self.padded, bits(load(sums, 0) * i32(_HALF), _FLOATS))

    def product(self, panel_at: Expr, x_at: Expr, features: Expr, visit: Callable[[Expr, Expr], None]) -> None:
        """Emit visit(row, sum) for 16 rows of a panel times one tile of activations."""
        micro, rows = self.micro, self.micro.tiles[-1][1]
        with loop(TILE // rows) as group, local((rows * micro.width, "int32")) as (acc,):
            for at in range(0, rows * micro.width, micro.lanes):
                store(acc, at, i32(0, micro.lanes), micro.lanes)
            with loop(features // micro.step) as step:
                w_at = bind(panel_at + step * (micro.step * TILE) + group * (rows * self.q))
                micro.advance(acc, self.bytes, self.bytes, w_at, [bind(x_at + step * (micro.step * LANES))], rows)
            for r in range(rows):
                visit(group * rows + r, micro.result(acc, r * micro.width))

    def scores(self, tile: Expr, offset: Expr, greatest: Buffer, limited: bool) -> None:
        """Emit the scores of one tile of keys, but for the query's scale; where `limited`, of keys below rows only."""

        def keep(row: Expr, total: Expr) -> None:
            at = bind(tile * TILE + row)
            score = bind(cast(total - offset, _FLOATS) * splat(self.floats[self.key_scale_at + at]))
            with when(at < self.rows) if limited else nullcontext():
                store(greatest, 0, maximum(score, load(greatest, 0)))
                store(self.floats, at * LANES, score)

        self.product(tile * (TILE * self.padded), self.q_at, self.padded, keep)

    def weights(self, tile: Expr, scale: Expr, top: Expr, sums: Buffer, limited: bool) -> None:
        """Emit the int8 weights of one tile of keys and add them up; keys from rows on get 0."""
        packed = []
        for first in range(0, TILE, 4):
            values = []
            for j in range(first, first + 4):
                at = bind(tile * TILE + j)
                power = exp2_16(fma(load(self.floats, at * LANES), scale, top))
                value = fma(power, f32(_WHOLE), f32(ROUND - _HALF))
                if limited:
                    value = bind(pick(splat(at < self.rows), value, f32(ROUND)))
                store(sums, 0, load(sums, 0) + (bits(value, _INTS) - i32(ROUND_BITS)))
                values.append(value)
            packed.append(low_bytes(self.target, values))
        self.put(self.p_at + tile * (TILE * TILE), packed)

    def query_tile(self, q: Buffer, q_from: Expr, out: Buffer, out_from: Expr) -> None:
        """Emit the attention of 16 queries over all keys."""
        lanes = (LANES, "int32")
        with local((LANES, "float32"), lanes, lanes) as (greatest, offset, sums):
            scale = bind(self.quantize(q, q_from, self.q_at, 0) * f32(_LOG2_E))
            store(offset, 0, i32(0))
            if self.micro.token_sum is not None:
                with loop(self.padded // 4) as i:
                    four = load(self.bytes, self.q_at + i * (4 * LANES), 4 * LANES)
                    store(offset, 0, self.micro.token_sum(load(offset, 0), four))
            correction = bind(load(offset, 0) * i32(self.zero))
            store(greatest, 0, f32(_LEAST))
            self.every_tile(lambda tile, limited: self.scores(tile, correction, greatest, limited))
            top = bind(f32(0.0) - load(greatest, 0) * scale)
            store(sums, 0, i32(0))
            self.every_tile(lambda tile, limited: self.weights(tile, scale, top, sums, limited))
            total = bind(load(sums, 0))
            inverse = bind(f32(1.0) / cast(total + splat(self.rows * _HALF), _FLOATS))
            lost = bind(total * i32(self.zero))

            with loop(self.padded // TILE) as block:

                def finish(row: Expr, product: Expr) -> None:
                    d = bind(block * TILE + row)
                    at = bind(self.feature_scale_at + d)
                    half = bits(load(self.floats, at + self.padded, 1), "int32")
                    value = cast(product + splat(half) - lost, _FLOATS) * inverse
                    with when(d < self.width) if self.width % TILE else nullcontext():
                        store(out, out_from + d * LANES, bind(value) * splat(self.floats[at]))

                panel = self.v_at + block * self.tiles * (TILE * TILE)
                self.product(panel, self.p_at, self.tiles * TILE, finish)

    def every_tile(self, emit: Callable[[Expr, bool], None]) -> None:
        """Emit a loop over whole tiles of keys, and the rest of the last."""
        with loop(self.rows // TILE) as tile:
            emit(tile, False)
        with when(self.rows % TILE > 0):
            emit(self.rows // TILE, True)


def attention(target: Target, shape: KernelShape, micro: MicroKernel) -> PrimFunc:
    """void stic_attention(f32* q, f32* k, f32* v, f32* out, f32* floats, i8* bytes, i32 qkv_rows, i32 out_rows,
    i32 rows, i32 queries): one head, `queries` tiles of 16 queries, softmax over keys 0 .. rows-1, rows >= 1.

    q, k, v (tiles, qkv_rows, 16) at this head's first row, q at its first tile; out (queries, out_rows, 16) at the
    head's first row; scratch as in _Head. The scale of the scores is in the query weights.
    """

    def body(
        q: Buffer,
        k: Buffer,
        v: Buffer,
        out: Buffer,
        floats: Buffer,
        bytes_: Buffer,
        qkv_rows: Expr,
        out_rows: Expr,
        rows: Expr,
        queries: Expr,
    ) -> None:
        head = _Head(target, shape, micro, floats, bytes_, rows)
        head.keys(k, qkv_rows)
        head.values(v, qkv_rows)
        with loop(queries) as tile:
            head.query_tile(q, tile * qkv_rows * TILE, out, tile * out_rows * TILE)

    pointers = [*((name, "float32") for name in ("q", "k", "v", "out", "floats")), ("bytes", "int8")]
    scalars = [(name, "scalar") for name in ("qkv_rows", "out_rows", "rows", "queries")]
    return kernel("stic_attention", pointers + scalars, body)
