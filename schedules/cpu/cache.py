"""stic_cache_store_f16, stic_cache_store_i8: keys and values of one tile of tokens -> the cache of one key head.

    k feature d   [ t0 .. t15 ]   --narrow-->   keys    (context / 16, head_dim, 16)       tokens stay in the lanes
    v feature d   [ t0 .. t15 ]   --turn, narrow-->  values  (context, pad16(head_dim))    features go to the lanes

int8 has a scale a token, max |.| / 127 over the head's features, as stic_quantize has. Where a tile of keys is whole
and begins at a multiple of 16, its rows are stored as they are; otherwise tokens move one by one. Values of more than
two tokens are transposed, 16 x 16 at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from stic.schedules.cpu.int8 import ROUND, keep_greatest, scale_and_inverse
from stic.schedules.cpu.rows import SCATTERED
from stic.schedules.cpu.vector_math import fma
from stic.schedules.pack import pad16
from stic.schedules.shape import DecoderShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
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

Row = Callable[[Expr], Expr]


def cache_store(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_cache_store_f16(f32* k, f32* v, f16* keys, f16* values, i32 position, i32 n), or
    stic_cache_store_i8(f32* k, f32* v, i8* keys, f32* key_scale, i8* values, f32* value_scale, i32 position, i32 n).

    k, v (head_dim, 16), whose first n lanes are the tokens position .. position + n - 1, 1 <= n <= 16; the rest is the
    head's part of the cache, from position 0 on, scales (context,). Nothing of other tokens is written.
    """
    width, dtype = shape.head_dim, shape.cache

    def body(k: Buffer, v: Buffer, *rest: Buffer) -> None:
        *caches, position, n = rest
        pairs = list(zip(caches[::2], caches[1::2], strict=True)) if dtype == "int8" else [(c, None) for c in caches]
        for x, put, (cache, scales) in zip((k, v), (_put_keys, _put_values), pairs, strict=True):
            row = _plain(x) if scales is None else _rounded(x, width, scales, position, n)
            put(shape, row, cache, position, n)

    pointers = [("keys", dtype), ("key_scale", "float32"), ("values", dtype), ("value_scale", "float32")]
    if dtype == "float16":
        pointers = pointers[::2]
    arguments = [("k", "float32"), ("v", "float32"), *pointers, ("position", "scalar"), ("n", "scalar")]
    return kernel(f"stic_cache_store_{'i8' if dtype == 'int8' else 'f16'}", arguments, body)


def _plain(x: Buffer) -> Row:
    return lambda d: bind(load(x, d * LANES))


def _rounded(x: Buffer, width: int, scales: Buffer, position: Expr, n: Expr) -> Row:
    """Emit the tokens' scales; returns feature d -> floats whose lowest byte is the code."""
    with local((LANES, "int32"), (LANES, "float32")) as (greatest, lanes):
        store(greatest, 0, i32(0))
        with loop(width) as d:
            keep_greatest(greatest, 0, load(x, d * LANES))
        scale, inverse = scale_and_inverse(load(greatest, 0))
        store(lanes, 0, scale)
        for t in range(LANES):  # not a loop, which LLVM turns into a call of memcpy
            with when(n > t):
                store(scales, position + t, lanes[t], 1)
    return lambda d: fma(load(x, d * LANES), inverse, f32(ROUND))


def _narrow(value: Expr, dtype: str) -> Expr:
    """Elements of the cache from floats, which become finite float16, or whose lowest byte is the code."""
    if dtype == "int8":
        return cast(bits(value, f"int32x{LANES}"), f"int8x{LANES}")
    most = f32(65504.0)
    above = bind(pick(value < most, value, most))
    return cast(pick(above > f32(-65504.0), above, f32(-65504.0)), f"float16x{LANES}")


def _put_keys(shape: DecoderShape, row: Row, keys: Buffer, position: Expr, n: Expr) -> None:
    width, dtype = shape.head_dim, shape.cache
    whole = tirx.all(n == LANES, position % LANES == 0)
    with when(whole), loop(width) as d:
        store(keys, position * width + d * LANES, _narrow(row(d), dtype))
    with when(tirx.Not(whole)), local((width * LANES, dtype)) as (tile,):
        with loop(width) as d:
            store(tile, d * LANES, _narrow(row(d), dtype))
        with loop(n) as t:
            token = bind(position + t)
            start = bind(token // LANES * (width * LANES) + token % LANES)
            with loop(width) as d:
                store(keys, start + d * LANES, tile[d * LANES + t], 1)


def _put_values(shape: DecoderShape, row: Row, values: Buffer, position: Expr, n: Expr) -> None:
    width, padded, dtype = shape.head_dim, pad16(shape.head_dim), shape.cache
    zero = bind(splat(bits(n >> 5, "float32")))  # no constant to LLVM, which turns a run of zeros into a call

    with when(n <= SCATTERED), local((padded * LANES, dtype)) as (tile,):
        with loop(width) as d:
            store(tile, d * LANES, _narrow(row(d), dtype))
        for d in range(width, padded):
            store(tile, d * LANES, _narrow(zero, dtype))
        with loop(n) as t, loop(padded) as d:
            store(values, (position + t) * padded + d, tile[d * LANES + t], 1)

    square = (LANES * LANES, "float32")
    with when(n > SCATTERED), local(square, square) as (block, spare):

        def turn(first: Expr, features: int) -> None:
            for j in range(LANES):
                store(block, j * LANES, row(first + j) if j < features else zero)
            transpose16(block, spare)
            with loop(n) as t:
                store(values, (position + t) * padded + first, _narrow(load(block, t * LANES), dtype))

        with loop(width // LANES) as i:
            turn(i * LANES, LANES)
        if width % LANES:
            turn(width - width % LANES, width % LANES)
