"""stic_rows_grouped_b2 .. b8: the product for few tokens, straight from the planes, where 64 columns share scales.

    for group of 64 columns
      planes -> 16 rows x q --> [ acc int32 ] += w . x     16 times, from offset on; as in rows.py
      [ sum ] += float(acc) * (scale of the token * ratios of 16 rows)

Lanes are rows. What a group costs beside its 1,024 weights are a few instructions a token: with AVX-512 2 to start
(for 2 chains), 2 to join them and the offset, 1 conversion, 1 product, 1 fma and 2 moves of the sums; for all tokens 2
to convert the ratios. Next to about 105 instructions that decode and multiply 1,024 weights of 4 bits it stays bound by
planes. Chains are fewer than in rows.py because groups do not wait for each other, either.
"""

from __future__ import annotations

from collections.abc import Sequence

from stic.runtime.format import TILE
from stic.schedules.cpu.isa import panel_zero
from stic.schedules.cpu.rows import SCATTERED, RowsKernel
from stic.schedules.cpu.unpack import Decoder, Vectors, each_step
from stic.schedules.cpu.vector_math import fma
from stic.schedules.pack import COLUMNS, GROUP
from stic.schedules.shape import DecoderShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    bits,
    cast,
    i32,
    kernel,
    load,
    local,
    loop,
    splat,
    store,
    transpose16,
    when,
)
from stic.schedules.tuning import Tuning
from stic.targets.target import Target

_CHAINS = 2  # independent sums of a group
_WRITTEN_OUT = 2  # steps of a decoder
_STEPS = COLUMNS * TILE // GROUP  # groups of 64 weights in a group of columns


def rows_grouped(
    target: Target, bit_count: int, decoders: Sequence[Decoder], micro: RowsKernel, q: int, tuning: Tuning
) -> PrimFunc:
    """void stic_rows_grouped_b<bits>(u8* p0 .. u8* p7, i8* lut, i8* x, i32* offset, f32* scale, u8* ratio, f32* acc,
    i32 k, i32 x_pitch, i32 rows): what stic_dot_grouped adds, for `rows` tokens, 1 to 8, of one tile.

    acc (tokens, 16 rows); planes of 16 rows and the k columns of one slice; x (k / q, tokens, q) at the slice's first
    column, x_pitch bytes a group of q columns; offset, scale (groups, 16 tokens), ratio (groups, 16 rows). acc and x
    have room for the next power of two.
    """
    halves = TILE * q // GROUP  # groups of weights that share their features
    decoders = [decoder for decoder in decoders if decoder.groups % halves == 0]
    wide, narrow = decoders[0], decoders[-1]

    def body(*values: Buffer) -> None:
        planes, (lut, x, offset, scale, ratio, out, k, x_pitch, rows) = values[:bit_count], values[8:]

        def product(tokens: int) -> None:
            chains, size = max(1, min(tuning.chains or micro.chains, _CHAINS) // tokens), tokens * micro.width
            tables = {decoder.groups: decoder.table(lut) for decoder in (wide, narrow)}

            def visit_into(acc: Buffer, first: Expr, i: int, weights: Vectors) -> None:
                at = bind((first + i) // halves * x_pitch)
                micro.multiply(acc, i // halves % chains * size, tokens, weights, i % halves, x, at)

            def group(g: Expr, decoder: Decoder, steps: Expr) -> None:
                """One group of columns, its weights in so many steps of the decoder."""
                with local((chains * size, "int32")) as (acc,):
                    for at in range(0, chains * size, micro.lanes):
                        store(acc, at, i32(0, micro.lanes), micro.lanes)
                    # Few steps are written out: with a loop inside, LLVM computes every address anew.
                    parts = [(g * _STEPS, steps)]
                    if isinstance(steps, int) and steps <= _WRITTEN_OUT:
                        parts = [(g * _STEPS + step * decoder.groups, 1) for step in range(steps)]
                    for part in parts:
                        each_step(
                            decoder,
                            tables[decoder.groups],
                            planes,
                            part,
                            lambda first, i, weights: visit_into(acc, first, i, weights),
                            tuning.prefetch_bytes,
                        )
                    ratios = bind(cast(load(ratio, g * TILE), f"float32x{LANES}"))
                    for token in range(tokens):
                        place = bind(g * LANES + token)
                        total = micro.result(acc, token * micro.width)
                        for chain in range(1, chains):
                            total = total + micro.result(acc, chain * size + token * micro.width)
                        if panel_zero(target):
                            total = total + splat(offset[place])
                        factor = bind(ratios * splat(scale[place]))
                        sums = load(out, token * LANES)
                        store(out, token * LANES, fma(cast(total, f"float32x{LANES}"), factor, sums))

            whole = bind(k // COLUMNS)
            with loop(whole) as g:
                group(g, wide, _STEPS // wide.groups)
            with when(k % COLUMNS > 0):
                group(whole, narrow, k % COLUMNS // (COLUMNS // _STEPS * narrow.groups))

        micro.for_tokens(rows, product)

    pointers = [*((f"p{p}", "uint8") for p in range(8)), ("lut", "int8"), ("x", "int8"), ("offset", "int32")]
    pointers += [("scale", "float32"), ("ratio", "uint8"), ("acc", "float32")]
    scalars = [(name, "scalar") for name in ("k", "x_pitch", "rows")]
    return kernel(f"stic_rows_grouped_b{bit_count}", [*pointers, *scalars], body)


def rows_grouped_finish(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_rows_grouped_finish(f32* acc, f32* scale, f32* bias, f32* y, i32 rows): y (16 rows, 16 tokens) =
    fma(scale, acc, bias) for the first `rows` tokens; those from there on may hold anything after.

    acc (tokens, 16 rows) of these tokens becomes zero, for those of the next rows.
    """

    def body(sums: Buffer, scale: Buffer, bias: Buffer, y: Buffer, rows: Expr) -> None:
        zero = bind(bits(splat(rows >> 5), f"float32x{LANES}"))  # no constant to LLVM: it would become a call of memset

        def finished(token: Expr) -> Expr:
            """The 16 outputs of one token."""
            return fma(load(scale, 0), load(sums, token * LANES), load(bias, 0))

        with local((LANES * LANES, "float32"), (LANES * LANES, "float32")) as (block, spare):
            with when(rows <= SCATTERED), loop(rows) as token:
                store(block, 0, finished(token))
                for row in range(TILE):
                    store(y, row * LANES + token, block[row], 1)
            with when(rows > SCATTERED):
                with loop(rows) as token:
                    store(block, token * LANES, finished(token))
                transpose16(block, spare)
                for row in range(TILE):
                    store(y, row * LANES, load(block, row * LANES))
            with loop(rows) as token:
                store(sums, token * LANES, zero)

    pointers = [(label, "float32") for label in ("acc", "scale", "bias", "y")]
    return kernel("stic_rows_grouped_finish", [*pointers, ("rows", "scalar")], body)
