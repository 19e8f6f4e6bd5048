"""stic_rows_b2 .. b8: the product for few tokens, straight from the planes: decoded weights never leave registers.

                              token 0   token 1 ..
    planes -> 16 rows x q --> [ acc 0 ] [ acc 1 ]        lanes are rows here, q features of a token are broadcast
              features of x       += w . x

Weights are used once or a few times, so time goes into reading and decoding planes: what bounds it is memory from one
row to about four, multiply-adds from there on. stic_rows_finish turns rows and tokens round, into the layout of all
other kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from stic.runtime.format import TILE
from stic.schedules.cpu.activation import function_of
from stic.schedules.cpu.dot_vnni import vpdpbusd
from stic.schedules.cpu.isa import has_vnni, panel_zero
from stic.schedules.cpu.outlier import Entry
from stic.schedules.cpu.unpack import Decoder, Vectors, each_group
from stic.schedules.cpu.vector_math import fma
from stic.schedules.pack import GROUP, interleave
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
    transpose16,
    when,
)
from stic.schedules.tuning import Tuning
from stic.targets.target import Target

SCATTERED = 2  # tokens whose outputs are stored one by one; turning a whole tile round costs more than these


@dataclass(frozen=True)
class RowsKernel:
    """How an instruction set multiplies weights of 16 rows with few tokens.

    multiply(acc, start, tokens, weights, half, x, at) emits acc[start + width t ..] += w . x for one group of 64
    weights, given as the decoder's vectors, and every token t, whose q features are at x[at + q t]; `half` is 1 for
    rows 8..15 where a group covers 8 rows (q = 8), else 0. result(acc, at) is one token's 16 sums, one a row.
    """

    multiply: Callable[[Buffer, int, int, Vectors, int, Buffer, Expr], None]
    result: Callable[[Buffer, int], Expr]
    lanes: int = LANES  # int32 lanes of a native vector
    width: int = LANES  # int32 elements a token takes in acc
    tokens: tuple[int, ...] = (1, 2, 4, 8)  # numbers of tokens with a loop of their own; others take the next
    chains: int = 8  # independent sums, where there are fewer tokens, that hide the latency of a multiply-add

    def for_tokens(self, rows: Expr, emit: Callable[[int], None]) -> None:
        """Emit emit(number of tokens) for each number that has a loop of its own; the least that is enough runs."""
        for fewer, tokens in zip((0, *self.tokens), self.tokens, strict=False):
            with when(tirx.all(rows > fewer, rows <= tokens)):
                emit(tokens)


def rows_kernel(bit_count: int, decoders: Sequence[Decoder], micro: RowsKernel, q: int, tuning: Tuning) -> PrimFunc:
    """void stic_rows_b<bits>(u8* p0 .. u8* p7, i8* lut, i8* x, i32* acc, i32 groups, i32 x_pitch, i32 rows).

    acc[token][n] += the products of 16 rows n and `groups` groups of 64 weights; x (features / q, tokens, q), x_pitch
    bytes a group of features; rows is the number of tokens, 1 to 8. acc and x have room for the next power of two.
    """
    halves = TILE * q // GROUP  # groups of weights that share their features
    decoders = [decoder for decoder in decoders if decoder.groups % halves == 0]

    def body(*values: Buffer) -> None:
        planes, (lut, x, out, groups, x_pitch, rows) = values[:bit_count], values[8:]

        def product(tokens: int) -> None:
            chains, size = max(1, (tuning.chains or micro.chains) // tokens), tokens * micro.width
            with local((chains * size, "int32")) as (acc,):
                for at in range(0, chains * size, micro.lanes):
                    store(acc, at, i32(0, micro.lanes), micro.lanes)

                def visit(first: Expr, i: int, weights: Vectors) -> None:
                    chain = i // halves % chains * size
                    at = bind((first + i) // halves * x_pitch)
                    micro.multiply(acc, chain, tokens, weights, i % halves, x, at)

                each_group(decoders, planes, lut, groups, visit, tuning.prefetch_bytes)
                for token in range(tokens):
                    total = load(out, token * LANES)
                    for chain in range(chains):
                        total = total + micro.result(acc, chain * size + token * micro.width)
                    store(out, token * LANES, total)

        micro.for_tokens(rows, product)

    pointers = [*((f"p{p}", "uint8") for p in range(8)), ("lut", "int8"), ("x", "int8"), ("acc", "int32")]
    scalars = [(name, "scalar") for name in ("groups", "x_pitch", "rows")]
    return kernel(f"stic_rows_b{bit_count}", [*pointers, *scalars], body)


def rows_vnni(target: Target) -> RowsKernel | None:
    """AVX-512 VNNI: a register of weights is 16 rows x 4 features, a token's 4 features are broadcast from memory."""
    if not has_vnni(target):
        return None

    def multiply(acc: Buffer, start: int, tokens: int, weights: Vectors, half: int, x: Buffer, at: Expr) -> None:
        unsigned = bind(bits(joined(weights), f"uint8x{GROUP}"))
        for t in range(tokens):
            features = bits(splat(bits(load(x, at + 4 * t, 4), "int32")), f"int8x{GROUP}")
            sums = start + t * LANES
            store(acc, sums, vpdpbusd(load(acc, sums), unsigned, features))

    return RowsKernel(multiply, lambda acc, at: load(acc, at))


