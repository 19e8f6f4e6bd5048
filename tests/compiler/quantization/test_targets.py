"""Weights that make up for inputs that are not the model's own."""

import numpy as np
import pytest

from stic.compiler.model import Array
from stic.compiler.quantization import targets
from stic.compiler.quantization.grouped import column_groups, quantize_grouped
from stic.compiler.quantization.targets import target


def streams(columns: int, noise: float, seed: int = 0) -> tuple[Array, Array]:
    """Inputs (tokens, K) as the model has them, correlated, and as quantised matrices have spoilt and shrunk them."""
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((800, columns)) @ rng.standard_normal((columns, columns)) / columns**0.5
    spoilt = 0.9 * exact + noise * rng.standard_normal(exact.shape)
    return exact.astype(np.float32), spoilt.astype(np.float32)


def moments_of(exact: Array, spoilt: Array) -> tuple[Array, Array]:
    count = np.float32(len(spoilt))
    return np.asarray(spoilt.T @ spoilt / count, np.float32), np.asarray(
        (exact - spoilt).T @ spoilt / count, np.float32
    )


@pytest.fixture
def weight() -> Array:
    return np.random.default_rng(3).standard_normal((24, 40)).astype(np.float32)


def test_nothing_changes_where_nothing_was_lost(weight: Array) -> None:
    exact, _ = streams(40, 0.0)
    moments, difference = moments_of(exact, exact)
    np.testing.assert_array_equal(target(weight, moments, difference), weight)
    np.testing.assert_array_equal(target(weight, 0 * moments, difference), weight)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_outputs_are_nearer_on_other_tokens(weight: Array, noise: float) -> None:
    """A matrix at 4 bits after spoilt inputs, judged on tokens that it was not fitted to."""
    exact, spoilt = streams(40, noise)
    moments, difference = moments_of(exact[:400], spoilt[:400])
    sought = target(weight, moments, difference)

    def lost(found: Array) -> float:
        return float(np.square(exact[400:] @ weight.T - spoilt[400:] @ found.T).mean())

    assert lost(sought) < lost(weight)
    groups = column_groups([40], 64)
    plain = quantize_grouped(weight, moments, (4,), groups)
    made_up = quantize_grouped(weight, moments, (4,), groups, sought)
    assert lost(made_up.dequantize(4)) < lost(plain.dequantize(4))
    np.testing.assert_array_equal(made_up.scale, plain.scale)


def test_a_full_share_without_a_ridge_is_least_squares(weight: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "SHARE", 1.0)
    monkeypatch.setattr(targets, "RIDGE", 0.0)
    exact, spoilt = streams(40, 0.2)
    best, *_ = np.linalg.lstsq(spoilt.astype(np.float64), exact @ weight.T, rcond=None)
    np.testing.assert_allclose(target(weight, *moments_of(exact, spoilt)), best.T, atol=1e-3)
