"""stic_unpack_b2 .. b8: bit planes -> codes -> int8 weights, 64 at a time. The loop around the micro-kernels.

    plane 0 (most significant)  8 bytes  \\
    plane 1                     8 bytes   |-- spread bits to bytes --> 64 codes -- table of 2^b int8 --> 64 bytes
     ..                                   |
    plane b-1                   8 bytes  /

A micro-kernel (unpack_avx512.py, unpack_avx2.py, unpack_neon.py) loads the table into registers once and turns one
group into 64 bytes. `unpack_portable` at the end of this file needs no instruction beyond TIR's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stic.schedules.cpu.isa import panel_zero
from stic.schedules.pack import GROUP
from stic.schedules.shape import KernelShape
from stic.schedules.tir import Buffer, Expr, PrimFunc, T, bind, bits, cast, kernel, load, loop, shuffle, splat, store
from stic.targets.target import Target

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
GROUP_BYTES = GROUP // 8
EACH_BYTE = 0x0101010101010101  # times n: a word of eight bytes n
ONE_BIT_A_BYTE = 0x8040201008040201 - (1 << 64)  # byte j of a word keeps bit j

# (planes, byte offset of the group in each plane, table registers) -> vectors of int8, 64 lanes together
Decode = Callable[[Sequence[Buffer], Expr, list[Expr]], list[tuple[Expr, int]]]


def unpack_kernel(bit_count: int, lut_registers: Callable[[Buffer], list[Expr]], decode: Decode) -> PrimFunc:
    """void stic_unpack_b<bits>(u8* p0 .. u8* p7, i8* lut, u8* panel, i32 groups): `groups` groups of 64 codes.

    Only the first `bits` planes are read, 8 bytes a group each; lut has 2^bits entries aligned to its size (at most
    64); panel is 64-byte aligned.
    """

    def body(*values: Buffer) -> None:
        planes, lut, panel, groups = values[:bit_count], values[8], values[9], values[10]
        table = lut_registers(lut)
        with loop(groups) as group:
            at = 0
            for vector, lanes in decode(planes, group * GROUP_BYTES, table):
                store(panel, group * GROUP + at, vector, lanes)
                at += lanes

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


def unpack_portable(target: Target, shape: KernelShape, bit_count: int) -> PrimFunc:
    """Fallback: one code at a time with scalar shifts and loads."""
    flip = panel_zero(target)

    def body(*values: Buffer) -> None:
        planes, lut, panel, groups = values[:bit_count], values[8], values[9], values[10]
        with loop(groups * GROUP_BYTES) as i:
            bytes_ = [bind(cast(plane[i], "int32")) for plane in planes]
            for j in range(8):
                code = T.int32(0)
                for byte in bytes_:
                    code = code * 2 + ((byte >> j) & 1)
                store(panel, i * 8 + j, cast(lut[code], "uint8") ^ T.uint8(flip), 1)

    arguments = [*((f"p{p}", "uint8") for p in range(8)), ("lut", "int8"), ("panel", "uint8"), ("groups", "scalar")]
    return kernel(f"stic_unpack_b{bit_count}", arguments, body)