def joined(weights: Vectors) -> Expr:
    """The vectors of a group as one of 64 int8."""
    return weights[0][0] if len(weights) == 1 else shuffle([vector for vector, _ in weights], range(GROUP))


def rows_outliers(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_rows_outliers(u16* entries, f32* scale, i8* x, f32* extra, i32 count, i32 dense, i32 x_pitch,
    i32 rows).

    What stic_outliers does, for few tokens: extra[token][n] += (v - scale[n] * dense) * x[token][k].
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
        rows: Expr,
    ) -> None:
        def add(entry: Entry, token: Expr) -> None:
            value = cast(x[entry.group * x_pitch + entry.feature + token * q], "float32")
            sums = bind(token * LANES + entry.row)
            store(extra, sums, fma(entry.weight, value, extra[sums], 1), 1)

        with when(rows == 1), loop(count) as i:
            add(Entry(entries, i, scale, dense, q), 0)
        with when(rows > 1), loop(count) as i:
            entry = Entry(entries, i, scale, dense, q)
            with loop(rows) as token:
                add(entry, token)

    pointers = [("entries", "uint16"), ("scale", "float32"), ("x", "int8"), ("extra", "float32")]
    scalars = [(name, "scalar") for name in ("count", "dense", "x_pitch", "rows")]
    return kernel("stic_rows_outliers", pointers + scalars, body)


def rows_finish(target: Target, shape: KernelShape) -> tuple[PrimFunc, PrimFunc]:
    """stic_rows_finish and stic_rows_finish_activated.

    void stic_rows_finish(i32* acc, i32* xsum, f32* xscale, f32* scale, f32* bias, f32* extra, f32* y, i32 rows): from
    sums acc (16 tokens, 16 rows), what stic_dot makes of its sums, for one tile; extra (16 tokens, 16 rows), y (16
    rows, 16 tokens), of which tokens from `rows` on may hold anything after.
    """
    return tuple(
        _rows_finish(name, target, activate)
        for name, activate in (("stic_rows_finish", None), ("stic_rows_finish_activated", function_of(shape)))
    )


def _rows_finish(name: str, target: Target, activate: Callable[[Expr], Expr] | None) -> PrimFunc:
    def body(
        acc: Buffer, xsum: Buffer, xscale: Buffer, scale: Buffer, bias: Buffer, extra: Buffer, y: Buffer, rows: Expr
    ) -> None:
        def finished(token: Expr) -> Expr:
            """The 16 outputs of one token."""
            total = load(acc, token * LANES)
            if panel_zero(target):
                total = total - splat(xsum[token] * panel_zero(target))
            inner = fma(load(scale, 0), cast(total, f"float32x{LANES}"), load(extra, token * LANES))
            value = fma(splat(xscale[token]), inner, load(bias, 0))
            return value if activate is None else activate(value)

        with local((LANES * LANES, "float32"), (LANES * LANES, "float32")) as (block, spare):
            with when(rows <= SCATTERED):
                with loop(rows) as token:
                    store(block, 0, finished(token))
                    for row in range(TILE):
                        store(y, row * LANES + token, block[row], 1)
            with when(rows > SCATTERED):
                with loop(LANES) as token:
                    store(block, token * LANES, finished(token))
                transpose16(block, spare)
                for row in range(TILE):
                    store(y, row * LANES, load(block, row * LANES))

    arguments = [("acc", "int32"), ("xsum", "int32")]
    floats = [(label, "float32") for label in ("xscale", "scale", "bias", "extra", "y")]
    return kernel(name, [*arguments, *floats, ("rows", "scalar")], body)


def rows_portable(target: Target) -> RowsKernel:
    """Fallback: shifts and 32-bit multiplies on 16 rows, exact everywhere."""

    def multiply(acc: Buffer, start: int, tokens: int, weights: Vectors, half: int, x: Buffer, at: Expr) -> None:
        del half
        with local((GROUP, "int8")) as (group,):
            filled = 0
            for vector, lanes in weights:
                store(group, filled, vector, lanes)
                filled += lanes
            words = bind(bits(load(group, 0, GROUP), f"int32x{LANES}"))
            for j in range(4):
                weight = bind((words << i32(24 - 8 * j)) >> i32(24))
                for t in range(tokens):
                    sums = start + t * LANES
                    store(acc, sums, load(acc, sums) + weight * splat(cast(x[at + 4 * t + j], "int32")))

    return RowsKernel(multiply, lambda acc, at: load(acc, at))
