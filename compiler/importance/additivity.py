"""Do gains add up? Random assignments, their summed gains against their measured loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.importance.evaluate import Assignment
from stic.compiler.importance.scoring import spearman

Doubles = NDArray[np.float64]

MAX_LEFT_OUT = 3  # of an elastic model's layers at most one in three is left out


@dataclass(frozen=True)
class Additivity:
    """How well summed gains order random plans by their measured loss."""

    rho: float  # Spearman of summed gains with minus the loss, over all plans
    rho_near: float  # the same over the half of the plans that scatter around one bitwidth
    residual: float  # of a straight line through (summed gains, loss): root mean square error over spread; 0 is perfect
    plans: int


def random_assignments(
    seed: int, count: int, bits: Sequence[int], level: int, layers: int, slices: int, elastic: bool
) -> list[Assignment]:
    """Return plans as planners make them: bits that do not increase with the slice, of an elastic model a prefix.

    Every second plan scatters around `level`, the others around any bitwidth but full precision. A layer's mean and
    each shard deviate from it by a level or so. Half of an elastic model's plans cut layers to 1/4 .. 1 of their
    width and leave out up to a third of the layers, never the first.
    """
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        centre = list(bits).index(level) if number % 2 else rng.uniform(0, max(len(bits) - 2, 0))
        place = centre + rng.normal(0, 1, (layers, 1)) + rng.normal(0, 1, (layers, slices))
        picked = np.asarray(bits)[np.clip(np.rint(place), 0, len(bits) - 1).astype(np.intp)]
        picked = -np.sort(-picked, axis=1)
        if elastic and number % 4 >= 2:
            width = rng.integers(-(-slices // 4), slices + 1, layers)
            left_out = rng.permutation(np.arange(1, layers))[: rng.integers(0, layers // MAX_LEFT_OUT + 1)]
            width[left_out] = 0
            picked[np.arange(slices) >= width[:, None]] = 0
        result.append(tuple(tuple(int(b) for b in row) for row in picked))
    return result


def layer_sums(assignment: Assignment, bits: Sequence[int], gain: Doubles, presence: Doubles) -> Doubles:
    """Return the value (layers,) that gains (layers, slices, bits) and presence (layers, slices) give an assignment."""
    chosen = np.asarray(assignment)
    kept = chosen > 0
    place = np.searchsorted(np.asarray(bits), np.where(kept, chosen, bits[0]))
    found = np.take_along_axis(gain, place[:, :, None], axis=2)[:, :, 0]
    sums: Doubles = np.where(kept, found + presence, 0.0).sum(axis=1)
    return sums


def check(sums: Doubles, losses: Doubles) -> Additivity:
    """Compare values (plans, layers) with losses (plans,), in the order of `random_assignments`."""
    value = sums.sum(axis=1)
    spread = value.std() * losses.std()
    correlation = float(np.mean((value - value.mean()) * (losses - losses.mean())) / spread) if spread > 0 else 0.0
    near = slice(1, None, 2)
    return Additivity(
        spearman(value, -losses),
        spearman(value[near], -losses[near]),
        float(np.sqrt(max(0.0, 1 - correlation**2))),
        len(losses),
    )


def layer_factors(sums: Doubles, losses: Doubles, rounds: int = 500) -> Doubles:
    """Return factors (layers,), all positive, that make the sums (plans, layers) fit minus the losses (plans,).

    Least squares: both sides centred, the losses logarithmic since a plan's worst layer multiplies the rest; a ridge
    keeps layers that the plans hardly tell apart near the common factor. Their mean is 1.
    """
    spread = float(np.sqrt(sums.var(axis=0).sum()))
    x = (sums - sums.mean(axis=0)) / (spread or 1.0)
    y = -np.log(np.maximum(losses, 1e-12))
    y = y - y.mean()
    total = x.sum(axis=1)
    common = max(float(total @ y) / max(float(total @ total), 1e-12), 0.0)
    if common == 0:
        return np.ones(sums.shape[1])
    factors = np.full(sums.shape[1], common)
    ridge = 0.1 * float(np.square(x).sum()) / sums.shape[1]
    for _ in range(rounds):
        for layer in range(len(factors)):
            rest = y - x @ factors + x[:, layer] * factors[layer]
            best = (x[:, layer] @ rest + ridge * common) / (x[:, layer] @ x[:, layer] + ridge)
            factors[layer] = max(float(best), 0.1 * common)
    scaled: Doubles = factors / factors.mean()
    return scaled
