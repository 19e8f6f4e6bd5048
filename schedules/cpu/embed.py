"""stic_embed: rows of the embedding tables -> normalised activations, tokens in lanes.

    token 0   [ f0 f1 .. f15 ]                      feature 0   [ t0 t1 .. t15 ]
    token 1   [ f0 f1 .. f15 ]   -- transpose -->   feature 1   [ t0 t1 .. t15 ]
      ..           16 x 16                             ..

One step is 16 tokens by 16 features: 16 x (3 loads, 3 conversions, 1 multiply-add, 1 add), 64 interleaves, 16
stores; bound by the interleaves. Features past the last whole 16 are read one by one, never past a row's end.
"""

from __future__ import annotations

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


def embed(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_embed(u8* rows, f16* position, f16* token_type, i32* type_ids, f32* gamma, f32* beta, f32* x,
    i32 n, i32 row_stride): word row * its scale + position row + type row, then LayerNorm.

    rows (n, row_stride): H int8, float32 scale at byte round_up(H, 4); row_stride is a multiple of 4. position
    (>= n, HP), token_type (types, HP) float16, type_ids (n,), x (ceil(n/16), HP, 16). Lanes past n are zero before
    the norm. A model without token types passes one row of zeros and zero ids.
    """
    hidden, padded = shape.hidden, shape.padded_hidden
    scale_at = -(-hidden // 4) * 4

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
        def feature(token: Expr, kind: Expr, scale: Expr, h: Expr, lanes: int) -> Expr:
            real, wide = ("float32", "int8") if lanes == 1 else (f"float32x{lanes}", f"int8x{lanes}")
            word = cast(bits(load(rows, token * row_stride + h, lanes), wide), real)
            place = cast(load(position, token * padded + h, lanes), real)
            sort = cast(load(kinds, kind * padded + h, lanes), real)
            return fma(word, splat(scale, lanes) if lanes > 1 else scale, bind(place + sort), lanes)

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
                    store(scales, lane, bits(load(rows, token * row_stride + scale_at, 4), "float32"), 1)

                def emit(first: Expr, features: int) -> None:
                    with loop(LANES) as lane:
                        keep = pick(tile * LANES + lane < n, 1.0, 0.0)
                        token, kind, scale = tokens[lane], kind_rows[lane], scales[lane]
                        if features == LANES:
                            value = feature(token, kind, scale, first, LANES)
                            store(block, lane * LANES, value * splat(keep))
                        else:
                            store(block, lane * LANES, splat(scale * 0.0))  # a constant would become memset
                            for h in range(features):
                                value = feature(token, kind, scale, first + h, 1)
                                store(block, lane * LANES + h, value * keep, 1)
                    transpose16(block, spare)
                    for h in range(features):
                        store(x, (tile * padded + first + h) * LANES, load(block, h * LANES))

                with loop(hidden // LANES) as group:
                    emit(group * LANES, LANES)
                if hidden % LANES:
                    emit(hidden - hidden % LANES, hidden % LANES)
            layer_norm(x, tile * (padded * LANES), gamma, beta, shape, shape.embed_epsilon)

    arguments = [
        ("rows", "uint8"),
        ("position", "float16"),
        ("token_type", "float16"),
        ("type_ids", "int32"),
        ("gamma", "float32"),
        ("beta", "float32"),
        ("x", "float32"),
        ("n", "scalar"),
        ("row_stride", "scalar"),
    ]
    return kernel("stic_embed", arguments, body)
