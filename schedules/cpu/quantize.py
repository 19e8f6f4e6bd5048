"""stic_quantize: float32 activations of one tile -> int8 with one scale a token.

    x feature 4i    [ t0 .. t15 ]  --round-->  byte 0 of every lane  \\
    x feature 4i+1  [ t0 .. t15 ]  --round-->  byte 1                 |   q vector i: lane t holds
    x feature 4i+2  [ t0 .. t15 ]  --round-->  byte 2                 |   4 consecutive features of token t
    x feature 4i+3  [ t0 .. t15 ]  --round-->  byte 3                /

Pass 1 (and, max: 2 instructions a feature) finds the greatest magnitude, pass 2 (multiply, round, convert, add, and
4 to merge four features: 5 a feature) rounds; bound by pass 2's arithmetic.
"""

from __future__ import annotations

from stic.schedules.cpu.vector_math import absolute, maximum, round_even
from stic.schedules.shape import KernelShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    cast,
    f32,
    i32,
    kernel,
    load,
    local,
    loop,
    pick,
    store,
)
from stic.targets.target import Target

_PACK = 4  # features in one int32 lane of q


def quantize(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_quantize(f32* x, i8* q, f32* scale, i32* sum, i32 K): one tile; K is a multiple of 4.

    scale[t] = max|x[:, t]| / 127, q = round_half_even(x * (127 / max|x|)) or 0, sum[t] = sum of q over K.
    """

    def body(x: Buffer, q: Buffer, scale: Buffer, total: Buffer, k: Expr) -> None:
        with local((_PACK * LANES, "float32"), (LANES, "int32")) as (greatest, sums):
            for j in range(_PACK):
                store(greatest, j * LANES, f32(0.0))
            with loop(k // _PACK) as i:
                for j in range(_PACK):
                    size = bind(absolute(load(x, (i * _PACK + j) * LANES)))
                    store(greatest, j * LANES, maximum(size, load(greatest, j * LANES)))
            a, b, c, d = (bind(load(greatest, j * LANES)) for j in range(_PACK))
            amax = bind(maximum(bind(maximum(a, b)), bind(maximum(c, d))))
            store(scale, 0, amax / f32(127.0))
            inverse = bind(pick(amax > f32(0.0), f32(127.0) / amax, f32(0.0)))
            store(sums, 0, i32(0))
            with loop(k // _PACK) as i:
                packed = i32(0)
                subtotal = i32(0)
                for j in range(_PACK):
                    rounded = round_even(load(x, (i * _PACK + j) * LANES) * inverse)
                    value = bind(cast(rounded, f"int32x{LANES}"))
                    packed = packed | ((value & i32(255)) << i32(8 * j))
                    subtotal = subtotal + value
                store(q, i * LANES, packed)
                store(sums, 0, load(sums, 0) + subtotal)
            store(total, 0, load(sums, 0))

    arguments = [("x", "float32"), ("q", "int32"), ("scale", "float32"), ("sum", "int32"), ("K", "scalar")]
    return kernel("stic_quantize", arguments, body)
