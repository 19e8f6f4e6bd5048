"""The decoder of AVX2 (and of AVX-512 without VBMI): 32 codes in one register, twice a group.

    plane p, 4 bytes    vpbroadcastd     the 4 bytes in both halves
                        vpshufb          byte i <- byte i / 8
                        vpand, vpcmpeqb  0xFF where bit i % 8 is set
    last 4 planes       vpand, vpor      a nibble; every 16 table entries are one vpshufb
    planes before       the comparison is itself the mask of vpblendvb that halves the candidates

About 6 b + 1 instructions for 32 weights at b <= 4 bits, 2^(b-4) shuffles and 2^(b-4) - 1 blends more above;
bound by the vector ports.
"""

from __future__ import annotations

from collections.abc import Sequence

from stic.schedules.cpu.isa import has, panel_zero
from stic.schedules.cpu.unpack import EACH_BYTE, ONE_BIT_A_BYTE, Decoder, Vectors, table_registers
from stic.schedules.cpu.unpack_transposed import WORK, Keep, field_bits, names, transpose
from stic.schedules.tir import Buffer, Expr, T, bind, bits, intrinsic, load, pick, shuffle, splat
from stic.targets.target import Target

_WIDTH = 32
_BYTES = f"int8x{_WIDTH}"


def _shuffle(table: Expr, index: Expr) -> Expr:
    return intrinsic("llvm.x86.avx2.pshuf.b", _BYTES, table, index)


def _is_set(plane: Buffer, at: Expr) -> Expr:
    """Return 32 booleans from 4 bytes of a plane."""
    four = bits(splat(bits(load(plane, at, 4), "int32"), 8), _BYTES)
    spread = _shuffle(four, bits(T.ramp(T.int64(0), T.int64(EACH_BYTE), 4), _BYTES))
    bit = bits(splat(T.int64(ONE_BIT_A_BYTE), 4), _BYTES)
    return (spread & bit) == bit


def _decode(planes: Sequence[Buffer], at: Expr, table: list[Expr]) -> list[Vectors]:
    nibble_planes = planes[-4:]
    result = []
    for half in range(2):
        first = at + 4 * half
        nibble: Expr = None
        for p, plane in enumerate(nibble_planes):
            value = T.int8(1 << (len(nibble_planes) - 1 - p))
            bit = pick(_is_set(plane, first), splat(value, _WIDTH), splat(T.int8(0), _WIDTH))
            nibble = bit if nibble is None else nibble | bit
        nibble = bind(nibble)
        candidates = [bind(_shuffle(entries, nibble)) for entries in table]
        for plane in reversed(planes[:-4]):  # the least significant of the upper planes chooses between neighbours
            upper = bind(
                pick(_is_set(plane, first), splat(T.int8(-1), _WIDTH), splat(T.int8(0), _WIDTH))
            )
            candidates = [
                bind(intrinsic("llvm.x86.avx2.pblendvb", _BYTES, candidates[i], candidates[i + 1], upper))
                for i in range(0, len(candidates), 2)
            ]
        result.append((candidates[0], _WIDTH))
    return [result]


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


def _decode_four(planes: Sequence[Buffer], at: Expr, table: list[Expr], work: Buffer) -> list[Vectors]:
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


def decoder_avx2_four(target: Target, bit_count: int) -> Decoder | None:
    """Cores with AVX2, four groups a step."""
    if not has(target, "avx2"):
        return None
    flip = panel_zero(target)
    return Decoder(4, lambda lut: _tables(lut, bit_count, flip), _decode_four, WORK)


def decoder_avx2(target: Target, bit_count: int) -> Decoder | None:
    """Cores with AVX2, a group a step."""
    if not has(target, "avx2"):
        return None
    flip = panel_zero(target)
    return Decoder(1, lambda lut: _tables(lut, bit_count, flip), _decode)
