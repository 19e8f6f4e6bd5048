"""Layer normalisation over features; the 16 lanes are tokens, so nothing is horizontal.

    feature 0  [ token 0 .. token 15 ]      pass 1: x += y, sum      (2 loads, 1 store, 2 adds a feature)
    feature 1  [ token 0 .. token 15 ]      pass 2: sum (x - mean)^2 (1 load, 1 subtract, 1 multiply-add)
       ..                                   pass 3: scale and shift  (1 load, 1 store, 2 broadcasts, 2 arithmetic)
    feature H-1

Four accumulators hide the latency of the adds. A tile of 384 features is 24 KiB: bound by the first-level cache.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.cpu.vector_math import square_root
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, bind, f32, kernel, load, local, loop, splat, store
from stic.targets.target import Target

_CHAINS = 4


def _sum_features(hidden: int, accumulators: Buffer, term: Callable[[Expr], Expr]) -> Expr:
    """Add term(h) over the true features with _CHAINS running sums."""
    for chain in range(_CHAINS):
        store(accumulators, chain * LANES, f32(0.0))

    def add(h: Expr, chain: int) -> None:
        store(accumulators, chain * LANES, load(accumulators, chain * LANES) + term(h))

    with loop(hidden // _CHAINS) as block:
        for chain in range(_CHAINS):
            add(block * _CHAINS + chain, chain)
    for h in range(hidden - hidden % _CHAINS, hidden):
        add(h, h % _CHAINS)
    a, b, c, d = (load(accumulators, chain * LANES) for chain in range(_CHAINS))
    return bind((a + b) + (c + d))


def layer_norm(
    x: Buffer, start: Expr, gamma: Buffer, beta: Buffer, shape: KernelShape, epsilon: float, add: Buffer | None = None
) -> None:
    """Emit x[start: (HP, 16)] = LayerNorm(x + add) over the true features; features past them become zero."""
    hidden = shape.hidden

    def summed(h: Expr) -> Expr:
        if add is None:
            return load(x, start + h * LANES)
        value = bind(load(x, start + h * LANES) + load(add, h * LANES))
        store(x, start + h * LANES, value)
        return value

    with local((_CHAINS * LANES, "float32")) as (accumulators,):
        mean = bind(_sum_features(hidden, accumulators, summed) * f32(1.0 / hidden))

        def squared(h: Expr) -> Expr:
            centred = bind(load(x, start + h * LANES) - mean)
            return centred * centred

        variance = _sum_features(hidden, accumulators, squared) * f32(1.0 / hidden)
        inverse = bind(f32(1.0) / square_root(variance + f32(epsilon)))
        with loop(hidden) as h:
            normal = (load(x, start + h * LANES) - mean) * inverse
            store(x, start + h * LANES, normal * splat(gamma[h]) + splat(beta[h]))
        # A product, because LLVM turns a run of constant zero stores into a call of memset.
        for h in range(hidden, shape.padded_hidden):
            store(x, start + h * LANES, inverse * f32(0.0))


def add_norm(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_add_norm(f32* x, f32* y, f32* gamma, f32* beta): one tile, x = LayerNorm(x + y)."""

    def body(x: Buffer, y: Buffer, gamma: Buffer, beta: Buffer) -> None:
        layer_norm(x, 0, gamma, beta, shape, shape.norm_epsilon, add=y)

    arguments = [(name, "float32") for name in ("x", "y", "gamma", "beta")]
    return kernel("stic_add_norm", arguments, body)
