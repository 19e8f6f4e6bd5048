"""The dot micro-kernel of AVX-VNNI: vpdpbusd on 256 bits, for cores without AVX-512 (Alder Lake and later).

    registers (16 ymm)                     3 tiles x 2 rows, a step of 4 features:
      acc   2 rows x 6 halves  12            6  vmovdqu       x, 32 bytes = 8 tokens x 4 features
      x     1                   1            2  vpbroadcastd  4 unsigned weight bytes from the panel
      w     2 rows              2           12  {vex} vpdpbusd: 384 multiply-adds

20 instructions for 12 vpdpbusd, of which a core does two a cycle, beside two loads: bound by vpdpbusd. As in
dot_vnni.py the panel holds weight + 128, and accumulators start at -128 times the sum of x.
"""

from __future__ import annotations

from stic.schedules.cpu.dot import MicroKernel, plain_result
from stic.schedules.cpu.isa import has
from stic.schedules.tir import LANES, Buffer, Expr, T, bind, bits, intrinsic, load, shuffle, splat, store
from stic.targets.target import Target

_TILES = (((3, 2), (2, 2), (1, 4)), ((2, 2), (1, 4)), ((1, 4),))
_WIDTH = 8  # int32 lanes of a ymm register


def vpdpbusd_256(acc: Expr, unsigned: Expr, signed: Expr) -> Expr:
    """acc (int32x8) + groups of four products of uint8x32 and int8x32; without AVX-512, LLVM picks the vex form."""
    return intrinsic("llvm.x86.avx512.vpdpbusd.256", "int32x8", acc, unsigned, signed)


def _advance(acc: Buffer, panel: Buffer, x: Buffer, w_at: Expr, x_at: list[Expr], rows: int) -> None:
    weights = [bind(bits(splat(bits(load(panel, w_at + 4 * r, 4), "int32"), _WIDTH), "uint8x32")) for r in range(rows)]
    halves = [at + 32 * half for at in x_at for half in range(LANES // _WIDTH)]
    for i, half in enumerate(halves):
        value = bind(load(x, half, 32))
        for r, row in enumerate(weights):
            at = (r * len(halves) + i) * _WIDTH
            store(acc, at, vpdpbusd_256(load(acc, at, _WIDTH), row, value), _WIDTH)


def token_sum(total: Expr, x: Expr) -> Expr:
    """Add four features of 16 tokens (int8x64) to their sums (int32x16)."""
    total, x, ones = bind(total), bind(x), splat(T.uint8(1), 32)
    halves = []
    for half in range(LANES // _WIDTH):
        sums = shuffle([total], range(_WIDTH * half, _WIDTH * (half + 1)))
        halves.append(vpdpbusd_256(sums, ones, shuffle([x], range(32 * half, 32 * (half + 1)))))
    return shuffle(halves, range(LANES))


def dot_avx_vnni(target: Target) -> MicroKernel | None:
    """AVX-VNNI, where there is no 512-bit form."""
    if not has(target, "avx2", "avx_vnni"):
        return None
    return MicroKernel(_TILES, 4, _WIDTH, LANES, _advance, plain_result(_WIDTH), token_sum=token_sum)
