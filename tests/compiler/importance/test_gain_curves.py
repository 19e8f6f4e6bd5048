"""Gain curves from measured losses: concave, complete, and what the presence of a slice is worth."""

import numpy as np

from stic.compiler.importance.gain_curves import concave_gains, fill_in, presence_values


def test_curves_from_losses() -> None:
    bits = (2, 3, 4, 6)
    losses = np.array([[8.0, 4.0, 5.0, 3.0], [1.0, 2.0, 3.0, 4.0], [4.0, 2.0, 1.0, 0.5]])
    gain = concave_gains(losses, bits)
    slopes = np.diff(gain, axis=-1) / np.diff(bits)
    assert not gain[..., 0].any()
    assert (slopes >= 0).all()
    assert (np.diff(slopes, axis=-1) <= 1e-9 * np.abs(gain).max()).all()
    assert not gain[1].any()
    np.testing.assert_allclose(gain[2], [0, 2, 3, 3.5])
    known = np.array([[4.0, np.nan, 1.0, np.nan, 0.5]])
    errors = np.array([[1.0, 0.5, 0.25, 0.125, 0.0]])
    np.testing.assert_allclose(fill_in(known, errors), [[4.0, 2.0, 1.0, 0.75, 0.5]])


def test_presence_from_widths() -> None:
    losses = np.array([[9.0, 5.0, 6.0, 1.0]])
    presence = presence_values(losses, np.array([[0.5, 0.1, 9.0]]))
    np.testing.assert_allclose(presence, [[9.0 - 5.5 - 0.5, 0.0, 0.0]])
