"""The unpack micro-kernel of AVX2 (and of AVX-512 without VBMI): 32 codes in one register, twice a group.

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
from stic.schedules.cpu.unpack import EACH_BYTE, ONE_BIT_A_BYTE, table_registers, unpack_kernel
from stic.schedules.shape import KernelShape
from stic.schedules.tir import Buffer, Expr, PrimFunc, T, bind, bits, intrinsic, load, pick, splat
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


def _decode(planes: Sequence[Buffer], at: Expr, table: list[Expr]) -> list[tuple[Expr, int]]:
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
    return result


def unpack_avx2(target: Target, shape: KernelShape, bit_count: int) -> PrimFunc | None:
    """Cores with AVX2."""
    if not has(target, "avx2"):
        return None
    flip = panel_zero(target)

    def registers(lut: Buffer) -> list[Expr]:
        # vpshufb looks up in each 16-byte half, so every 16 entries are repeated in both halves.
        return [
            entry
            for first in range(0, 1 << bit_count, 16)
            for entry in table_registers(lut, min(16, 1 << bit_count), _WIDTH, flip, first)
        ]

    return unpack_kernel(bit_count, registers, _decode)
