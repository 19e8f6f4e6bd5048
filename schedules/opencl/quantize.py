"""stic_quantize: activations of a tile -> int8 with one scale a token, for products in integers.

    x feature 4i    [ t0 .. t7 ]  --round-->  byte 0 of every lane  \\
    x feature 4i+1  [ t0 .. t7 ]  --round-->  byte 1                 |   32 bytes: lane t holds
    x feature 4i+2  [ t0 .. t7 ]  --round-->  byte 2                 |   4 consecutive features of token t
    x feature 4i+3  [ t0 .. t7 ]  --round-->  byte 3                /

A work-group takes a tile (`reduction.py`). Pass 1 finds the greatest magnitude of each token, pass 2 multiplies and
rounds in one fma, whose low bits are the code in two's complement (as `stic.schedules.cpu.int8` does), and adds up the
codes of a token. A tile is read twice, the second time from the cache: bound by memory.
"""

from __future__ import annotations

from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.cpu.int8 import LIMIT, ROUND_BITS
from stic.schedules.opencl.program import INT8, Kernel, Launch
from stic.schedules.opencl.reduction import ITEMS, LOCAL_BYTES, WIDTH, share
from stic.schedules.opencl.source import load_real
from stic.schedules.shape import KernelShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    T,
    bind,
    bits,
    f32,
    i32,
    kernel,
    load,
    local,
    pick,
    store,
    when,
)

_GROUP = 4  # features of a token that lie together
_SMALLEST = 3.74e-37  # 127 / x is infinite below


def quantize(style: Style, shape: KernelShape, storage: GpuPrecision) -> Kernel:
    """(x: S, xq: i8, token_scale: f32, token_sum: i32, width, tiles): x (tiles, width, 16) -> xq (tiles, width / 4, 16,
    4), token_scale and token_sum (tiles, 16), as `stic.runtime.arithmetic.quantize`. A unit is a tile.
    """

    def body(x: Buffer, xq: Buffer, token_scale: Buffer, token_sum: Buffer, width: Expr, tiles: Expr) -> None:
        with share(tiles, "int32") as part, local((WIDTH, "int32")) as (words,):
            floats, ints = f"float32x{WIDTH}", f"int32x{WIDTH}"
            start = bind(part.unit * width)

            def value(h: Expr) -> Expr:
                return load_real(x, (start + h) * LANES + part.lane, WIDTH)

            def greater(a: Expr, b: Expr) -> Expr:
                a, b = bind(a), bind(b)
                return pick(a > b, a, b)

            store(part.result, 0, i32(0, WIDTH), WIDTH)

            def keep_greatest(h: Expr) -> None:  # floats without their sign are in the order of their bits
                size = bits(bind(value(h)), ints) & i32(0x7FFFFFFF, WIDTH)
                store(part.result, 0, greater(size, load(part.result, 0, WIDTH)), WIDTH)

            part.rows(width, keep_greatest)
            largest = bind(bits(part.reduce(greater), floats))
            inverse = bind(pick(largest > f32(_SMALLEST, WIDTH), f32(LIMIT, WIDTH) / largest, f32(0.0, WIDTH)))
            store(part.result, 0, i32(0, WIDTH), WIDTH)
            # By its bits, because TVM writes seven digits of a float.
            magic = bind(T.call_extern(floats, f"as_float{WIDTH}", i32(ROUND_BITS, WIDTH)))

            def group(i: Expr) -> None:
                packed = i32(0, WIDTH)
                for j in range(_GROUP):
                    here = bind(value(i * _GROUP + j))
                    rounded = bind(T.call_extern(floats, "fma", here, inverse, magic))
                    code = bind(bits(rounded, ints) - i32(ROUND_BITS, WIDTH))
                    store(part.result, 0, load(part.result, 0, WIDTH) + code, WIDTH)
                    packed = packed | ((code & i32(0xFF, WIDTH)) << i32(8 * j, WIDTH))
                store(words, 0, packed, WIDTH)
                for first in (0, 4):  # a vector has 16 elements at most
                    at = ((start // _GROUP + i) * LANES + part.lane + first) * _GROUP
                    store(xq, at, bits(bind(load(words, first, 4)), "int8x16"))

            part.rows(width // _GROUP, group)
            total = part.reduce(lambda a, b: a + b)
            with when(part.strip == 0):
                at = bind(part.unit * LANES + part.lane)
                store(token_scale, at, largest / f32(LIMIT, WIDTH), WIDTH)
                store(token_sum, at, total, WIDTH)

    pointers = [("x", storage), ("xq", "int8"), ("token_scale", "float32"), ("token_sum", "int32")]
    launch = Launch("stic_quantize", (ITEMS,), (1,), LOCAL_BYTES)
    return Kernel(kernel(launch.name, [*pointers, ("width", "scalar"), ("tiles", "scalar")], body), launch, INT8)
