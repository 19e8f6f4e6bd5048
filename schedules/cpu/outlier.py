"""Rows' biases, and the weights that are kept exactly: small kernels around the dot product.

stic_outliers, one entry and tile: 1 instruction that takes one of four features out of 16 tokens (vpdpbusd with a
single 1; elsewhere 2 shifts), 1 conversion, 1 multiply-add to the sum in memory; bound by the stores. Sums are taken in
a buffer of their own: rows of the outputs lie a multiple of 4096 bytes apart, which makes loads wait for stores that
they do not need. The code under an outlier is the same in every matrix, 2^(bits-1), so its weight is known here and
taken off: the dense kernels need no holes.
"""

from __future__ import annotations

from stic.runtime.format import TILE
from stic.schedules.cpu.dot_vnni import vpdpbusd
from stic.schedules.cpu.isa import has_vnni
from stic.schedules.cpu.vector_math import fma
from stic.schedules.pack import interleave
from stic.schedules.shape import DecoderShape, KernelShape
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
    pick,
    shuffle,
    splat,
    store,
)
from stic.targets.target import Target

_UNROLLED = (8, 4, 1)  # tiles a step, as many as there are


class Entry:
    """One outlier of a block of 16 rows: its row, its group of q features and the feature in it, and what its weight is
    beyond the table's value of the code under it."""

    def __init__(self, entries: Buffer, i: Expr, scale: Buffer, dense: Expr, q: int) -> None:
        position = bind(cast(entries[2 * i], "int32"))
        self.row = bind((position >> (q.bit_length() - 1)) & (TILE - 1))
        self.group, self.feature = bind(position >> ((TILE * q).bit_length() - 1)), bind(position & (q - 1))
        value = cast(bits(entries[2 * i + 1], "float16"), "float32")
        self.weight = fma(-scale[self.row], cast(dense, "float32"), value, 1)


def bias(target: Target, shape: KernelShape | DecoderShape) -> PrimFunc:
    """void stic_bias(f32* y, f32* bias, i32 y_rows, i32 tiles): y[t][0..15][:] = bias."""

    def body(y: Buffer, values: Buffer, y_rows: Expr, tiles: Expr) -> None:
        with loop(tiles) as tile:
            for row in range(TILE):
                store(y, (tile * y_rows + row) * LANES, splat(values[row]))

    return kernel("stic_bias", [("y", "float32"), ("bias", "float32"), ("y_rows", "scalar"), ("tiles", "scalar")], body)


def _one_feature(target: Target, q: int, lanes: Expr, feature: Expr, one_hot: Expr) -> Expr:
    """Feature `feature` of a group (16 tokens, q int8) as int32x16; one_hot has a 1 in its byte of four."""
    if has_vnni(target):
        return vpdpbusd(i32(0), bits(splat(one_hot), "uint8x64"), lanes)
    lanes = bind(bits(lanes, f"int32x{q // 4 * LANES}"))
    if q == 8:
        even, odd = (shuffle([lanes], range(half, 2 * LANES, 2)) for half in (0, 1))
        lanes = pick(splat(feature < 4), even, odd)
    return (lanes << splat(24 - 8 * (feature & 3))) >> i32(24)


def outliers(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_outliers(u16* entries, f32* scale, i8* x, f32* extra, i32 count, i32 dense, i32 x_pitch, i32 x_tile,
    i32 tiles): extra[t][n][:] += (v - scale[n] * dense) * x[t][k] for entries (position, float16 v).

    position = (k / q) * 16 q + n * q + k % q; dense is the table's value of the code under every outlier; x_pitch is
    the bytes of a group of q features, x_tile those of a tile of 16 tokens.
    """
    q = interleave(target)

    def body(
        entries: Buffer,
        scale: Buffer,
        x: Buffer,
        extra: Buffer,
        count: Expr,
        dense: Expr,
        x_pitch: Expr,
        x_tile: Expr,
        tiles: Expr,
    ) -> None:
        def add(i: Expr, first: Expr, some: int) -> None:
            """Emit one entry for `some` tiles from `first` on."""
            entry = Entry(entries, i, scale, dense, q)
            group, one_hot = bind(entry.group * x_pitch), bind(T.int32(1) << ((entry.feature & 3) * 8))
            for tile in range(some):
                lanes = load(x, (first + tile) * x_tile + group, q * LANES)
                term = cast(_one_feature(target, q, lanes, entry.feature, one_hot), f"float32x{LANES}")
                at = bind(((first + tile) * TILE + entry.row) * LANES)
                store(extra, at, fma(splat(entry.weight), term, load(extra, at)))

        done: Expr = 0
        for some in _UNROLLED:  # tiles outside, so that their addresses are known before the entries
            steps = bind((tiles - done) // some)
            with loop(steps) as step, loop(count) as i:
                add(i, bind(done + step * some), some)
            done = bind(done + steps * some)

    arguments = [("entries", "uint16"), ("scale", "float32"), ("x", "int8"), ("extra", "float32")]
    scalars = [(name, "scalar") for name in ("count", "dense", "x_pitch", "x_tile", "tiles")]
    return kernel("stic_outliers", arguments + scalars, body)
