"""The decoder of AArch64: 128 codes at once.

Planes are transposed (unpack_transposed.py) with shifts and, for nibbles, sli and sri. Then codes are looked up, at 2
bits two in a nibble: tbl1 to 4 bits, tbl2 at 5, tbl4 at 6; at 7 and 8 bits tbl4, then tbx4 for every 64 entries more
(an index past a table leaves the lane alone).

    bits                          2    3    4    5    6    7    8
    instructions for 64 weights   23   32   34   46   48   60   90     stores included

Bound by the vector pipes (tbl of several registers takes longer).
"""

from __future__ import annotations

from collections.abc import Sequence

from stic.schedules.cpu.isa import has, panel_zero
from stic.schedules.cpu.unpack import Decoder, Vectors, table_registers
from stic.schedules.cpu.unpack_transposed import WORK, Keep, exchange, field_bits, names, transpose
from stic.schedules.tir import Buffer, Expr, T, bits, intrinsic, shuffle, splat
from stic.targets.target import Target

_WIDTH = 16
_BYTES = f"int8x{_WIDTH}"
_NEON = "llvm.aarch64.neon"
_TABLE = 4  # registers that one tbl reads at most


def _look_up(table: Sequence[Expr], code: Expr) -> Expr:
    """Entries of 16 codes; an index past the table gives 0."""
    count = min(len(table), _TABLE)
    value = intrinsic(f"{_NEON}.tbl{count}.v16i8", _BYTES, *table[:count], code)
    for first in range(_TABLE, len(table), _TABLE):
        index = bits(bits(code, f"uint8x{_WIDTH}") - splat(T.uint8(first * _WIDTH), _WIDTH), _BYTES)
        value = intrinsic(f"{_NEON}.tbx4.v16i8", _BYTES, value, *table[first : first + _TABLE], index)
    return value


def _swap(a: Expr, b: Expr, distance: int, width: int, keep: Keep) -> tuple[Expr, Expr]:
    """`exchange`; of nibbles by one instruction a register."""
    if distance < 4:
        return exchange(a, b, distance, width, keep)
    return (
        keep(intrinsic(f"{_NEON}.vsli.v16i8", _BYTES, a, b, T.int32(4))),
        keep(intrinsic(f"{_NEON}.vsri.v16i8", _BYTES, b, a, T.int32(4))),
    )


def _decode(planes: Sequence[Buffer], at: Expr, table: list[Expr], work: Buffer) -> list[Vectors]:
    field, keep = field_bits(len(planes)), names(work, _WIDTH)
    low, high = table, table
    if field == 2:  # a nibble is two codes, and each has its own table of nibbles
        high = [keep(shuffle(table, [code >> 2 for code in range(_WIDTH)]))]

    def look_up(codes: Expr) -> list[Expr]:
        if field == 8:
            return [_look_up(table, codes)]
        nibbles = [
            keep(codes & splat(T.int8(15), _WIDTH)),
            keep(bits(bits(codes, f"uint8x{_WIDTH}") >> splat(T.uint8(4), _WIDTH), _BYTES)),
        ]
        tables = (low, high) if field == 2 else (low,)
        return [keep(_look_up(entries, nibble)) for nibble in nibbles for entries in tables]

    return transpose(planes, at, _WIDTH, keep, look_up, _swap)


def decoder_neon(target: Target, bit_count: int) -> Decoder | None:
    """Any AArch64 core."""
    if not has(target, "asimd"):
        return None
    flip = panel_zero(target)
    return Decoder(2, lambda lut: table_registers(lut, 1 << bit_count, _WIDTH, flip), _decode, WORK)
