"""The dot micro-kernel of AVX2: pmaddubsw on magnitudes, exact because |w| and |x| are at most 127.

    registers (16 ymm)                     2 tiles x 2 rows, a step of 4 features:
      acc   2 rows x 4 halves   8            4  vmovdqa       x, 32 bytes = 8 tokens x 4 features
      x     4 halves            4            2  vpbroadcastd  4 weight bytes, 2 vpabsb
      w, |w|, ones              3            8  vpsignb       x * sign(w)
      product                   1            8  vpmaddubsw    pairs: at most 2 * 127 * 127 = 32,258 < 2^15
                                             8  vpmaddwd, 8 vpaddd

40 instructions for 256 multiply-adds; bound by the 32 vector instructions that depend on both operands.
"""

from __future__ import annotations

from stic.schedules.cpu.dot import MicroKernel, dot_kernel, plain_result
from stic.schedules.cpu.isa import has
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, T, bind, bits, intrinsic, load, splat, store
from stic.targets.target import Target

_TILES = ((2, 2), (1, 4))
_WIDTH = 8  # int32 lanes of a ymm register


def _advance(acc: Buffer, panel: Buffer, x: Buffer, w_at: list[Expr], x_at: list[Expr]) -> None:
    values = [bind(load(x, at + 32 * half, 32)) for at in x_at for half in range(LANES // _WIDTH)]
    ones = splat(T.int16(1), 2 * _WIDTH)
    for r, w in enumerate(w_at):
        weights = bind(bits(splat(bits(load(panel, w, 4), "int32"), _WIDTH), "int8x32"))
        magnitude = bind(bits(intrinsic("llvm.abs.v32i8", "int8x32", weights, T.bool(False)), "uint8x32"))
        for i, value in enumerate(values):
            at = (r * len(values) + i) * _WIDTH
            signed = intrinsic("llvm.x86.avx2.psign.b", "int8x32", value, weights)
            pairs = intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", magnitude, signed)
            total = load(acc, at, _WIDTH) + intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, ones)
            store(acc, at, total, _WIDTH)


def dot_avx2(target: Target, shape: KernelShape) -> PrimFunc | None:
    """AVX2 without VNNI."""
    if not has(target, "avx2"):
        return None
    return dot_kernel(MicroKernel(_TILES, 4, _WIDTH, LANES, _advance, plain_result(_WIDTH)))
