"""stic_dot: int8 weights x int8 activations -> int32, then y += scales * sum. The loop nest around the micro-kernels.

                          token tile t      token tile t+1 ..
                        [ 16 tokens x 4 k ]                       x: one load serves all rows
    row n    [ 4 k ]--> [ acc n,t ] += w . x    [ acc n,t+1 ]
    row n+1  [ 4 k ]--> [ acc n+1,t ]           ..                panel: 4 bytes broadcast serve all tiles

    for group of token tiles; for group of rows; for slice; for step of k:  micro-kernel

A micro-kernel (dot_vnni.py, dot_avx2.py, dot_neon.py) says how many rows and tiles fit in its registers and how to
advance by one step. `dot_portable` at the end of this file needs no instruction beyond TIR's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stic.schedules.pack import TILE
from stic.schedules.shape import KernelShape
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
    when,
)
from stic.targets.target import Target


@dataclass(frozen=True)
class MicroKernel:
    """Registers and instructions of one instruction set.

    advance(acc, panel, x, w_at, x_at) emits one step: acc[(row * tiles + tile) * width ..] += w . x, where w_at[row]
    and x_at[tile] are offsets into panel and x. result(acc, at, chunk) reads `lanes` finished sums of one accumulator.
    """

    tiles: tuple[tuple[int, int], ...]  # (token tiles, rows) of the register tile, greatest first, ends with 1 tile
    step: int  # features consumed by one advance; divides 16
    lanes: int  # int32 lanes of a native vector
    width: int  # int32 elements of one accumulator (row, tile)
    advance: Callable[[Buffer, Buffer, Buffer, list[Expr], list[Expr]], None]
    result: Callable[[Buffer, int, int], Expr]
    token_sum: Callable[[Expr, Expr], Expr] | None = None  # (int32x16, int8x64): adds x; given where weights are +128


def dot_kernel(micro: MicroKernel) -> PrimFunc:
    """void stic_dot(u8* panel, i8* x, i32* xsum, f32* xscale, f32* scale, f32* y, i32 slices, i32 ks, i32 x_tile,
    i32 y_rows, i32 tiles): y[t][0..15][:] += xscale[t] * (scale[n] * float(sum_k w[n][k] x[t][k])).

    panel (slices, 16, ks), ks a multiple of 16; x starts at the first slice's k, tiles are x_tile bytes apart. xsum is
    the sum over the whole of a tile; where the call covers fewer features than x_tile holds, the sum is taken here.
    """

    def body(
        panel: Buffer,
        x: Buffer,
        xsum: Buffer,
        xscale: Buffer,
        scale: Buffer,
        y: Buffer,
        slices: Expr,
        ks: Expr,
        x_tile: Expr,
        y_rows: Expr,
        tiles: Expr,
    ) -> None:
        def offset_sums(corrections: Buffer, first: Expr, count: int) -> None:
            assert micro.token_sum is not None
            for t in range(count):
                store(corrections, t * LANES, load(xsum, (first + t) * LANES))
                with when(x_tile != slices * ks * LANES):
                    store(corrections, t * LANES, i32(0))
                    with loop(slices * (ks // 4)) as i:
                        values = load(x, (first + t) * x_tile + i * (4 * LANES), 4 * LANES)
                        store(corrections, t * LANES, micro.token_sum(load(corrections, t * LANES), values))

        def finish(acc: Buffer, corrections: Buffer, first: Expr, count: int, row: Expr, rows: int) -> None:
            for r in range(rows):
                for t in range(count):
                    for chunk in range(LANES // micro.lanes):
                        lane = chunk * micro.lanes
                        total = micro.result(acc, (r * count + t) * micro.width, chunk)
                        if micro.token_sum is not None:
                            total = total - load(corrections, t * LANES + lane, micro.lanes) * i32(128, micro.lanes)
                        value = splat(scale[row + r], micro.lanes) * cast(total, f"float32x{micro.lanes}")
                        at = bind(((first + t) * y_rows + row + r) * LANES + lane)
                        token_scale = load(xscale, (first + t) * LANES + lane, micro.lanes)
                        store(y, at, load(y, at, micro.lanes) + token_scale * value, micro.lanes)

        def block(first: Expr, count: int, rows: int) -> None:
            with local((count * LANES, "int32")) as (corrections,):
                if micro.token_sum is not None:
                    offset_sums(corrections, first, count)
                with loop(TILE // rows) as group:
                    with local((rows * count * micro.width, "int32")) as (acc,):
                        row = group * rows
                        for at in range(0, rows * count * micro.width, micro.lanes):
                            store(acc, at, i32(0, micro.lanes), micro.lanes)
                        with loop(slices) as s, loop(ks // micro.step) as k:
                            w_at = [bind(((s * TILE + row + r) * ks) + k * micro.step) for r in range(rows)]
                            x_at = [
                                bind((first + t) * x_tile + (s * ks + k * micro.step) * LANES) for t in range(count)
                            ]
                            micro.advance(acc, panel, x, w_at, x_at)
                        finish(acc, corrections, first, count, row, rows)

        done = 0
        for count, rows in micro.tiles:
            groups = bind((tiles - done) // count)
            with loop(groups) as g:
                block(bind(done + g * count), count, rows)
            done = bind(done + groups * count)

    arguments = [("panel", "int8"), ("x", "int8"), ("xsum", "int32"), ("xscale", "float32"), ("scale", "float32")]
    scalars = [(name, "scalar") for name in ("slices", "ks", "x_tile", "y_rows", "tiles")]
    return kernel("stic_dot", [*arguments, ("y", "float32"), *scalars], body)


def plain_result(lanes: int) -> Callable[[Buffer, int, int], Expr]:
    """Accumulators whose int32 lanes are the tokens already."""
    return lambda acc, at, chunk: load(acc, at + chunk * lanes, lanes)


def dot_portable(target: Target, shape: KernelShape) -> PrimFunc:
    """Fallback: shifts and 32-bit multiplies, exact everywhere, on any target."""

    def advance(acc: Buffer, panel: Buffer, x: Buffer, w_at: list[Expr], x_at: list[Expr]) -> None:
        lanes = bind(bits(load(x, x_at[0], 4 * LANES), f"int32x{LANES}"))
        for j in range(4):
            value = bind((lanes << i32(24 - 8 * j)) >> i32(24))
            for r, at in enumerate(w_at):
                weight = splat(cast(panel[at + j], "int32"))
                store(acc, r * LANES, load(acc, r * LANES) + weight * value)

    return dot_kernel(MicroKernel(((1, 2),), 4, LANES, LANES, advance, plain_result(LANES)))
