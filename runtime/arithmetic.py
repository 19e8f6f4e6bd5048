"""Float arithmetic of the kernels, operation by operation, in numpy.

Every engine takes its sums in one order and fuses the same multiplications and additions, so that engines for different
processors give the same bits. This is that order. It matters: an activation that lands on the other side of a rounding
boundary changes an int8, and from there on everything a little.

Arrays are float32 with tokens in the last axis, (features, tokens), as lanes are tokens in the kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]

_CHAINS = 4  # running sums of a norm
LOG2_E, _LOG2_E_LOW = np.float32(1.44269504088896341), np.float32(1.9259629e-8)
_ROUND = np.float32(12582912)  # 1.5 * 2**23: adding it rounds to the nearest integer, ties to even
_TANH_SCALE = -1.5957691216057308 * 1.44269504088896341  # -2 sqrt(2 / pi) log2(e)
# Polynomials of stic.schedules.cpu.vector_math, lowest power first.
_EXP2 = (1.0, 6.93147e-01, 2.4022247e-01, 5.550711e-02, 9.671291e-03, 1.3269521e-03)
_ERF_MIDDLE = np.float32(13.875)
_ERF = (
    *(1.34205e-01, -4.822241e-03, 2.5716444e-04, -1.4867405e-05, 8.656524e-07, -4.870135e-08, 2.587026e-09),
    *(-1.3391302e-10, 6.7407542e-12, -2.6264862e-13, 7.095295e-15, -4.2072833e-16, 3.022418e-17, -7.6527023e-19),
)
_LEAST_NORMAL = 2.0**-126
_MIDDLE_MASK, _MIDDLE = np.int64(0x1FFFFFFF), np.int64(0x10000000)  # what float64 has more than float32, at one half


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Floats:
    """a * b + c of float32, rounded once."""
    total = np.asarray(np.multiply(a, b, dtype=np.float64) + c)  # the product is exact, the sum is not
    with np.errstate(over="ignore"):
        result: Floats = total.astype(np.float32)
    # Rounding twice, to float64 and to float32, differs from rounding once only where the first ends in the middle
    # between two float32; subnormal float32 have other middles.
    size = np.abs(result)
    if ((total.view(np.int64) & _MIDDLE_MASK) == _MIDDLE).any() or ((size < _LEAST_NORMAL) & (size > 0)).any():
        product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
        rounded = total - product
        lost = (product - (total - rounded)) + (c - rounded)  # Knuth's two-sum
        even = (total.view(np.int64) & 1) == 0
        odd = np.where((lost != 0) & even, np.nextafter(total, np.copysign(np.inf, lost)), total)
        with np.errstate(over="ignore"):
            result = odd.astype(np.float32)
    return result


def _two_to(n: Floats, fraction: Floats) -> Floats:
    value = np.full_like(fraction, _EXP2[-1])
    for coefficient in _EXP2[-2::-1]:
        value = fma(value, fraction, np.float32(coefficient))
    with np.errstate(over="ignore"):
        return np.ldexp(value, n.astype(np.int32))


def exp2(x: Floats) -> Floats:
    """2**x for x up to 128; x counts as -126 below."""
    x = np.maximum(x, np.float32(-126))
    return _two_to(np.rint(x), x - np.rint(x))


def exp(x: Floats) -> Floats:
    """exp(x) for x up to 88; x counts as -87 below."""
    x = np.maximum(x, np.float32(-87))
    n = fma(x, LOG2_E, _ROUND) - _ROUND
    return _two_to(n, fma(x, _LOG2_E_LOW, fma(x, LOG2_E, -n)))


def gelu(x: Floats) -> Floats:
    """x (0.5 + erf(x / sqrt(2)) / 2)."""
    v = np.minimum(fma(x, x, -_ERF_MIDDLE), _ERF_MIDDLE)
    pairs = [fma(v, np.float32(high), np.float32(low)) for low, high in zip(_ERF[::2], _ERF[1::2], strict=True)]
    value = pairs[-1]
    for pair in pairs[-2::-1]:
        value = fma(value, v * v, pair)
    return x * np.clip(fma(x, value, np.float32(0.5)), np.float32(0), np.float32(1))


def gelu_tanh(x: Floats) -> Floats:
    """x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    with np.errstate(over="ignore"):
        exponent = x * fma(x * x, np.float32(0.044715 * _TANH_SCALE), np.float32(_TANH_SCALE))
    return x / (exp2(np.minimum(exponent, np.float32(128))) + np.float32(1))


