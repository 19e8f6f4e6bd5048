"""Bit planes -> codes -> int8 weights, 64 at a time: the loops around the decoders, and stic_unpack_b2 .. b8.

    plane 0 (most significant)  8 bytes  \\
    plane 1                     8 bytes   |-- spread bits to bytes --> 64 codes -- table of 2^b int8 --> 64 bytes
     ..                                   |
    plane b-1                   8 bytes  /

A decoder (unpack_gfni.py, unpack_avx512.py, unpack_avx2.py, unpack_neon.py) loads the table into registers once and
turns one group, or several, into vectors of 64 bytes. `decoder_portable` at the end of this file needs no instruction
beyond TIR's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from stic.runtime.format import TILE
from stic.schedules.cpu.isa import panel_zero
from stic.schedules.pack import GROUP
from stic.schedules.tir import (
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
    prefetch,
    shuffle,
    splat,
    store,
)
from stic.targets.target import Target

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
GROUP_BYTES = GROUP // 8
LEAST_GROUPS = TILE * TILE // GROUP  # of a block with the fewest features; others have a multiple
LINE = 64  # bytes of a cache line
Vectors = list[tuple[Expr, int]]  # int8 vectors and their lanes, 64 together: one group


@dataclass(frozen=True)
class Decoder:
    """How an instruction set turns planes into weights.

    table(lut) loads the 2^bits int8 into registers; decode(planes, at, table) emits the `groups` groups that begin at
    byte `at` of every plane. A decoder with `work` gets a local buffer of as many bytes as a fourth argument.
    """

    groups: int
    table: Callable[[Buffer], list[Expr]]
    decode: Callable[..., list[Vectors]]
    work: int = 0


def each_group(
    decoders: Sequence[Decoder],
    planes: Sequence[Buffer],
    lut: Buffer,
    groups: Expr,
    visit: Callable[[Expr, int, Vectors], None],
    prefetch_bytes: int,
) -> None:
    """Emit `visit(first, i, vectors)` for every group first + i of the `groups`; `decoders` go from many groups a
    step to few, and what one leaves over the next takes."""
    done: Expr = 0
    for decoder in decoders:
        table = decoder.table(lut)
        steps = bind((groups - done) // decoder.groups)
        each_step(decoder, table, planes, (done, steps), visit, prefetch_bytes)
        done = bind(done + steps * decoder.groups)


def each_step(
    decoder: Decoder,
    table: list[Expr],
    planes: Sequence[Buffer],
    part: tuple[Expr, Expr],
    visit: Callable[[Expr, int, Vectors], None],
    prefetch_bytes: int,
) -> None:
    """Emit `visit(first, i, vectors)` for the groups of a part: (first group, steps of the decoder)."""
    start, steps = part
    with loop(steps) as step:
        first = bind(start + step * decoder.groups)
        if prefetch_bytes and decoder.groups * GROUP_BYTES == LINE:
            for plane in planes:
                prefetch(plane, first * GROUP_BYTES + prefetch_bytes // len(planes))
        scratch: AbstractContextManager[list[Buffer]] = (
            local((decoder.work, "int8")) if decoder.work else nullcontext([])
        )
        with scratch as work:
            for i, vectors in enumerate(decoder.decode(planes, first * GROUP_BYTES, table, *work)):
                visit(first, i, vectors)


def unpack_kernel(bit_count: int, decoders: Sequence[Decoder], prefetch_bytes: int) -> PrimFunc:
    """void stic_unpack_b<bits>(u8* p0 .. u8* p7, i8* lut, u8* panel, i32 groups): `groups` groups of 64 codes,
    a multiple of LEAST_GROUPS.

    Only the first `bits` planes are read, 8 bytes a group each; lut has 2^bits entries aligned to its size (at most
    64); panel is 64-byte aligned.
    """

    def body(*values: Buffer) -> None:
        planes, lut, panel, groups = values[:bit_count], values[8], values[9], values[10]

        def keep(first: Expr, i: int, vectors: Vectors) -> None:
            at = i * GROUP
            for vector, lanes in vectors:
                store(panel, first * GROUP + at, vector, lanes)
                at += lanes

        each_group(decoders, planes, lut, groups, keep, prefetch_bytes)

    arguments = [*((f"p{p}", "uint8") for p in range(8)), ("lut", "int8"), ("panel", "int8"), ("groups", "scalar")]
    return kernel(f"stic_unpack_b{bit_count}", arguments, body)


def table_registers(lut: Buffer, entries: int, width: int, flip: int, start: int = 0) -> list[Expr]:
    """Load `entries` entries from `start` on into vectors of `width` bytes, repeated where there are fewer.

    Each entry is xored with `flip`, which turns an int8 into the same value + 128 when it is 128.
    """

    def register(first: int) -> Expr:
        count = min(entries, width)
        if count <= 8:
            word = bits(load(lut, first, count), f"uint{8 * count}")
            if count == 4:  # widened here: LLVM 22 does not return from vpermb on a vector of equal 32-bit words
                word = cast(word, "uint64")
                word = word | (word << T.uint64(32))
            vector = bits(splat(word, width // 8), f"int8x{width}")
        else:
            part = bind(load(lut, first, count))
            repeats = width // count
            vector = part if repeats == 1 else shuffle([part] * repeats, list(range(count)) * repeats)
        return bind(vector ^ splat(T.int8(flip - 256 if flip > 127 else flip), width) if flip else vector)

    return [register(first) for first in range(start, start + entries, width)]


def decoder_portable(target: Target, bit_count: int) -> Decoder:
    """Fallback: one code at a time with scalar shifts and loads."""
    flip = panel_zero(target)

    def decode(planes: Sequence[Buffer], at: Expr, table: list[Expr]) -> list[Vectors]:
        weights = []
        for i in range(GROUP_BYTES):
            bytes_ = [bind(cast(plane[at + i], "int32")) for plane in planes]
            for j in range(8):
                code = T.int32(0)
                for byte in bytes_:
                    code = code * 2 + ((byte >> j) & 1)
                weights.append((table[0][code] ^ T.int8(flip - 256 if flip > 127 else flip), 1))
        return [weights]

    return Decoder(1, lambda lut: [lut], decode)
