"""From float32 to int8: what every kernel that quantises does in the same way.

The bits of floats without their sign are in the order of their values, so magnitudes are compared as integers. Adding
1.5 * 2**23 in the multiplication's own rounding leaves the nearest integer in the low bits of the float.
"""

from __future__ import annotations

from collections.abc import Sequence

from stic.runtime.format import TILE
from stic.schedules.tir import LANES, Buffer, Expr, bind, bits, f32, i32, load, pick, shuffle, store
from stic.targets.target import Target

ROUND = 12582912.0  # 1.5 * 2**23: added to x, it leaves round_half_even(x) in the low bits, as two's complement
ROUND_BITS = 0x4B400000  # the bits of ROUND
LIMIT = 127  # greatest magnitude of an int8
_SIGNLESS = 0x7FFFFFFF


def keep_greatest(greatest: Buffer, at: Expr, x: Expr) -> None:
    """greatest[at] = max(greatest[at], |x|) on 16 lanes, in the bits of float32."""
    size, most = bind(bits(x, f"int32x{LANES}") & i32(_SIGNLESS)), bind(load(greatest, at))
    store(greatest, at, pick(size > most, size, most))


def scale_and_inverse(greatest: Expr) -> tuple[Expr, Expr]:
    """The scale that brings magnitudes up to `greatest` (bits, 16 lanes) to 127 at most, and what to multiply with."""
    largest = bind(bits(greatest, f"float32x{LANES}"))
    inverse = bind(pick(largest > f32(0.0), f32(LIMIT) / largest, f32(0.0)))
    return bind(largest / f32(LIMIT)), inverse


def low_bytes(target: Target, values: Sequence[Expr]) -> Expr:
    """The lowest bytes of four vectors, side by side in each lane of an int32x16."""

    def pair(a: Expr, b: Expr, dtype: str, size: int) -> Expr:  # every second element, from a and b in turn
        order = [start + at for at in range(0, size, 2) for start in (0, size)]
        return bind(shuffle([bits(a, f"{dtype}x{size}"), bits(b, f"{dtype}x{size}")], order))

    a, b, c, d = values
    if target.arch == "aarch64":  # trn1 of bytes, then of halves
        merged = pair(pair(a, b, "int8", 64), pair(c, d, "int8", 64), "int16", 32)
    else:  # vpermt2w, then vpermt2b: halves first, for which AVX2 has a blend
        low, high = (bits(pair(*two, "int16", 32), "int8x64") for two in ((a, b), (c, d)))
        order = [start + 4 * t + byte for t in range(TILE) for start in (0, 64) for byte in (0, 2)]
        merged = shuffle([low, high], order)
    return bind(bits(merged, f"int32x{LANES}"))


def in_groups(packed: Sequence[Expr], interleave: int) -> list[Expr]:
    """Vectors of four bytes a lane (int32x16) as groups of `interleave` bytes a lane: int8x64, or int8x128 of two."""
    if interleave == 4:
        return [bits(vector, f"int8x{4 * LANES}") for vector in packed]
    order = [start + lane for lane in range(LANES) for start in (0, LANES)]
    return [bits(shuffle(packed[i : i + 2], order), f"int8x{8 * LANES}") for i in range(0, len(packed), 2)]
