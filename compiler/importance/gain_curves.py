"""From measured losses to gain curves: fill in what was not measured, then make the curve rise and flatten.

A planner that upgrades by value per byte is right only if upgrades have falling value per byte, so curves are made
concave over the bits, which bytes are proportional to; raw losses are kept beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def fill_in(losses: Doubles, errors: Doubles) -> Doubles:
    """Fill the gaps (NaN) of losses (..., bits) by the local errors (..., bits), between measured neighbours.

    Near a full model the loss is a quadratic form of what the shard changes, hence linear in its squared local error
    once averaged over tokens: between two measured bitwidths the loss is interpolated linearly in that error.
    The first and last bitwidth must be measured.
    """
    result = losses.copy()
    for place in np.ndindex(losses.shape[:-1]):
        known = np.flatnonzero(~np.isnan(losses[place]))
        for j in np.flatnonzero(np.isnan(losses[place])):
            low, high = known[known < j][-1], known[known > j][0]
            span = errors[place][low] - errors[place][high]
            share = (errors[place][j] - errors[place][high]) / span if span > 0 else 0.0
            step = losses[place][low] - losses[place][high]
            result[(*place, j)] = losses[place][high] + step * float(np.clip(share, 0.0, 1.0))
    return result


def concave_gains(losses: Doubles, bits: Sequence[int]) -> Doubles:
    """Return gains over bits[0], (..., bits), that never fall and are concave over the bits.

    The slopes are made non-increasing by isotonic regression weighted by the width of each step, and negative ones
    become 0: the least concave majorant of the measured gains as far as they rise.
    """
    width = np.diff(np.asarray(bits, np.float64))
    gains = np.zeros_like(losses)
    for place in np.ndindex(losses.shape[:-1]):
        slope = isotonic(np.diff(losses[place]) / width, width)
        gains[place][1:] = np.cumsum(np.maximum(-slope, 0.0) * width)
    return gains


def isotonic(values: Doubles, weights: Doubles) -> Doubles:
    """Return the non-decreasing sequence nearest to `values` in weighted least squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, length = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            before, before_mass, before_length = blocks.pop()
            mean = (before * before_mass + mean * mass) / (before_mass + mass)
            mass, length = mass + before_mass, length + before_length
        blocks.append((mean, mass, length))
    return np.concatenate([np.full(length, mean) for mean, _, length in blocks])


def presence_values(width_losses: Doubles, gain_at_level: Doubles) -> Doubles:
    """Return presence (layers, slices) from the losses of a layer cut to its first 0..M slices, (layers, M + 1).

    The losses are made to fall with the width by isotonic regression; what a slice takes off the loss at the operating
    level, less its gain from bits[0] to that level, is its value at bits[0] over leaving it out, at least 0.
    """
    ones = np.ones(width_losses.shape[1])
    falling = np.stack([-isotonic(-row, ones) for row in width_losses])
    return np.maximum(-np.diff(falling, axis=1) - gain_at_level, 0.0)
