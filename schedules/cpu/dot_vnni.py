"""The dot micro-kernel of AVX-512 VNNI: vpdpbusd, 16 tokens x 4 features in one instruction.

    registers (32 zmm)                     4 tiles x 4 rows, a step of 4 features:
      acc   4 rows x 4 tiles   16            4  vmovdqa64     x, 64 bytes = 16 tokens x 4 features
      x     1 x 4 tiles         4            4  vpbroadcastd  4 unsigned weight bytes from the panel
      w     4 rows              4           16  vpdpbusd      1,024 multiply-adds

24 instructions and 8 loads for 16 vpdpbusd: bound by vpdpbusd (two a cycle on Zen 5 and on server cores with two
512-bit ports), loads need half of that time. vpdpbusd multiplies unsigned by signed, so the panel holds weight + 128
and the sum of x times 128 is taken off at the end.
"""

from __future__ import annotations

from stic.schedules.cpu.dot import MicroKernel, plain_result
from stic.schedules.cpu.isa import has_vnni
from stic.schedules.tir import LANES, Buffer, Expr, T, bind, bits, intrinsic, load, splat, store
from stic.targets.target import Target

_TILES = (
    ((4, 4), (2, 8), (1, 16)),
    ((3, 8), (2, 8), (1, 16)),
    ((4, 4), (3, 8), (2, 8), (1, 16)),
    ((2, 8), (1, 16)),
    ((4, 4), (2, 8), (1, 8)),
)


def vpdpbusd(acc: Expr, unsigned: Expr, signed: Expr) -> Expr:
    """acc (int32x16) + groups of four products of uint8x64 and int8x64."""
    return intrinsic("llvm.x86.avx512.vpdpbusd.512", "int32x16", acc, unsigned, signed)


def _advance(acc: Buffer, panel: Buffer, x: Buffer, w_at: Expr, x_at: list[Expr], rows: int) -> None:
    values = [bind(load(x, at, 64)) for at in x_at]
    for r in range(rows):
        weights = bind(bits(splat(bits(load(panel, w_at + 4 * r, 4), "int32")), "uint8x64"))
        for t, value in enumerate(values):
            at = (r * len(values) + t) * LANES
            store(acc, at, vpdpbusd(load(acc, at), weights, value))


def token_sum(total: Expr, x: Expr) -> Expr:
    """Add four features of 16 tokens (int8x64) to their sums (int32x16)."""
    return vpdpbusd(total, splat(T.uint8(1), 64), x)


def dot_vnni(target: Target) -> MicroKernel | None:
    """AVX-512 VNNI, any core that has it."""
    if not has_vnni(target):
        return None
    return MicroKernel(_TILES, 4, LANES, LANES, _advance, plain_result(LANES), token_sum=token_sum)
