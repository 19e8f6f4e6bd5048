"""The dot micro-kernels of AArch64: smmla or sdot where the core has them, else widening multiplies.

smmla (ARMv8.6 i8mm)                       1 tile x 4 rows, a step of 2 x 8 features; for each eight of them:
      acc   2 row pairs x 8     16           8  ldr q   x, 16 bytes = 2 tokens x 8 features
      w     2 row pairs          2           2  ldr q   2 rows x 8 features
      x     1..                             16  smmla   2 rows x 2 tokens x 8 features: 512 multiply-adds

sdot (ARMv8.2 dotprod)                     1 tile x 4 rows, a step of 4 x 4 features; for each four of them:
      acc   4 rows x 4 quarters 16           4  ldr q   x, 16 bytes = 4 tokens x 4 features
      w     4 rows               1           1  ldr q   4 rows x 4 features
      x     1..                             16  sdot    by element: 256 multiply-adds

smull (ARMv8.0)                            1 tile x 2 rows, a step of 2 x 8 features; for each eight of them:
      acc   2 rows x 8 eighths  16          16  ldr d   x, 8 bytes = 2 tokens x 4 features
      w     2 rows x 2 groups    4           4  ld1r    4 weight bytes twice
      x 2.., product 2..                    16  smull, 16 smlal (two products: at most 32,258 < 2^15)
                                            16  sadalp  pairs into int32: 256 multiply-adds

Adjacent loads of x are paired (ldp). smmla and sdot are bound by themselves: two to four a cycle on cores that have
them, beside as many loads. The last is bound by the multiplies on cores with one multiplier of 64 bits (A72, A76),
which leaves sadalp to the other pipe, and on the A53 by everything that touches a vector register. Its accumulators
hold two half sums a token, joined by addp at the end.
"""

from __future__ import annotations

from stic.schedules.cpu.dot import MicroKernel, plain_result
from stic.schedules.cpu.isa import has
from stic.schedules.tir import LANES, Buffer, Expr, bind, bits, intrinsic, load, shuffle, splat, store
from stic.targets.target import Target

_WIDTH = 4  # int32 lanes of a q register
_STEP = 16
_NEON = "llvm.aarch64.neon"


def smmla(acc: Expr, a: Expr, b: Expr) -> Expr:
    """acc (int32x4) + the products of two vectors a and two vectors b of 8 int8 each: a0 b0, a0 b1, a1 b0, a1 b1."""
    return intrinsic(f"{_NEON}.smmla.v4i32.v16i8", "int32x4", acc, a, b)


def sdot(acc: Expr, a: Expr, b: Expr) -> Expr:
    """acc (int32x4) + groups of four products of int8x16 and int8x16."""
    return intrinsic(f"{_NEON}.sdot.v4i32.v16i8", "int32x4", acc, a, b)


def smull(a: Expr, b: Expr) -> Expr:
    """The products (int16x8) of int8x8 and int8x8."""
    return intrinsic(f"{_NEON}.smull.v8i16", "int16x8", a, b)


def add_pairs(acc: Expr, pairs: Expr) -> Expr:
    """acc (int32x4) + sums of neighbours of int16x8: sadalp."""
    return acc + intrinsic(f"{_NEON}.saddlp.v4i32.v8i16", "int32x4", pairs)


def join_halves(acc: Buffer, at: int) -> Expr:
    """16 sums from 32 int32, where neighbours are two halves of a sum."""
    quarters = []
    for quarter in range(0, 2 * LANES, 2 * _WIDTH):
        halves = [load(acc, at + quarter + half, _WIDTH) for half in (0, _WIDTH)]
        quarters.append(intrinsic(f"{_NEON}.addp.v4i32", "int32x4", *halves))
    return shuffle(quarters, range(LANES))


def of_pair(acc: Buffer, start: int, upper: int) -> Expr:
    """16 sums of the first (upper 0) or second a of smmla: the low or high halves of 8 vectors from `start` on."""
    chosen = []
    for eighth in range(0, 2 * LANES, 2 * _WIDTH):
        vectors = [load(acc, start + eighth + other, _WIDTH) for other in (0, _WIDTH)]
        chosen.append(shuffle(vectors, [2 * upper, 2 * upper + 1, 4 + 2 * upper, 5 + 2 * upper]))
    return shuffle(chosen, range(LANES))


def _advance_smmla(acc: Buffer, panel: Buffer, x: Buffer, w_at: Expr, x_at: list[Expr], rows: int) -> None:
    for k in range(0, _STEP, 8):
        weights = [bind(load(panel, w_at + LANES * k + 16 * pair, 16)) for pair in range(rows // 2)]
        for eighth in range(8):
            value = bind(load(x, x_at[0] + LANES * k + 16 * eighth, 16))
            for pair, row in enumerate(weights):
                at = (pair * 8 + eighth) * _WIDTH
                store(acc, at, smmla(load(acc, at, _WIDTH), row, value), _WIDTH)


def _advance_sdot(acc: Buffer, panel: Buffer, x: Buffer, w_at: Expr, x_at: list[Expr], rows: int) -> None:
    for k in range(0, _STEP, 4):
        weights = [bind(bits(load(panel, w_at + LANES * k + 16 * i, 16), "int32x4")) for i in range(rows // 4)]
        for quarter in range(4):
            value = bind(load(x, x_at[0] + LANES * k + 16 * quarter, 16))
            for r in range(rows):
                at = (r * 4 + quarter) * _WIDTH
                element = bits(shuffle([weights[r // 4]], [r % 4] * 4), "int8x16")
                store(acc, at, sdot(load(acc, at, _WIDTH), value, element), _WIDTH)


def _advance_smull(acc: Buffer, panel: Buffer, x: Buffer, w_at: Expr, x_at: list[Expr], rows: int) -> None:
    for k in range(0, _STEP, 8):
        groups = (LANES * k, LANES * (k + 4))
        weights = [
            [bind(bits(splat(bits(load(panel, w_at + group + 4 * r, 4), "int32"), 2), "int8x8")) for group in groups]
            for r in range(rows)
        ]
        for eighth in range(8):
            values = [bind(load(x, x_at[0] + group + 8 * eighth, 8)) for group in groups]
            for r, row in enumerate(weights):
                at = (r * 8 + eighth) * _WIDTH
                pairs = smull(values[0], row[0]) + smull(values[1], row[1])
                store(acc, at, add_pairs(load(acc, at, _WIDTH), pairs), _WIDTH)


def dot_smmla(target: Target) -> MicroKernel | None:
    """ARMv8.6 cores with the 8-bit matrix multiply extension."""
    if not has(target, "i8mm"):
        return None

    def result(acc: Buffer, at: int) -> Expr:
        pair, upper = divmod(at // LANES, 2)
        return of_pair(acc, pair * 2 * LANES, upper)

    return MicroKernel((((1, 4),),), _STEP, _WIDTH, LANES, _advance_smmla, result, interleave=8)


def dot_sdot(target: Target) -> MicroKernel | None:
    """ARMv8.2 cores with the dot product extension."""
    if not has(target, "asimddp"):
        return None
    return MicroKernel((((1, 4),),), _STEP, _WIDTH, LANES, _advance_sdot, plain_result(_WIDTH))


def dot_smull(target: Target) -> MicroKernel | None:
    """Any AArch64 core."""
    if not has(target, "asimd"):
        return None
    return MicroKernel((((1, 2),),), _STEP, _WIDTH, 2 * LANES, _advance_smull, join_halves)
