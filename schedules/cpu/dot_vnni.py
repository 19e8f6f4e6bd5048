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

from stic.schedules.cpu.dot import MicroKernel, dot_kernel, plain_result
from stic.schedules.cpu.isa import has_vnni
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, T, bind, bits, intrinsic, load, splat, store
from stic.targets.target import Target

_TILES = ((4, 4), (2, 8), (1, 8))


def _vpdpbusd(acc: Expr, weights: Expr, x: Expr) -> Expr:
    return intrinsic("llvm.x86.avx512.vpdpbusd.512", "int32x16", acc, weights, x)


def _advance(acc: Buffer, panel: Buffer, x: Buffer, w_at: list[Expr], x_at: list[Expr]) -> None:
    values = [bind(load(x, at, 64)) for at in x_at]
    for r, w in enumerate(w_at):
        weights = bind(bits(splat(bits(load(panel, w, 4), "int32")), "uint8x64"))
        for t, value in enumerate(values):
            at = (r * len(values) + t) * LANES
            store(acc, at, _vpdpbusd(load(acc, at), weights, value))


def _token_sum(total: Expr, x: Expr) -> Expr:
    return _vpdpbusd(total, splat(T.uint8(1), 64), x)


def dot_vnni(target: Target, shape: KernelShape) -> PrimFunc | None:
    """AVX-512 VNNI, any core that has it."""
    if not has_vnni(target):
        return None
    return dot_kernel(MicroKernel(_TILES, 4, LANES, LANES, _advance, plain_result(LANES), _token_sum))
