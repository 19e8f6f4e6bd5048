"""stic_dot_grouped: the product for tiles of tokens where 64 columns share scales, in the micro-kernels of dot.py.

    for group of token tiles; for group of rows
      for group of 64 columns
        acc int32 = offset; 16 / (step / 4) times the micro-kernel        registers
        sum += float(acc) * (scale of the tokens * ratio of the row)      sum lies in memory, one load and one store

The register tiles are those of stic_dot, and all registers stay with them. With AVX-512 VNNI, 4 tiles x 4 rows, a group
takes 16 x 24 instructions and 16 x (1 start, 1 conversion, 1 product, 1 fma with its load, 1 store), a fifth more; its
sums, 4 KiB at 4 tiles, stay in the first-level cache. With sums in registers the register tile would be half as large,
which costs half again as many loads of x.

One call is one slice, whose panel and ratios lie together; sums stay where they are from slice to slice, and
stic_dot_grouped_finish makes outputs of them.
"""

from __future__ import annotations

from stic.runtime.format import TILE
from stic.schedules.cpu.dot import MicroKernel
from stic.schedules.cpu.vector_math import fma
from stic.schedules.pack import COLUMNS
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
    i32,
    kernel,
    load,
    local,
    loop,
    splat,
    store,
)
from stic.targets.target import Target


def dot_grouped(micro: MicroKernel) -> PrimFunc:
    """void stic_dot_grouped(u8* panel, i8* x, i32* offset, f32* scale, u8* ratio, f32* acc, i32 k, i32 x_tile,
    i32 g_tile, i32 tiles): acc[t][n] = fma(float(sum over a group of w[n] x[t]), scale[t][g] * ratio[g][n], acc[t][n])
    for the groups g of one slice, in order, and 16 rows n, lane by lane.

    panel (k/q, 16, q), k a multiple of 16, of whose groups of COLUMNS the last may be shorter; ratio (groups, 16); acc
    (tiles, 16 rows, 16 tokens). x, offset and scale (groups, 16 tokens) start at the slice's first column or group;
    their tiles are x_tile bytes and g_tile elements apart.
    """

    def body(
        panel: Buffer,
        x: Buffer,
        offset: Buffer,
        scale: Buffer,
        ratio: Buffer,
        sums: Buffer,
        k: Expr,
        x_tile: Expr,
        g_tile: Expr,
        tiles: Expr,
    ) -> None:
        def start(acc: Buffer, g_at: list[Expr], rows: int) -> None:
            for r in range(rows):
                for t, at in enumerate(g_at):
                    for lane in range(0, micro.width, micro.lanes):
                        signed = micro.token_sum is not None
                        value = load(offset, at + lane, micro.lanes) if signed else i32(0, micro.lanes)
                        store(acc, (r * len(g_at) + t) * micro.width + lane, value, micro.lanes)

        def finish(acc: Buffer, g_at: list[Expr], ratios: Buffer, sums_at: list[Expr], rows: int) -> None:
            for r in range(rows):
                weight = splat(ratios[r])
                for t, at in enumerate(g_at):
                    total = cast(micro.result(acc, (r * len(g_at) + t) * micro.width), f"float32x{LANES}")
                    factor = bind(load(scale, at) * weight)
                    place = bind(sums_at[t] + r * LANES)
                    store(sums, place, fma(total, factor, load(sums, place)))

        def block(first: Expr, count: int, rows: int) -> None:
            sizes = (rows * count * micro.width, "int32"), (rows, "float32")
            with loop(TILE // rows) as group, loop((k + COLUMNS - 1) // COLUMNS) as g, local(*sizes) as (acc, ratios):
                row = bind(group * rows)
                features = bind(T.min(COLUMNS, k - g * COLUMNS))
                g_at = [bind((first + t) * g_tile + g * LANES) for t in range(count)]
                start(acc, g_at, rows)
                with loop(features // micro.step) as step:
                    w_at = bind((g * COLUMNS + step * micro.step) * TILE + row * micro.interleave)
                    x_at = [
                        bind((first + t) * x_tile + (g * COLUMNS + step * micro.step) * LANES) for t in range(count)
                    ]
                    micro.advance(acc, panel, x, w_at, x_at, rows)
                store(ratios, 0, cast(load(ratio, g * TILE + row, rows), f"float32x{rows}"), rows)
                finish(acc, g_at, ratios, [bind(((first + t) * TILE + row) * LANES) for t in range(count)], rows)

        done = 0
        for count, rows in micro.tiles:
            groups = bind((tiles - done) // count)
            with loop(groups) as g:
                block(bind(done + g * count), count, rows)
            done = bind(done + groups * count)

    arguments = [("panel", "int8"), ("x", "int8"), ("offset", "int32"), ("scale", "float32"), ("ratio", "uint8")]
    scalars = [(label, "scalar") for label in ("k", "x_tile", "g_tile", "tiles")]
    return kernel("stic_dot_grouped", [*arguments, ("acc", "float32"), *scalars], body)


def dot_grouped_finish(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_dot_grouped_finish(f32* acc, f32* scale, f32* bias, f32* y, i32 y_rows, i32 tiles): y[t][0..15] =
    fma(scale, acc, bias); acc (tiles, 16, 16) becomes zero, for those of the next rows.
    """

    def body(sums: Buffer, scale: Buffer, bias: Buffer, y: Buffer, y_rows: Expr, tiles: Expr) -> None:
        # Zero, as rows are a multiple of 16, but not to LLVM, which turns a run of zero stores into a call of memset.
        zero = bind(bits(splat(y_rows & 15), f"float32x{LANES}"))
        with loop(tiles) as tile, loop(TILE) as row:
            at = bind((tile * TILE + row) * LANES)
            value = fma(splat(scale[row]), load(sums, at), splat(bias[row]))
            store(y, (tile * y_rows + row) * LANES, value)
            store(sums, at, zero)

    pointers = [(label, "float32") for label in ("acc", "scale", "bias", "y")]
    return kernel("stic_dot_grouped_finish", [*pointers, ("y_rows", "scalar"), ("tiles", "scalar")], body)
