"""Normalisation over features; the 16 lanes are tokens, so nothing is horizontal.

    feature 0  [ token 0 .. token 15 ]      LayerNorm                              RMSNorm
    feature 1  [ token 0 .. token 15 ]      x += y, sum                            x += y, sum x^2
       ..                                   sum (x - mean)^2
    feature H-1                             x = gamma (x - mean) / deviation       out = gamma x / root mean square
                                                + beta

Instructions a feature and native vector, loops included, on AVX-512 (and NEON):

    x += y, sum        4.8 (3.9)    2 loads, 1 store, 2 adds; RMSNorm: 1 add, 1 fma
    sum (x - mean)^2   3.3 (2.7)    1 load, 1 subtraction, 1 fma
    result             7.0 (6.8)    1 load, 1 store, subtraction, product, 1 fma with two broadcasts from memory
                       4.0 (4.8)    RMSNorm: 1 load, 1 store, 2 products, one with a broadcast

Four accumulators hide the latency of the adds. A tile of 384 features is 24 KiB: bound by loads and stores of the
first-level cache, or the second where x and y are larger.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.cpu.vector_math import fma, square_root
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, bind, f32, kernel, load, local, loop, splat, store
from stic.targets.target import Target

_CHAINS = 4


def _over_features(hidden: int, accumulators: Buffer, accumulate: Callable[[Expr, Expr], Expr]) -> Expr:
    """Sum over the true features: accumulate(h, sum so far) in _CHAINS running sums."""
    for chain in range(_CHAINS):
        store(accumulators, chain * LANES, f32(0.0))

    def add(h: Expr, chain: int) -> None:
        store(accumulators, chain * LANES, accumulate(h, bind(load(accumulators, chain * LANES))))

    with loop(hidden // _CHAINS) as block:
        for chain in range(_CHAINS):
            add(block * _CHAINS + chain, chain)
    for h in range(hidden - hidden % _CHAINS, hidden):
        add(h, h % _CHAINS)
    a, b, c, d = (load(accumulators, chain * LANES) for chain in range(_CHAINS))
    return bind((a + b) + (c + d))


def _reader(x: Buffer, start: Expr, add: Buffer | None) -> Callable[[Expr], Expr]:
    """Return feature h -> x[h], or x[h] += add[h] where something is added."""

    def read(h: Expr) -> Expr:
        if add is None:
            return bind(load(x, start + h * LANES))
        value = bind(load(x, start + h * LANES) + load(add, h * LANES))
        store(x, start + h * LANES, value)
        return value

    return read


def _inverse_root(total: Expr, hidden: int, epsilon: float) -> Expr:
    """1 / sqrt(total / hidden + epsilon)."""
    return bind(f32(1.0) / square_root(fma(total, f32(1.0 / hidden), f32(epsilon))))


def _clear_padding(out: Buffer, start: Expr, shape: KernelShape, finite: Expr) -> None:
    # A product, because LLVM turns a run of constant zero stores into a call of memset.
    for h in range(shape.hidden, shape.padded_hidden):
        store(out, start + h * LANES, finite * f32(0.0))


def layer_norm(
    x: Buffer, start: Expr, gamma: Buffer, beta: Buffer, shape: KernelShape, epsilon: float, add: Buffer | None = None
) -> None:
    """Emit x[start: (HP, 16)] = LayerNorm(x + add) over the true features; features past them become zero."""
    hidden, read = shape.hidden, _reader(x, start, add)
    with local((_CHAINS * LANES, "float32")) as (accumulators,):
        # Divided, because a product could be fused with the subtractions below.
        mean = bind(_over_features(hidden, accumulators, lambda h, total: total + read(h)) / f32(hidden))

        def square(h: Expr, total: Expr) -> Expr:
            centred = bind(load(x, start + h * LANES) - mean)
            return fma(centred, centred, total)

        inverse = _inverse_root(_over_features(hidden, accumulators, square), hidden, epsilon)
        with loop(hidden) as h:
            normal = bind(bind(load(x, start + h * LANES) - mean) * inverse)
            store(x, start + h * LANES, fma(normal, splat(gamma[h]), splat(beta[h])))
        _clear_padding(x, start, shape, inverse)


def add_norm(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_add_norm(f32* x, f32* y, f32* gamma, f32* beta): one tile, x = LayerNorm(x + y)."""

    def body(x: Buffer, y: Buffer, gamma: Buffer, beta: Buffer) -> None:
        layer_norm(x, 0, gamma, beta, shape, shape.norm_epsilon, add=y)

    arguments = [(name, "float32") for name in ("x", "y", "gamma", "beta")]
    return kernel("stic_add_norm", arguments, body)


def _rms_norm(x: Buffer, y: Buffer | None, gamma: Buffer, out: Buffer, shape: KernelShape) -> None:
    hidden, read = shape.hidden, _reader(x, 0, y)

    def square(h: Expr, total: Expr) -> Expr:
        value = read(h)
        return fma(value, value, total)

    with local((_CHAINS * LANES, "float32")) as (accumulators,):
        inverse = _inverse_root(_over_features(hidden, accumulators, square), hidden, shape.norm_epsilon)
        with loop(hidden) as h:
            store(out, h * LANES, bind(load(x, h * LANES) * inverse) * splat(gamma[h]))
        _clear_padding(out, 0, shape, inverse)


def rms_norm(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_rms_norm(f32* x, f32* gamma, f32* out): one tile, out = x / sqrt(mean(x^2) + epsilon) * gamma.

    x, out (HP, 16), gamma (H,); the mean is over the H true features, out is zero past them. x is left unchanged: a
    pre-norm decoder adds to it later (Zhang and Sennrich, arXiv 1910.07467; Touvron et al., arXiv 2302.13971).
    """

    def body(x: Buffer, gamma: Buffer, out: Buffer) -> None:
        _rms_norm(x, None, gamma, out, shape)

    return kernel("stic_rms_norm", [(name, "float32") for name in ("x", "gamma", "out")], body)


def add_rms_norm(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_add_rms_norm(f32* x, f32* y, f32* gamma, f32* out): one tile, x += y, then as stic_rms_norm."""

    def body(x: Buffer, y: Buffer, gamma: Buffer, out: Buffer) -> None:
        _rms_norm(x, y, gamma, out, shape)

    return kernel("stic_add_rms_norm", [(name, "float32") for name in ("x", "y", "gamma", "out")], body)
