"""stic_embed_plain_i8, stic_embed_plain_f16: rows of the embedding of a decoder -> activations, tokens in lanes.

    token 0   [ f0 f1 .. f15 ]   x multiplier       feature 0   [ t0 t1 .. t15 ]
    token 1   [ f0 f1 .. f15 ]   -- transpose -->   feature 1   [ t0 t1 .. t15 ]
      ..           16 x 16                             ..

As embed.py, without token types and norm, and with learned positions only where the model has them. A lane costs a
load, one or two conversions and a product; bound by the interleaves.
"""

from __future__ import annotations

from stic.schedules.cpu.vector_math import fma
from stic.schedules.shape import DecoderShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
    T,
    bind,
    bits,
    cast,
    kernel,
    load,
    local,
    loop,
    pick,
    splat,
    store,
    transpose16,
)
from stic.targets.target import Target


def embed_plain(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_embed_plain_i8(u8* rows, f16* position, f32* x, i32 n, i32 row_stride), or
    stic_embed_plain_f16(f16* rows, ...): x = multiplier * row, and + the position's row where the model has them.

    rows (n, row_stride bytes) are rows of embeddings.bin, as in embed.py: int8 with a scale, or float16. position (>=
    n, HP) float16 begins at the first token's position. x (ceil(n/16), HP, 16); lanes past n and features past hidden
    are zero. The multiplier is rounded with the scale of int8 rows, and their product with a value once.
    """
    hidden, padded = shape.hidden, shape.padded_hidden
    quantised = shape.row_type == "int8"
    scale_at, element = -(-hidden // 4) * 4, 1 if quantised else 2

    def body(rows: Buffer, position: Buffer, x: Buffer, n: Expr, row_stride: Expr) -> None:
        def value(token: Expr, factor: Expr, h: Expr, lanes: int) -> Expr:
            """`lanes` features of a token from h on."""
            real, at = "float32" if lanes == 1 else f"float32x{lanes}", token * (row_stride // element) + h
            row = load(rows, at, lanes)
            if quantised:
                row = bits(row, "int8" if lanes == 1 else f"int8x{lanes}")
            row, factor = cast(row, real), factor if lanes == 1 else splat(factor, lanes)
            if not shape.positions:
                return row * factor
            return fma(row, factor, cast(load(position, token * padded + h, lanes), real), lanes)

        square = (LANES * LANES, "float32")
        with (
            loop((n + LANES - 1) // LANES) as tile,
            local(square, square, (LANES, "int32"), (LANES, "float32")) as (block, spare, tokens, factors),
        ):
            with loop(LANES) as lane:
                token = bind(pick(tile * LANES + lane < n, tile * LANES + lane, n - 1))
                store(tokens, lane, token, 1)
                factor = T.float32(shape.multiplier)
                if quantised:
                    factor = factor * bits(load(rows, token * row_stride + scale_at, 4), "float32")
                store(factors, lane, factor, 1)
            zero = splat(bits(n >> 31, "float32"))  # no constant to LLVM, which turns a run of zeros into a call

            def emit(first: Expr, features: int) -> None:
                with loop(LANES) as lane:
                    keep, (token, factor) = pick(tile * LANES + lane < n, 1.0, 0.0), (tokens[lane], factors[lane])
                    if features == LANES:
                        store(block, lane * LANES, value(token, factor, first, LANES) * splat(keep))
                    else:
                        store(block, lane * LANES, zero)
                        for h in range(features):
                            store(block, lane * LANES + h, value(token, factor, first + h, 1) * keep, 1)
                transpose16(block, spare)
                for h in range(LANES):
                    store(x, (tile * padded + first + h) * LANES, load(block, h * LANES))

            with loop(hidden // LANES) as group:
                emit(group * LANES, LANES)
            if hidden % LANES:
                emit(hidden - hidden % LANES, hidden % LANES)

    name, kind = ("stic_embed_plain_i8", "uint8") if quantised else ("stic_embed_plain_f16", "float16")
    pointers = [("rows", kind), ("position", "float16"), ("x", "float32")]
    return kernel(name, [*pointers, ("n", "scalar"), ("row_stride", "scalar")], body)
