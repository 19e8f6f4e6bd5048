"""stic_rms_norm, stic_layer_norm: norms of what a block reads, and of queries and keys inside it. Lanes are tokens.

    feature 0   [ token 0 .. token 15 ]     RMSNorm                           LayerNorm
    feature 1   [ token 0 .. token 15 ]     sum x^2                           sum; sum (x - mean)^2
       ..                                   y = gamma (x / root mean square)  y = gamma (x - mean) / deviation + beta
    feature K-1

Steps and sums are those of norm.py. The number of features is known at run time, because the same kernel serves the
hidden state and the heads.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.cpu.norm import CHAINS, over_features
from stic.schedules.cpu.vector_math import fma, square_root
from stic.schedules.shape import DecoderShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
    T,
    bind,
    bits,
    cast,
    f32,
    kernel,
    load,
    local,
    loop,
    splat,
    store,
)
from stic.targets.target import Target


def _inverse_root(x: Buffer, features: Expr, term: Callable[[Expr], Expr], epsilon: float) -> Expr:
    """1 / sqrt(sum of term(x)^2 / features + epsilon)."""

    def square(h: Expr, total: Expr) -> Expr:
        value = term(bind(load(x, h * LANES)))
        return fma(value, value, total)

    with local((CHAINS * LANES, "float32")) as (sums,):
        total = over_features(features, sums, square)
        share = splat(T.float32(1.0) / cast(features, "float32"))
        return bind(f32(1.0) / square_root(fma(total, share, f32(epsilon))))


def _clear(y: Buffer, features: Expr, padded: Expr) -> None:
    # Zero, as a padded number is a multiple of 16, but not to LLVM, which turns a run of zero stores into a call.
    zero = bind(bits(splat(padded & 15), f"float32x{LANES}"))
    with loop(padded - features) as h:
        store(y, (features + h) * LANES, zero)


def rms_norm(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_rms_norm(f32* x, f32* gamma, f32* y, i32 K, i32 padded): one tile, y = x / sqrt(mean(x^2) + epsilon) *
    gamma.

    x, y (K, 16), gamma (K,); y may be x. Rows K .. padded - 1 of y become zero: padded is pad16(K), or K where another
    head follows (Zhang and Sennrich, arXiv 1910.07467).
    """

    def body(x: Buffer, gamma: Buffer, y: Buffer, features: Expr, padded: Expr) -> None:
        inverse = _inverse_root(x, features, lambda value: value, shape.epsilon)
        with loop(features) as h:
            store(y, h * LANES, bind(load(x, h * LANES) * inverse) * splat(gamma[h]))
        _clear(y, features, padded)

    pointers = [(name, "float32") for name in ("x", "gamma", "y")]
    return kernel("stic_rms_norm", [*pointers, ("K", "scalar"), ("padded", "scalar")], body, aliased=True)


def layer_norm(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_layer_norm(f32* x, f32* gamma, f32* beta, f32* y, i32 K, i32 padded): one tile, y = LayerNorm(x).

    Arguments as of stic_rms_norm; beta (K,) (Ba et al., arXiv 1607.06450).
    """

    def body(x: Buffer, gamma: Buffer, beta: Buffer, y: Buffer, features: Expr, padded: Expr) -> None:
        with local((CHAINS * LANES, "float32")) as (sums,):
            total = over_features(features, sums, lambda h, so_far: so_far + load(x, h * LANES))
            mean = bind(total / splat(cast(features, "float32")))
        inverse = _inverse_root(x, features, lambda value: bind(value - mean), shape.epsilon)
        with loop(features) as h:
            normal = bind(bind(load(x, h * LANES) - mean) * inverse)
            store(y, h * LANES, fma(normal, splat(gamma[h]), splat(beta[h])))
        _clear(y, features, padded)

    pointers = [(name, "float32") for name in ("x", "gamma", "beta", "y")]
    return kernel("stic_layer_norm", [*pointers, ("K", "scalar"), ("padded", "scalar")], body, aliased=True)
