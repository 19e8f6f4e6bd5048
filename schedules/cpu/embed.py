"""stic_embed, stic_embed_f16: rows of the embedding tables -> normalised activations, tokens in lanes.

    token 0   [ f0 f1 .. f15 ]                      feature 0   [ t0 t1 .. t15 ]
    token 1   [ f0 f1 .. f15 ]   -- transpose -->   feature 1   [ t0 t1 .. t15 ]
      ..           16 x 16                             ..

One step is 16 tokens by 16 features: 16 x (3 loads, 3 conversions, 1 multiply-add or add, 1 add), 64 interleaves, 16
stores; bound by the interleaves. Features past the last whole 16 are read one by one, never past a row's end.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.cpu.norm import layer_norm
from stic.schedules.cpu.vector_math import fma
from stic.schedules.shape import KernelShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
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

Word = Callable[[Buffer, Expr, Expr, Expr, int], Expr]


def embed(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_embed(u8* rows, f16* position, f16* token_type, i32* type_ids, f32* gamma, f32* beta, f32* x,
    i32 n, i32 row_stride): word row * its scale + position row + type row, then LayerNorm.

    rows (n, row_stride): H int8, float32 scale at byte round_up(H, 4); row_stride is a multiple of 4. position
    (>= n, HP), token_type (types, HP) float16, type_ids (n,), x (ceil(n/16), HP, 16). Lanes past n are zero before
    the norm. A model without token types passes one row of zeros and zero ids.
    """
    scale_at = -(-shape.hidden // 4) * 4

    def scale(rows: Buffer, row: Expr) -> Expr:
        return bits(load(rows, row + scale_at, 4), "float32")

    def word(rows: Buffer, at: Expr, scale: Expr, rest: Expr, lanes: int) -> Expr:
        real, wide = ("float32", "int8") if lanes == 1 else (f"float32x{lanes}", f"int8x{lanes}")
        value = cast(bits(load(rows, at, lanes), wide), real)
        return fma(value, splat(scale, lanes) if lanes > 1 else scale, rest, lanes)

    return _embed("stic_embed", "uint8", shape, word, scale)


def embed_f16(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_embed_f16(f16* rows, ...): as stic_embed, for rows of H float16 without a scale; row_stride, in bytes
    as there, is even."""

    def word(rows: Buffer, at: Expr, scale: Expr, rest: Expr, lanes: int) -> Expr:
        return cast(load(rows, at, lanes), "float32" if lanes == 1 else f"float32x{lanes}") + rest

    return _embed("stic_embed_f16", "float16", shape, word)


def _embed(
    name: str,
    row_type: str,
    shape: KernelShape,
    word: Word,
    scale_of: Callable[[Buffer, Expr], Expr] | None = None,
) -> PrimFunc:
    """The kernel for rows that are read as `row_type`.

    word(rows, at, scale, rest, lanes) is the sum of `rest` and of the row's values from `at` on; scale_of(rows, row)
    the scale of the row that starts at `row`; None: rows have none.
    """
    hidden, padded = shape.hidden, shape.padded_hidden
    element_bytes = 2 if row_type == "float16" else 1

    def body(
        rows: Buffer,
        position: Buffer,
        kinds: Buffer,
        kind_ids: Buffer,
        gamma: Buffer,
        beta: Buffer,
        x: Buffer,
        n: Expr,
        row_stride: Expr,
    ) -> None:
        def row(token: Expr) -> Expr:
            return token * (row_stride // element_bytes)

        def feature(token: Expr, kind: Expr, scale: Expr, h: Expr, lanes: int) -> Expr:
            real = "float32" if lanes == 1 else f"float32x{lanes}"
            place = cast(load(position, token * padded + h, lanes), real)
            sort = cast(load(kinds, kind * padded + h, lanes), real)
            return word(rows, row(token) + h, scale, bind(place + sort), lanes)

        with loop((n + LANES - 1) // LANES) as tile:
            square, words = (LANES * LANES, "float32"), (LANES, "int32")
            with local(square, square, words, words, (LANES, "float32")) as (
                block,
                spare,
                tokens,
                kind_rows,
                scales,
            ):
                with loop(LANES) as lane:
                    token = bind(pick(tile * LANES + lane < n, tile * LANES + lane, n - 1))
                    store(tokens, lane, token, 1)
                    store(kind_rows, lane, kind_ids[token], 1)
                    if scale_of is not None:
                        store(scales, lane, scale_of(rows, row(token)), 1)

                def emit(first: Expr, features: int) -> None:
                    with loop(LANES) as lane:
                        keep = pick(tile * LANES + lane < n, 1.0, 0.0)
                        token, kind = tokens[lane], kind_rows[lane]
                        scale = None if scale_of is None else scales[lane]
                        if features == LANES:
                            value = feature(token, kind, scale, first, LANES)
                            store(block, lane * LANES, value * splat(keep))
                        else:
                            for h in range(features):
                                value = bind(feature(token, kind, scale, first + h, 1) * keep)
                                if h == 0:  # what is behind the features is not used
                                    store(block, lane * LANES, splat(value))
                                store(block, lane * LANES + h, value, 1)
                    transpose16(block, spare)
                    for h in range(features):
                        store(x, (tile * padded + first + h) * LANES, load(block, h * LANES))

                with loop(hidden // LANES) as group:
                    emit(group * LANES, LANES)
                if hidden % LANES:
                    emit(hidden - hidden % LANES, hidden % LANES)
            layer_norm(x, tile * (padded * LANES), gamma, beta, shape, shape.embed_epsilon)

    arguments = [
        ("rows", row_type),
        ("position", "float16"),
        ("token_type", "float16"),
        ("type_ids", "int32"),
        ("gamma", "float32"),
        ("beta", "float32"),
        ("x", "float32"),
        ("n", "scalar"),
        ("row_stride", "scalar"),
    ]
    return kernel(name, arguments, body)
