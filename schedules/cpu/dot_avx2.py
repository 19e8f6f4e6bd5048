"""The dot micro-kernel of AVX2: pmaddubsw on magnitudes, exact because |w| and |x| are at most 127.

    registers (16 ymm)                     2 tiles x 2 rows, a step of 2 x 4 features; for each four of them:
      acc   2 rows x 4 halves   8            4  vmovdqu       x, 32 bytes = 8 tokens x 4 features
      x     4 halves            4            2  vpbroadcastd  4 weight bytes, 2 vpabsb
      w, |w|, ones              3            8  vpsignb       x * sign(w)
      product                   1            8  vpmaddubsw    pairs: at most 2 * 127 * 127 = 32,258 < 2^15
                                             8  vpmaddwd, 8 vpaddd

40 instructions for 256 multiply-adds; bound by the 34 that run on vector ports.
"""

from __future__ import annotations

from stic.schedules.cpu.dot import MicroKernel, plain_result
from stic.schedules.cpu.isa import has
from stic.schedules.tir import LANES, Buffer, Expr, T, bind, bits, intrinsic, load, splat, store
from stic.targets.target import Target

_TILES = (((2, 2), (1, 4)), ((1, 4),), ((2, 2), (1, 2)))
_STEP = 8
_WIDTH = 8  # int32 lanes of a ymm register


def magnitude(weights: Expr) -> Expr:
    """|w| of int8x32, as the unsigned bytes that pmaddubsw wants."""
    return bits(intrinsic("llvm.abs.v32i8", "int8x32", weights, T.bool(False)), "uint8x32")


def multiply_add(acc: Expr, weights: Expr, magnitudes: Expr, x: Expr) -> Expr:
    """acc (int32x8) + groups of four products of int8x32 and int8x32, neither with a -128; magnitudes are |weights|."""
    signed = intrinsic("llvm.x86.avx2.psign.b", "int8x32", x, weights)
    pairs = intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", magnitudes, signed)
    return acc + intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, splat(T.int16(1), 2 * _WIDTH))


def _advance(acc: Buffer, panel: Buffer, x: Buffer, w_at: Expr, x_at: list[Expr], rows: int) -> None:
    for k in range(0, _STEP, 4):
        halves = [at + LANES * k + 32 * half for at in x_at for half in range(LANES // _WIDTH)]
        values = [bind(load(x, half, 32)) for half in halves]
        for r in range(rows):
            word = bits(load(panel, w_at + LANES * k + 4 * r, 4), "int32")
            weights = bind(bits(splat(word, _WIDTH), "int8x32"))
            magnitudes = bind(magnitude(weights))
            for i, value in enumerate(values):
                at = (r * len(values) + i) * _WIDTH
                store(acc, at, multiply_add(load(acc, at, _WIDTH), weights, magnitudes, value), _WIDTH)


def dot_avx2(target: Target) -> MicroKernel | None:
    """AVX2 without VNNI."""
    if not has(target, "avx2"):
        return None
    return MicroKernel(_TILES, _STEP, _WIDTH, LANES, _advance, plain_result(_WIDTH))
