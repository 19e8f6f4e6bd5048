"""The kernels' arithmetic against the functions it stands for, in float64."""

from fractions import Fraction

import numpy as np
import pytest

from stic.runtime import arithmetic

RANDOM = np.random.default_rng(0)


def test_fma_rounds_once() -> None:
    a = np.float32(1 + 2**-12)
    assert float(a * a - np.float32(1 + 2**-11)) == 0.0
    assert float(arithmetic.fma(a, a, -np.float32(1 + 2**-11))) == 2**-24


def nearest(value: Fraction) -> np.float32:
    """The float32 nearest to a number, ties to even."""
    guess = np.float32(float(value))
    near = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    return min(near, key=lambda x: (abs(Fraction(float(x)) - value), int(x.view(np.int32)) & 1))


@pytest.mark.parametrize("exponent", (-149, -130, -126, -20, 0, 60))
def test_fma_rounds_once_beside_the_middle_of_two_floats(exponent: int) -> None:
    """A product of half a unit in the last place of c, nearly: rounding to float64 first ends in the middle."""
    rng = np.random.default_rng(exponent + 200)
    c = (rng.integers(2**23, 2**24, 200) * 2.0 ** max(exponent - 23, -149)).astype(np.float32)
    half = np.spacing(c).astype(np.float64) / 2
    a = (1 + rng.integers(0, 2**23, 200) / 2**23).astype(np.float32) * rng.choice([-1, 1], 200).astype(np.float32)
    b = (half / a).astype(np.float32)
    exact = (Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True))
    expected = [nearest(value) for value in exact]
    assert arithmetic.fma(a, b, c).tobytes() == np.array(expected).tobytes()


def test_exponentials() -> None:
    x = np.linspace(-87, 88, 20001, dtype=np.float32)
    np.testing.assert_allclose(arithmetic.exp(x), np.exp(x.astype(np.float64)), rtol=1.8e-7)
    x = np.linspace(-126, 127.99, 20001, dtype=np.float32)
    np.testing.assert_allclose(arithmetic.exp2(x), np.exp2(x.astype(np.float64)), rtol=1.6e-7)
    whole = np.arange(-126, 129, dtype=np.float32)
    assert arithmetic.exp2(whole).tolist() == [*(2.0**n for n in range(-126, 128)), np.inf]
    assert arithmetic.exp2(np.float32([-1e30, -127])).tolist() == [2.0**-126] * 2


def test_gelu() -> None:
    special = pytest.importorskip("scipy.special")
    x = np.linspace(-12, 12, 40001, dtype=np.float32)
    y, exact = arithmetic.gelu(x), x.astype(np.float64) * special.ndtr(x.astype(np.float64))
    np.testing.assert_allclose(y, exact, atol=1e-6, rtol=0)
    np.testing.assert_allclose(y[x > 0], exact[x > 0], rtol=1e-6)
    # Its odd part is x erf(x / sqrt(2)): close enough for a relative error where it is not lost beside x.
    odd = x > 1
    sums = y.astype(np.float64) + arithmetic.gelu(-x)
    erf = special.erf(x.astype(np.float64) / np.sqrt(2))
    np.testing.assert_allclose(sums[odd] / x[odd], erf[odd], rtol=1e-6)


def test_activations_at_their_ends() -> None:
    large = np.float32([5.3, 6, 100, 1e4, 1e19, 1e30, 3.4e38])
    for function in (arithmetic.gelu, arithmetic.gelu_tanh, arithmetic.silu):
        assert function(np.float32([0.0, -0.0])).tolist() == [0, 0]
        np.testing.assert_allclose(function(np.float32([1e-30, -1e-30])), [5e-31, -5e-31], rtol=1e-6)
        start = 0 if function is arithmetic.gelu else 2
        assert (function(large[start:]) == large[start:]).all()
        assert (np.abs(function(-large[start:])) < 1e-30).all()


def test_gelu_tanh_and_silu() -> None:
    x = np.linspace(-12, 12, 20001, dtype=np.float32)
    wide = x.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    np.testing.assert_allclose(arithmetic.gelu_tanh(x), 0.5 * wide * (1 + np.tanh(inner)), atol=1e-6)
    np.testing.assert_allclose(arithmetic.silu(x), wide / (1 + np.exp(-wide)), rtol=4e-7)


@pytest.mark.parametrize("hidden", (1, 7, 64, 385))
def test_layer_norm(hidden: int) -> None:
    x = RANDOM.standard_normal((hidden, 5)).astype(np.float32)
    gamma, beta = RANDOM.standard_normal((2, hidden)).astype(np.float32)
    exact = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) * gamma[:, None] + beta[:, None]
    np.testing.assert_allclose(arithmetic.layer_norm(x, gamma, beta, 1e-5), exact, atol=2e-5)


def test_attention_is_a_weighted_mean_of_values() -> None:
    query, key, value = RANDOM.standard_normal((3, 16, 9)).astype(np.float32)
    scores = np.exp(key.T.astype(np.float64) @ query)
    exact = value @ (scores / scores.sum(axis=0))
    np.testing.assert_allclose(arithmetic.attention(query, key, value), exact, atol=0.06)  # of int8 operands


def test_quantize_keeps_the_largest_and_survives_zeros() -> None:
    x = RANDOM.standard_normal((32, 4)).astype(np.float32)
    x[:, 2] = 0
    codes, scale = arithmetic.quantize(x)
    assert np.abs(codes).max(axis=0).tolist() == [127, 127, 0, 127]
    assert scale[2] == 0
    assert np.abs(codes * scale - x).max() <= scale.max() * 0.5001


def test_quantize_rounds_the_exact_product() -> None:
    x = np.array([[127, 127, 3e38], [2.5, 3.5, 0], [-0.5, -1.5, -3e38]], np.float32)
    codes, _ = arithmetic.quantize(x)
    assert codes.T.tolist() == [[127, 2, 0], [127, 4, -2], [127, 0, -127]]
    x = RANDOM.standard_normal((1000, 64)).astype(np.float32)
    codes, scale = arithmetic.quantize(x)
    inverse = (np.float32(127) / np.abs(x).max(axis=0)).astype(np.float64)
    assert (codes == np.rint(x * inverse)).all() and (scale == np.abs(x).max(axis=0) / np.float32(127)).all()


def test_quantize_gives_zeros_where_the_inverse_is_infinite() -> None:
    codes, scale = arithmetic.quantize(np.float32([[1e-38], [-1e-40]]))
    assert not codes.any() and scale[0] > 0
