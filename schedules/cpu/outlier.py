"""Rows' biases, and the weights that are kept exactly: small kernels around the dot product.

stic_outliers, one entry and tile: 1 load of 16 tokens x 4 features, 2 shifts, 1 conversion, 2 multiplies, 1
multiply-add to y; bound by the latency of y in cache. stic_outlier_mask: one byte store an entry.
"""

from __future__ import annotations

from stic.schedules.cpu.isa import panel_zero
from stic.schedules.pack import TILE
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
    i32,
    kernel,
    load,
    loop,
    splat,
    store,
)
from stic.targets.target import Target


def bias(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_bias(f32* y, f32* bias, i32 y_rows, i32 tiles): y[t][0..15][:] = bias."""

    def body(y: Buffer, values: Buffer, y_rows: Expr, tiles: Expr) -> None:
        with loop(tiles) as tile:
            for row in range(TILE):
                store(y, (tile * y_rows + row) * LANES, splat(values[row]))

    return kernel(
        "stic_bias", [("y", "float32"), ("bias", "float32"), ("y_rows", "scalar"), ("tiles", "scalar")], body
    )


def outlier_mask(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_outlier_mask(u8* panel, u16* entries, i32 count): the dense weight at entries[:, 0] becomes zero."""
    zero = T.uint8(panel_zero(target))

    def body(panel: Buffer, entries: Buffer, count: Expr) -> None:
        with loop(count) as i:
            store(panel, cast(entries[2 * i], "int32"), zero, 1)

    return kernel("stic_outlier_mask", [("panel", "uint8"), ("entries", "uint16"), ("count", "scalar")], body)


def outliers(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_outliers(u16* entries, i8* x, f32* xscale, f32* y, i32 count, i32 ks, i32 x_tile, i32 y_rows,
    i32 tiles): y[t][n][:] += xscale[t] * (v * x[t][k]) for entries (n * ks + k, float16 v)."""

    def body(
        entries: Buffer,
        x: Buffer,
        xscale: Buffer,
        y: Buffer,
        count: Expr,
        ks: Expr,
        x_tile: Expr,
        y_rows: Expr,
        tiles: Expr,
    ) -> None:
        with loop(count) as i:
            index = bind(cast(entries[2 * i], "int32"))
            weight = bind(cast(bits(entries[2 * i + 1], "float16"), "float32"))
            row = bind(T.truncdiv(index, ks))
            column = bind(index - row * ks)
            left = bind(24 - 8 * (column & 3))  # brings the feature's byte to the top of its lane
            with loop(tiles) as tile:
                lanes = load(x, tile * (x_tile >> 2) + (column >> 2) * LANES)
                value = cast((lanes << splat(left)) >> i32(24), f"float32x{LANES}")
                at = (tile * y_rows + row) * LANES
                store(y, at, load(y, at) + load(xscale, tile * LANES) * (splat(weight) * value))

    arguments = [("entries", "uint16"), ("x", "int32"), ("xscale", "float32"), ("y", "float32")]
    scalars = [(name, "scalar") for name in ("count", "ks", "x_tile", "y_rows", "tiles")]
    return kernel("stic_outliers", arguments + scalars, body)
