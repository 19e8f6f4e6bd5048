"""Additivity: the random plans it is checked on, and what the check says of sums that add up and of others."""

import math

import numpy as np
import pytest

from stic.compiler.importance.additivity import check, layer_factors, layer_sums, random_assignments
from stic.compiler.importance.gain_curves import concave_gains

BITS = (2, 3, 4, 6, 16)


@pytest.mark.parametrize("flexible", [False, True])
def test_random_plans_are_plans(flexible: bool) -> None:
    plans = random_assignments(0, 40, BITS, 4, 6, 4, flexible)
    assert plans == random_assignments(0, 40, BITS, 4, 6, 4, flexible)
    bits = np.array(plans)
    assert bits.shape == (40, 6, 4) and set(bits.ravel().tolist()) <= {0, *BITS}
    assert (np.diff(bits, axis=2) <= 0).all()
    assert (bits[:, 0, 0] > 0).all() and (bits == 0).any() == flexible


def test_sums_that_add_up_are_found_additive() -> None:
    rng = np.random.default_rng(0)
    plans = random_assignments(1, 32, BITS, 4, 3, 4, False)
    gain = concave_gains(rng.random((3, 4, 5)), BITS)
    sums = np.array([layer_sums(plan, BITS, gain, np.zeros((3, 4))) for plan in plans])
    perfect = check(sums, 5 - sums.sum(axis=1))
    assert perfect.rho == pytest.approx(1) and perfect.residual == pytest.approx(0, abs=1e-6)
    assert check(sums, sums.sum(axis=1)).rho == pytest.approx(-1)
    assert math.isnan(check(np.ones_like(sums), np.ones(32)).rho)
    truth = np.array([0.2, 1.0, 1.8])
    factors = layer_factors(sums, np.exp(-(sums @ truth)))
    assert (np.diff(factors) > 0).all() and factors.mean() == pytest.approx(1)
    np.testing.assert_array_equal(layer_factors(sums, np.exp(sums @ truth)), np.ones(3))
