"""Float arithmetic of the kernels, operation by operation, in numpy.

Every engine takes its sums in one order and fuses the same multiplications and additions, so that engines for different
processors give the same bits. This is that order. It matters: an activation that lands on the other side of a rounding
boundary changes an int8, and from there on everything a little.

Arrays are float32 with tokens in the last axis, (features, tokens), as lanes are tokens in the kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_CHAINS = 4  # running sums of a norm
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Cephes' expf and Abramowitz and Stegun 7.1.26, as in the kernels' elementary functions; highest power first.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_ERFC = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def fma(a: Floats | np.float32, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """a * b + c, rounded once: the product of two float32 is exact in float64."""
    return (np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)).astype(np.float32)


def _polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = fma(value, x, np.float32(coefficient))
    return value


def exp(x: Floats) -> Floats:
    """exp(x), x clamped to [-87, 88]."""
    x = np.clip(x, np.float32(-87), np.float32(88))
    n = np.rint(x * _LOG2_E)
    r = fma(-n, _LN2_LOW, fma(-n, _LN2_HIGH, x))
    value = fma(_polynomial(r, _EXP), r * r, r) + np.float32(1)
    return np.ldexp(value, n.astype(np.int32))


def gelu(x: Floats) -> Floats:
    """max(x, 0) - |x| / 2 * erfc(|x| / sqrt(2))."""
    size = np.abs(x)
    z = size * np.float32(0.70710678118654752)
    t = np.float32(1) / fma(z, np.float32(0.3275911), np.float32(1))
    erfc = _polynomial(t, _ERFC) * t * exp(-(z * z))
    return fma(-(size * np.float32(0.5)), erfc, np.maximum(x, np.float32(0)))


def gelu_tanh(x: Floats) -> Floats:
    """x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    cubic = fma(x * x, np.float32(0.044715), np.float32(1))
    return x / (exp(x * np.float32(-1.5957691216057308) * cubic) + np.float32(1))


def activation(name: str) -> Callable[[Floats], Floats]:
    """An activation by its name in `stic.runtime.format.ACTIVATIONS`, elementwise."""
    functions: dict[str, Callable[[Floats], Floats]] = {
        "none": lambda x: x,
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "relu": lambda x: np.maximum(x, np.float32(0)),
        "tanh": np.tanh,
    }
    return functions[name]


def _sum(terms: Floats, squares: bool) -> Floats:
    """Sum (features, tokens) over features, or their squares, in _CHAINS running sums; returns (tokens,)."""
    chains = np.zeros((_CHAINS, terms.shape[1]), np.float32)
    for feature, term in enumerate(terms):
        chain = chains[feature % _CHAINS]
        chain[...] = fma(term, term, chain) if squares else chain + term
    return (chains[0] + chains[1]) + (chains[2] + chains[3])


def layer_norm(x: Floats, gamma: Floats, beta: Floats, epsilon: float) -> Floats:
    """Normalise x (features, tokens) over features; gamma, beta (features,)."""
    share = np.float32(1.0 / len(x))
    centred = x - _sum(x, False) * share
    spread: Floats = np.sqrt(fma(_sum(centred, True), share, np.float32(epsilon)))
    inverse = np.float32(1) / spread
    return fma(centred * inverse, gamma[:, None], beta[:, None])


def quantize(x: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Quantise every token of x (features, tokens) to [-127, 127] symmetrically.

    Returns codes (features, tokens) and scales (tokens,).
    """
    largest = np.abs(x).max(axis=0)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(x * inverse).astype(np.int32), largest / np.float32(127)


def matmul(weight: Floats, x: Floats) -> Floats:
    """weight (N, K) times x (K, tokens), one running sum an output."""
    total = np.zeros((len(weight), x.shape[1]), np.float32)
    for column, row in zip(weight.T, x, strict=True):
        total = fma(column[:, None], row, total)
    return total


def attention(query: Floats, key: Floats, value: Floats) -> Floats:
    """Softmax attention of one head, all (head_dim, tokens); the scale is in the query."""
    scores = matmul(key.T, query)  # (keys, queries)
    weights = exp(scores - scores.max(axis=0))
    total = np.zeros(query.shape[1], np.float32)
    for weight in weights:
        total = total + weight
    return matmul(value, weights) * (np.float32(1) / total)
