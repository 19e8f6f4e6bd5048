"""The decoder of AVX-512 VBMI: 64 codes in one register.

    plane p, 8 bytes    vpmultishiftqb (broadcast from memory)   byte i <- 8 bits from bit i - s on, so bit i is at s
                        vpternlogq                               code |= that & (1 << s),   s = bits - 1 - p
    codes               vpermb      2..6 bits: one table register of 64 entries
                        vpermi2b    7 bits: two registers;  8 bits: twice, and a blend on bit 7

2 b + 2 instructions for 64 weights up to 6 bits, + 3 at 8 bits; bound by the shuffle port (b + 1 a group).
"""

from __future__ import annotations

from collections.abc import Sequence

from stic.schedules.cpu.isa import has, panel_zero
from stic.schedules.cpu.unpack import GROUP_BYTES, Decoder, Vectors, table_registers
from stic.schedules.pack import GROUP
from stic.schedules.tir import Buffer, Expr, T, bind, bits, intrinsic, load, pick, splat
from stic.targets.target import Target

_BYTES = f"int8x{GROUP}"


def _int8(value: int) -> Expr:
    return T.int8(value - 256 if value > 127 else value)


def table_of(target: Target, lut: Buffer, bit_count: int) -> list[Expr]:
    """The table in registers of 64 entries, repeated where there are fewer."""
    return table_registers(lut, 1 << bit_count, GROUP, panel_zero(target))


def look_up(table: list[Expr], code: Expr) -> Expr:
    """Table entries of 64 codes; with one register only 6 bits of a code count, with two 7."""
    if len(table) == 1:
        return intrinsic("llvm.x86.avx512.permvar.qi.512", _BYTES, table[0], code)
    pairs = [
        bind(intrinsic("llvm.x86.avx512.vpermi2var.qi.512", _BYTES, table[i], code, table[i + 1]))
        for i in range(0, len(table), 2)
    ]
    return pairs[0] if len(pairs) == 1 else pick(code < splat(T.int8(0), GROUP), pairs[1], pairs[0])


def _decode(planes: Sequence[Buffer], at: Expr, table: list[Expr]) -> list[Vectors]:
    code: Expr = None
    for p, plane in enumerate(planes):
        shift = len(planes) - 1 - p
        word = splat(bits(load(plane, at, GROUP_BYTES), "int64"), 8)
        control = T.ramp(T.int8(-shift), 1, GROUP)  # the instruction takes the shift modulo 64
        moved = intrinsic("llvm.x86.avx512.pmultishift.qb.512", _BYTES, control, bits(word, _BYTES))
        bit = moved & splat(_int8(1 << shift), GROUP)
        code = bit if code is None else code | bit
    return [[(look_up(table, bind(code)), GROUP)]]


def decoder_avx512(target: Target, bit_count: int) -> Decoder | None:
    """Cores with AVX-512 VBMI."""
    if not has(target, "avx512bw", "avx512_vbmi"):
        return None
    return Decoder(1, lambda lut: table_of(target, lut, bit_count), _decode)
