"""stic_quantize, stic_quantize_grouped: float32 activations of one tile -> int8, with one scale a token, or one for
each 64 features of a token.

    x feature 4i    [ t0 .. t15 ]  --round-->  byte 0 of every lane  \\
    x feature 4i+1  [ t0 .. t15 ]  --round-->  byte 1                 |   q vector i: lane t holds
    x feature 4i+2  [ t0 .. t15 ]  --round-->  byte 2                 |   4 consecutive features of token t
    x feature 4i+3  [ t0 .. t15 ]  --round-->  byte 3                /

Pass 1 finds the greatest magnitude of each token; pass 2 multiplies and rounds in one fma (`int8.py`), whose lowest
bytes are merged. Instructions a feature and native vector, loops included:

                pass 1                                 pass 2
    AVX-512     2.4  and (with load), max              3.6  load, fma, 3/4 permute, 1/4 vpdpbusd: token sum, 1/4 store
    AVX2        2.2  and (with load), max              4.4  load, fma, 2 1/8 to merge, 1/4 store
    NEON        2.7  1/2 load, and, max                3.5  1/2 load, copy, fma, 3/4 trn1, 1/8 store

Bound by loads: a tile is read twice, from the first-level cache up to 700 features, else from the second.
Where q is 8, two such vectors are interleaved, so that 64 bits hold 8 features of a token.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.cpu import dot_avx_vnni, dot_vnni
from stic.schedules.cpu.int8 import ROUND, in_groups, keep_greatest, low_bytes, scale_and_inverse
from stic.schedules.cpu.isa import has_vnni, panel_zero
from stic.schedules.cpu.vector_math import fma
from stic.schedules.pack import COLUMNS, interleave
from stic.schedules.shape import DecoderShape, KernelShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
    T,
    bind,
    bits,
    f32,
    i32,
    kernel,
    load,
    local,
    loop,
    splat,
    store,
)
from stic.targets.target import Target

_STEP = 8  # features of one turn of the loops
_CHAINS = 4


def _token_sum(target: Target) -> Callable[[Expr, Expr], Expr] | None:
    """Adds four features of 16 tokens to their sums, on targets whose weights are +128 in the panel."""
    if not panel_zero(target):
        return None
    return dot_vnni.token_sum if has_vnni(target) else dot_avx_vnni.token_sum


def _quantize(target: Target, buffers: tuple[Buffer, ...], start: Expr, features: Expr, at: Expr, factor: int) -> None:
    """Emit the int8 form of `features` rows from offset `start` on, in x as in q.

    buffers are x, q, scale, sum; scales and `factor` times the sums go to `at`.
    """
    x, q, scale, total = buffers
    add, q_of_target = _token_sum(target), interleave(target)
    with local((_CHAINS * LANES, "int32"), (LANES, "int32")) as (greatest, sums):
        for chain in range(_CHAINS):
            store(greatest, chain * LANES, i32(0))
        with loop(features // _STEP) as i:
            for j in range(_STEP):
                keep_greatest(greatest, j % _CHAINS * LANES, load(x, start + (i * _STEP + j) * LANES))
        for chain in range(1, _CHAINS):
            keep_greatest(greatest, 0, bits(load(greatest, chain * LANES), f"float32x{LANES}"))
        token_scale, inverse = scale_and_inverse(load(greatest, 0))
        store(scale, at, token_scale)
        store(sums, 0, i32(0))
        with loop(features // _STEP) as i:
            packed = []
            for first in range(0, _STEP, 4):
                rows = [load(x, start + (i * _STEP + first + j) * LANES) for j in range(4)]
                packed.append(low_bytes(target, [fma(row, inverse, f32(ROUND)) for row in rows]))
                if add is not None:
                    store(sums, 0, add(load(sums, 0), bits(packed[-1], f"int8x{4 * LANES}")))
            for group, values in enumerate(in_groups(packed, q_of_target)):
                store(q, start + (i * _STEP + group * q_of_target) * LANES, values, q_of_target * LANES)
        # Without a factor it is zero, but not to LLVM, which turns a run of zero stores into a call of memset.
        scaled = load(sums, 0) * i32(factor) if factor else splat(features & 15)
        store(total, at, load(sums, 0) if factor == 1 else scaled)


def quantize(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_quantize(f32* x, i8* q, f32* scale, i32* sum, i32 K): one tile, x (K, 16); K is a multiple of 16.

    scale[t] = max|x[:, t]| / 127; q (K/n, 16, n), n the target's interleave, = round_half_even(x * inverse) of the
    exact product, inverse = 127 / max|x| in float32; sum[t] = sum of q over K where the target's dot product needs it
    (`panel_zero`), else 0. A token without a feature above 4e-37, where 127 / max|x| is infinite, has q = 0.
    """

    def body(x: Buffer, q: Buffer, scale: Buffer, total: Buffer, k: Expr) -> None:
        _quantize(target, (x, q, scale, total), 0, k, 0, 1)

    arguments = [("x", "float32"), ("q", "int8"), ("scale", "float32"), ("sum", "int32"), ("K", "scalar")]
    return kernel("stic_quantize", arguments, body)


def quantize_grouped(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_quantize_grouped(f32* x, i8* q, f32* scale, i32* offset, i32 K): one tile, the K columns of one slice.

    As stic_quantize for every group of COLUMNS features, of which the last may have fewer: scale (groups, 16); offset
    (groups, 16) is what products with the group start from, -panel_zero times the sum of its q, or 0.
    """
    zero = panel_zero(target)

    def body(x: Buffer, q: Buffer, scale: Buffer, offset: Buffer, k: Expr) -> None:
        with loop((k + COLUMNS - 1) // COLUMNS) as g:
            first = bind(g * COLUMNS)
            features = bind(T.min(COLUMNS, k - first))
            _quantize(target, (x, q, scale, offset), bind(first * LANES), features, bind(g * LANES), -zero)

    arguments = [("x", "float32"), ("q", "int8"), ("scale", "float32"), ("offset", "int32"), ("K", "scalar")]
    return kernel("stic_quantize_grouped", arguments, body)
