"""The kernels' arithmetic against the functions it stands for, in float64."""

import numpy as np
import pytest

from stic.runtime import arithmetic

RANDOM = np.random.default_rng(0)


def test_fma_rounds_once() -> None:
    a = np.float32(1 + 2**-12)
    assert float(a * a - np.float32(1 + 2**-11)) == 0.0
    assert float(arithmetic.fma(a, a, -np.float32(1 + 2**-11))) == 2**-24


def test_exp() -> None:
    x = np.linspace(-86, 87, 20001, dtype=np.float32)
    np.testing.assert_allclose(arithmetic.exp(x), np.exp(x.astype(np.float64)), rtol=1e-6)


def test_gelu() -> None:
    special = pytest.importorskip("scipy.special")
    x = np.linspace(-9, 9, 20001, dtype=np.float32)
    exact = x.astype(np.float64) * special.ndtr(x.astype(np.float64))
    np.testing.assert_allclose(arithmetic.gelu(x), exact, atol=1e-6)
    inner = np.sqrt(2 / np.pi) * (x.astype(np.float64) + 0.044715 * x.astype(np.float64) ** 3)
    np.testing.assert_allclose(arithmetic.gelu_tanh(x), 0.5 * x * (1 + np.tanh(inner)), atol=1e-6)


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
    np.testing.assert_allclose(arithmetic.attention(query, key, value), exact, atol=1e-5)


def test_quantize_keeps_the_largest_and_survives_zeros() -> None:
    x = RANDOM.standard_normal((32, 4)).astype(np.float32)
    x[:, 2] = 0
    codes, scale = arithmetic.quantize(x)
    assert np.abs(codes).max(axis=0).tolist() == [127, 127, 0, 127]
    assert scale[2] == 0
    assert np.abs(codes * scale - x).max() <= scale.max() * 0.5001
