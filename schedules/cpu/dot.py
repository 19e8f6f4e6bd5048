"""stic_dot: int8 weights x int8 activations -> int32, then scales, outliers, bias, activation. The loops around the
micro-kernels.

                            token tile t      token tile t+1 ..
                          [ 16 tokens x q ]                       x: one load serves all rows
    panel, group k  row n   [ q ]--> [ acc n,t ] += w . x    [ acc n,t+1 ]
                    row n+1 [ q ]--> [ acc n+1,t ]           ..   16 rows of a group lie together: 16 q bytes

    for group of token tiles; for group of rows; for group of q features:  micro-kernel

The panel is interleaved: (k / q, 16 rows, q), q = interleave of the target (`stic.schedules.pack`). A micro-kernel
(dot_vnni.py, dot_avx_vnni.py, dot_avx2.py, dot_neon.py) says how many rows and tiles fit in its registers and how to
advance by one step. `dot_portable` at the end of this file needs no instruction beyond TIR's own.

Sums leave the registers once, as finished outputs: y = activation(bias + xscale * (scale * sum + outliers)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from stic.runtime.format import TILE
from stic.schedules.cpu.activation import function_of
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
    i32,
    kernel,
    load,
    local,
    loop,
    shuffle,
    splat,
    store,
    when,
)
from stic.schedules.tuning import Tiles, Tuning
from stic.targets.target import Target

PANEL_ZERO = 128  # what an unsigned panel adds to its weights


@dataclass(frozen=True)
class MicroKernel:
    """Registers and instructions of one instruction set.

    advance(acc, panel, x, w_at, x_at, rows) emits one step of `step` features: acc[(row * tiles + tile) * width ..] +=
    w . x for `rows` rows, where w_at is the panel's offset of the step's first group at the first row, and x_at[tile]
    the offset into x. result(acc, at) is the 16 finished sums of the accumulator at `at`.
    """

    # (token tiles, rows) of the register tile, greatest first, ends with 1 tile; then other lists worth a try
    choices: tuple[Tiles, ...]
    step: int  # features consumed by one advance; divides 16
    lanes: int  # int32 lanes of a native vector
    width: int  # int32 elements of one accumulator (row, tile)
    advance: Callable[[Buffer, Buffer, Buffer, Expr, list[Expr], int], None]
    result: Callable[[Buffer, int], Expr]
    interleave: int = 4  # q
    token_sum: Callable[[Expr, Expr], Expr] | None = None  # (int32x16, int8x64): adds x; given where weights are +128

    @property
    def tiles(self) -> Tiles:
        """The register tiles in use: the first choice."""
        return self.choices[0]

    def tuned(self, tuning: Tuning) -> MicroKernel:
        """The same with the register tiles of a record."""
        return self if tuning.tiles is None else replace(self, choices=(tuning.tiles,))


def dot_kernels(micro: MicroKernel, shape: KernelShape) -> tuple[PrimFunc, PrimFunc]:
    """stic_dot and stic_dot_activated.

    void stic_dot(u8* panel, i8* x, i32* xsum, f32* xscale, f32* scale, f32* bias, f32* extra, f32* y, i32 k,
    i32 x_tile, i32 y_rows, i32 tiles): y[t][n] = bias[n] + xscale[t] * (scale[n] * float(sum_k w[n][k] x[t][k]) +
    extra[t][n]) for 16 rows n, lane by lane; extra (tiles, 16, 16) is the outliers' share (stic_outliers), and becomes
    zero, for those of the next rows.

    panel (k/q, 16, q), k a multiple of 16; x starts at the panel's first feature, its tiles are x_tile bytes apart.
    xsum is the sum over the whole of a tile; where the call covers fewer features than x_tile holds, it is taken here.
    """
    plain = _dot_kernel("stic_dot", micro, None)
    return plain, _dot_kernel("stic_dot_activated", micro, function_of(shape))


def _dot_kernel(name: str, micro: MicroKernel, activate: Callable[[Expr], Expr] | None) -> PrimFunc:
    def body(
        panel: Buffer,
        x: Buffer,
        xsum: Buffer,
        xscale: Buffer,
        scale: Buffer,
        bias: Buffer,
        extra: Buffer,
        y: Buffer,
        k: Expr,
        x_tile: Expr,
        y_rows: Expr,
        tiles: Expr,
    ) -> None:
        def offsets(corrections: Buffer, first: Expr, count: int) -> None:
            """What an unsigned panel adds to the sums of `count` tiles, negated: where accumulators start."""
            assert micro.token_sum is not None
            for t in range(count):
                store(corrections, t * LANES, load(xsum, (first + t) * LANES))
                with when(x_tile != k * LANES):
                    store(corrections, t * LANES, i32(0))
                    with loop(k // 4) as i:
                        values = load(x, (first + t) * x_tile + i * (4 * LANES), 4 * LANES)
                        store(corrections, t * LANES, micro.token_sum(load(corrections, t * LANES), values))
                store(corrections, t * LANES, load(corrections, t * LANES) * i32(-PANEL_ZERO))

        def start(acc: Buffer, corrections: Buffer, count: int, rows: int) -> None:
            zero = i32(0, micro.lanes)
            for r in range(rows):
                for t in range(count):
                    at = (r * count + t) * micro.width
                    for lane in range(0, micro.width, micro.lanes):
                        value = zero if micro.token_sum is None else load(corrections, t * LANES + lane, micro.lanes)
                        store(acc, at + lane, value, micro.lanes)

        # Zero, as every k is a multiple of 16, but not to LLVM, which turns a run of zero stores into a call of memset.
        zero = bind(bits(splat(k & 15), f"float32x{LANES}"))

        def finish(acc: Buffer, first: Expr, count: int, row: Expr, rows: int) -> None:
            with local((rows * count * LANES, "float32")) as (values,):
                for r in range(rows):
                    row_scale, row_bias = splat(scale[row + r]), splat(bias[row + r])
                    for t in range(count):
                        total = cast(micro.result(acc, (r * count + t) * micro.width), f"float32x{LANES}")
                        at = bind(((first + t) * TILE + row + r) * LANES)
                        value = fma(row_scale, total, load(extra, at))
                        store(extra, at, zero)
                        value = fma(load(xscale, (first + t) * LANES), value, row_bias)
                        if activate is None:
                            store(y, ((first + t) * y_rows + row + r) * LANES, value)
                        else:
                            store(values, (r * count + t) * LANES, value)
                if activate is not None:  # loops: written out for every output, it takes seconds to compile
                    with loop(rows) as r, loop(count) as t:
                        value = activate(load(values, (r * count + t) * LANES))
                        store(y, ((first + t) * y_rows + row + r) * LANES, value)

        def block(first: Expr, count: int, rows: int) -> None:
            with local((count * LANES, "int32")) as (corrections,):
                if micro.token_sum is not None:
                    offsets(corrections, first, count)
                with loop(TILE // rows) as group:
                    with local((rows * count * micro.width, "int32")) as (acc,):
                        start(acc, corrections, count, rows)
                        with loop(k // micro.step) as step:
                            w_at = bind((step * micro.step * TILE) + group * (rows * micro.interleave))
                            x_at = [bind((first + t) * x_tile + step * (micro.step * LANES)) for t in range(count)]
                            micro.advance(acc, panel, x, w_at, x_at, rows)
                        finish(acc, first, count, group * rows, rows)

        done = 0
        for count, rows in micro.tiles:
            groups = bind((tiles - done) // count)
            with loop(groups) as g:
                block(bind(done + g * count), count, rows)
            done = bind(done + groups * count)

    arguments = [("panel", "int8"), ("x", "int8"), ("xsum", "int32")]
    floats = [(label, "float32") for label in ("xscale", "scale", "bias", "extra", "y")]
    scalars = [(label, "scalar") for label in ("k", "x_tile", "y_rows", "tiles")]
    return kernel(name, [*arguments, *floats, *scalars], body)


def plain_result(lanes: int) -> Callable[[Buffer, int], Expr]:
    """Accumulators of 16 int32 whose lanes are the tokens already, kept in vectors of `lanes`."""

    def result(acc: Buffer, at: int) -> Expr:
        parts = [load(acc, at + lane, lanes) for lane in range(0, LANES, lanes)]
        return parts[0] if len(parts) == 1 else shuffle(parts, range(LANES))

    return result


def dot_portable(target: Target) -> MicroKernel:
    """Fallback: shifts and 32-bit multiplies, exact everywhere, on any target."""

    def advance(acc: Buffer, panel: Buffer, x: Buffer, w_at: Expr, x_at: list[Expr], rows: int) -> None:
        lanes = bind(bits(load(x, x_at[0], 4 * LANES), f"int32x{LANES}"))
        for j in range(4):
            value = bind((lanes << i32(24 - 8 * j)) >> i32(24))
            for r in range(rows):
                weight = splat(cast(panel[w_at + 4 * r + j], "int32"))
                store(acc, r * LANES, load(acc, r * LANES) + weight * value)

    return MicroKernel((((1, 2),),), 4, LANES, LANES, advance, plain_result(LANES))
