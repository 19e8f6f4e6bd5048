"""Normalisation over features; the 16 lanes are tokens, so nothing is horizontal.

    feature 0  [ token 0 .. token 15 ]      x += y, sum
    feature 1  [ token 0 .. token 15 ]      sum (x - mean)^2
       ..                                   x = gamma (x - mean) / deviation + beta
    feature H-1

Instructions a feature and native vector, loops included, on AVX-512 (and NEON):

    x += y, sum        4.8 (3.9)    2 loads, 1 store, 2 adds
    sum (x - mean)^2   3.3 (2.7)    1 load, 1 subtraction, 1 fma
    result             7.0 (6.8)    1 load, 1 store, subtraction, product, 1 fma with two broadcasts from memory

Four accumulators hide the latency of the adds. A tile of 384 features is 24 KiB: bound by loads and stores of the
first-level cache, or the second where x and y are larger.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.cpu.vector_math import fma, square_root
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, bind, f32, kernel, load, local, loop, splat, store, when
from stic.targets.target import Target

CHAINS = 4  # running sums


def over_features(features: Expr, accumulators: Buffer, accumulate: Callable[[Expr, Expr], Expr]) -> Expr:
    """Sum over features, whose number may be known here or at run time: accumulate(h, sum so far) in CHAINS sums."""
    for chain in range(CHAINS):
        store(accumulators, chain * LANES, f32(0.0))

    def add(h: Expr, chain: int) -> None:
        store(accumulators, chain * LANES, accumulate(h, bind(load(accumulators, chain * LANES))))

    with loop(features // CHAINS) as block:
        for chain in range(CHAINS):
            add(block * CHAINS + chain, chain)
    whole = features // CHAINS * CHAINS
    if isinstance(features, int):
        for h in range(whole, features):
            add(h, h % CHAINS)
    else:
        for chain in range(CHAINS - 1):
            with when(features % CHAINS > chain):
                add(whole + chain, chain)
    a, b, c, d = (load(accumulators, chain * LANES) for chain in range(CHAINS))
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
    with local((CHAINS * LANES, "float32")) as (accumulators,):
        # Divided, because a product could be fused with the subtractions below.
        mean = bind(over_features(hidden, accumulators, lambda h, total: total + read(h)) / f32(hidden))

        def square(h: Expr, total: Expr) -> Expr:
            centred = bind(load(x, start + h * LANES) - mean)
            return fma(centred, centred, total)

        inverse = _inverse_root(over_features(hidden, accumulators, square), hidden, epsilon)
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
