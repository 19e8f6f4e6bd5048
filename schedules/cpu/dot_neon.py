"""The dot micro-kernels of AArch64: sdot where the core has it, else widening multiplies.

sdot (ARMv8.2 dotprod)                     1 tile x 4 rows, a step of 16 features:
      acc   4 rows x 4 quarters   16         16  ldr q   x, 16 bytes = 4 tokens x 4 features
      x     4 quarters             4          4  ldr q   16 weight bytes of a row
      w     4 rows                 4         64  sdot by element: 1,024 multiply-adds

64 sdot beside 20 loads, most of them paired; bound by sdot (two a cycle on Cortex-A76 and later).

smull (ARMv8.0)                            1 tile x 2 rows, a step of 8 features:
      acc   2 rows x 8 eighths    16         16  ldr d   x, 8 bytes = 2 tokens x 4 features
      x     2, w 4, product 2      8          4  ld1r    4 weight bytes twice
                                             16  smull, 16 smlal (two products: at most 32,258 < 2^15)
                                             16  sadalp  pairs into int32: 256 multiply-adds

48 vector instructions and 20 loads; bound by the multiplier. Each accumulator holds two half sums a token, joined
by addp at the end.
"""

from __future__ import annotations

from stic.schedules.cpu.dot import MicroKernel, dot_kernel, plain_result
from stic.schedules.cpu.isa import has
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, bind, bits, intrinsic, load, shuffle, splat, store
from stic.targets.target import Target

_WIDTH = 4  # int32 lanes of a q register
_NEON = "llvm.aarch64.neon"


def _advance_sdot(acc: Buffer, panel: Buffer, x: Buffer, w_at: list[Expr], x_at: list[Expr]) -> None:
    weights = [bind(bits(load(panel, w, 16), "int32x4")) for w in w_at]
    for k in range(4):
        for quarter in range(4):
            value = bind(load(x, x_at[0] + 64 * k + 16 * quarter, 16))
            for r, row in enumerate(weights):
                at = (r * 4 + quarter) * _WIDTH
                element = bits(shuffle([row], [k] * 4), "int8x16")
                total = intrinsic(f"{_NEON}.sdot.v4i32.v16i8", "int32x4", load(acc, at, 4), value, element)
                store(acc, at, total, _WIDTH)


def _advance_smull(acc: Buffer, panel: Buffer, x: Buffer, w_at: list[Expr], x_at: list[Expr]) -> None:
    weights = [
        [bind(bits(splat(bits(load(panel, w + 4 * k, 4), "int32"), 2), "int8x8")) for k in range(2)] for w in w_at
    ]
    for eighth in range(8):
        values = [bind(load(x, x_at[0] + 64 * k + 8 * eighth, 8)) for k in range(2)]
        for r, row in enumerate(weights):
            products = [
                intrinsic(f"{_NEON}.smull.v8i16", "int16x8", value, w) for value, w in zip(values, row, strict=True)
            ]
            pairs = intrinsic(f"{_NEON}.saddlp.v4i32.v8i16", "int32x4", products[0] + products[1])
            at = (r * 8 + eighth) * _WIDTH
            store(acc, at, load(acc, at, _WIDTH) + pairs, _WIDTH)


def _join_halves(acc: Buffer, at: int, chunk: int) -> Expr:
    halves = [load(acc, at + (2 * chunk + i) * _WIDTH, _WIDTH) for i in range(2)]
    return intrinsic(f"{_NEON}.addp.v4i32", "int32x4", *halves)


def dot_sdot(target: Target, shape: KernelShape) -> PrimFunc | None:
    """ARMv8.2 cores with the dot product extension."""
    if not has(target, "asimddp"):
        return None
    return dot_kernel(MicroKernel(((1, 4),), 16, _WIDTH, LANES, _advance_sdot, plain_result(_WIDTH)))


def dot_smull(target: Target, shape: KernelShape) -> PrimFunc | None:
    """Any AArch64 core."""
    if not has(target, "asimd"):
        return None
    return dot_kernel(MicroKernel(((1, 2),), 8, _WIDTH, 2 * LANES, _advance_smull, _join_halves))