def silu(x: Floats) -> Floats:
    """x / (1 + exp(-x)); x counts as -88 below."""
    x = np.maximum(x, np.float32(-88))
    return x / (exp(-x) + np.float32(1))


def softcap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap) = cap - 2 cap / (1 + exp(2 x / cap))."""
    with np.errstate(over="ignore"):
        exponent = x * np.float32(2 * 1.44269504088896341 / cap)
    share = np.float32(2 * cap) / (exp2(np.minimum(exponent, np.float32(128))) + np.float32(1))
    capped: Floats = np.float32(cap) - share
    return capped


def activation(name: str) -> Callable[[Floats], Floats]:
    """An activation by its name in `format.ACTIVATIONS` or `architecture.BLOCK_ACTIVATIONS`, elementwise."""
    functions: dict[str, Callable[[Floats], Floats]] = {
        "none": lambda x: x,
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "relu": lambda x: np.maximum(x, np.float32(0)),
        "silu": silu,
        "tanh": np.tanh,
    }
    return functions[name]


def _sum(terms: Floats, squares: bool) -> Floats:
    """Sum (features, tokens) over features, or their squares, in _CHAINS running sums; returns (tokens,)."""
    chains = np.zeros((_CHAINS, terms.shape[1]), np.float32)
    for feature, term in enumerate(terms):
        chain = chains[feature % _CHAINS]
        chain[...] = fma(term, term, chain) if squares else chain + term
    total: Floats = (chains[0] + chains[1]) + (chains[2] + chains[3])
    return total


def layer_norm(x: Floats, gamma: Floats, beta: Floats, epsilon: float) -> Floats:
    """Normalise x (features, tokens) over features; gamma, beta (features,)."""
    centred = x - _sum(x, False) / np.float32(len(x))
    spread: Floats = np.sqrt(fma(_sum(centred, True), np.float32(1.0 / len(x)), np.float32(epsilon)))
    inverse = np.float32(1) / spread
    return fma(centred * inverse, gamma[:, None], beta[:, None])


def rms_norm(x: Floats, gamma: Floats, epsilon: float) -> Floats:
    """Divide x (features, tokens) by its root mean square over features; gamma (features,)."""
    spread: Floats = np.sqrt(fma(_sum(x, True), np.float32(1.0 / len(x)), np.float32(epsilon)))
    normal: Floats = (x * (np.float32(1) / spread)) * gamma[:, None]
    return normal


def quantize(x: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Quantise every token of x (features, tokens) to [-127, 127] symmetrically.

    Returns codes (features, tokens) and scales (tokens,). A token without a feature above 4e-37 has codes 0.
    """
    largest = np.abs(x).max(axis=0)
    with np.errstate(over="ignore"):
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    inverse[np.isinf(inverse)] = 0
    # Products of float32 are exact in float64, so they are rounded once.
    return np.rint(np.multiply(x, inverse, dtype=np.float64)).astype(np.int32), largest / np.float32(127)


def matmul(weight: Floats, x: Floats) -> Floats:
    """weight (N, K) times x (K, tokens), one running sum an output."""
    total = np.zeros((len(weight), x.shape[1]), np.float32)
    for column, row in zip(weight.T, x, strict=True):
        total = fma(column[:, None], row, total)
    return total


def attention(query: Floats, key: Floats, value: Floats) -> Floats:
    """Softmax attention of one head, all (head_dim, tokens), in int8; the scale is in the query.

    Queries and keys have a scale a token, values one a feature; a weight in [0, 1] is the int8 round(254 weight) - 127.
    """
    queries, query_scale = quantize(query)
    keys, key_scale = quantize(key)
    values, value_scale = quantize(np.ascontiguousarray(value.T))
    scores = (keys.T @ queries).astype(np.float32) * key_scale[:, None]
    scale = query_scale * LOG2_E
    powers = exp2(fma(scores, scale, -(scores.max(axis=0) * scale)))
    weights = np.rint(fma(powers, np.float32(254), _ROUND - np.float32(127)) - _ROUND).astype(np.int32)
    products = values.T @ weights + 127 * values.sum(axis=0)[:, None]
    inverse = np.float32(1) / (weights.sum(axis=0) + 127 * len(weights)).astype(np.float32)
    context: Floats = products.astype(np.float32) * inverse * value_scale[:, None]
    return context
