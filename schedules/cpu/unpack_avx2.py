"""The decoder of AVX2 (and of AVX-512 without VBMI): 256 codes at once.

Planes are transposed (unpack_transposed.py). Then codes are looked up, at 2 bits two in a nibble: 16 entries by one
vpshufb; where there are more, vpblendvb halves the candidates by one bit of the code after the other.

    bits                          2    3    4    5    6    7    8
    instructions for 64 weights   14   20   21   36   49   80   145    stores included

Bound by the vector ports, and at 7 and 8 bits by loads of tables, which registers do not hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from stic.schedules.cpu.isa import has, panel_zero
from stic.schedules.cpu.unpack import Decoder, Vectors, table_registers
from stic.schedules.cpu.unpack_transposed import WORK, Keep, field_bits, names, transpose
from stic.schedules.tir import Buffer, Expr, T, bits, intrinsic, shuffle, splat
from stic.targets.target import Target

_WIDTH = 32
_BYTES = f"int8x{_WIDTH}"


def _shuffle(table: Expr, index: Expr) -> Expr:
    return intrinsic("llvm.x86.avx2.pshuf.b", _BYTES, table, index)


def _chosen(table: Sequence[Expr], code: Expr, keep: Keep) -> Expr:
    """Entries of 32 codes from tables of 16 each; 0 where a code is 128 or more."""
    candidates = [keep(_shuffle(entries, code)) for entries in table]
    bit = 4
    while len(candidates) > 1:
        mask = keep(bits(bits(code, "uint16x16") << splat(T.uint16(7 - bit), 16), _BYTES))  # to the top of every byte
        candidates = [
            keep(intrinsic("llvm.x86.avx2.pblendvb", _BYTES, candidates[i], candidates[i + 1], mask))
            for i in range(0, len(candidates), 2)
        ]
        bit += 1
    return candidates[0]


def _decode(planes: Sequence[Buffer], at: Expr, table: list[Expr], work: Buffer) -> list[Vectors]:
    field, keep = field_bits(len(planes)), names(work, _WIDTH)
    low, high = table, table
    if field == 2:  # a nibble is two codes, and each has its own table of nibbles
        high = [keep(shuffle(table, [half + (code >> 2) for half in (0, 16) for code in range(16)]))]

    def look_up(codes: Expr) -> list[Expr]:
        if field == 8 and len(table) == 16:
            above = keep(codes ^ splat(T.int8(-128), _WIDTH))
            return [keep(_chosen(table[:8], codes, keep) | _chosen(table[8:], above, keep))]
        if field == 8:
            return [_chosen(table, codes, keep)]
        nibble = splat(T.int8(15), _WIDTH)
        moved = bits(bits(codes, "uint16x16") >> splat(T.uint16(4), 16), _BYTES)
        nibbles = [keep(codes & nibble), keep(moved & nibble)]
        tables = (low, high) if field == 2 else (low,)
        return [keep(_shuffle(entries[0], index)) for index in nibbles for entries in tables]

    return transpose(planes, at, _WIDTH, keep, look_up)


def _tables(lut: Buffer, bit_count: int, flip: int) -> list[Expr]:
    """16 entries a register, repeated in both halves, as vpshufb looks up in each of them."""
    return [
        entry
        for first in range(0, 1 << bit_count, 16)
        for entry in table_registers(lut, min(16, 1 << bit_count), _WIDTH, flip, first)
    ]


def decoder_avx2(target: Target, bit_count: int) -> Decoder | None:
    """Cores with AVX2."""
    if not has(target, "avx2"):
        return None
    flip = panel_zero(target)
    return Decoder(4, lambda lut: _tables(lut, bit_count, flip), _decode, WORK)
