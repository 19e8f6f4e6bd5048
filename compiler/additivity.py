"""Do summed gains rank whole plans as their measured loss does? A planner that adds gains is only as good as this.

Random plans are measured and their loss is compared with the sum of their gains (Spearman's rho). Below 0.8 one
factor a layer is fitted on every second plan and the check is repeated on the others; both results are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.evaluate import Assignment
from stic.compiler.quantize import QuantizedModel
from stic.compiler.task import spearman

Doubles = NDArray[np.float64]
ENOUGH = 0.8
LEAST_PLANS = 8  # fewer say nothing about factors


@dataclass(frozen=True)
class Check:
    """How well sums of gains predict."""

    plans: int
    rho: float  # Spearman's, of summed gains against -loss
    calibrated_rho: float | None  # on held-out plans, with one factor a layer; None: not needed or too few plans

    def summary(self) -> dict[str, Any]:
        """For people and scripts."""
        return {"additivity_plans": self.plans, "additivity_rho": self.rho, "calibrated_rho": self.calibrated_rho}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def random_assignments(quantized: QuantizedModel, bits: Sequence[int], count: int, elastic: bool) -> list[Assignment]:
    """Draw plans as a planner could make them: bits that fall along a layer's slices, around a level of each layer.

    Elastic models lose slices too, and up to a third of their layers, but never the first.
    """
    g = quantized.sharded.geometry
    rng = np.random.default_rng(0)
    steps = [b for b in bits if b <= 8]
    plans: list[Assignment] = []
    for _ in range(count):
        centre = rng.integers(0, len(steps))
        layers = []
        for layer in range(g.layers):
            around = np.clip(centre + rng.integers(-2, 3, g.slices), 0, len(steps) - 1)
            row = sorted((steps[i] for i in around), reverse=True)
            kept = g.slices
            if elastic:
                kept = int(rng.integers(g.slices // 4 + 1, g.slices + 1))
                if layer and rng.random() < 1 / 6:
                    kept = 0
            layers.append(tuple(row[:kept]) + (0,) * (g.slices - kept))
        plans.append(tuple(layers))
    return list(dict.fromkeys(plans))


def layer_sums(plans: Sequence[Assignment], bits: Sequence[int], gain: Doubles, presence: Doubles) -> Doubles:
    """Summed gains of every plan by layer, (plans, layers)."""
    place = {b: j for j, b in enumerate(bits)}
    sums = np.zeros((len(plans), gain.shape[0]))
    for p, plan in enumerate(plans):
        for layer, row in enumerate(plan):
            for index, b in enumerate(row):
                if b:
                    sums[p, layer] += gain[layer, index, place[b]] + presence[layer, index]
    return sums


def check_additivity(
    plans: Sequence[Assignment], measured: Doubles, bits: Sequence[int], gain: Doubles, presence: Doubles
) -> tuple[Check, Doubles]:
    """Compare sums with measured losses; returns the check and the factor of each layer (1 where none was needed)."""
    sums = layer_sums(plans, bits, gain, presence)
    ones = np.ones(sums.shape[1])
    rho = spearman(sums.sum(axis=1), -measured)
    if rho >= ENOUGH or len(plans) < LEAST_PLANS:
        return Check(len(plans), rho, None), ones
    fitted, held_out = slice(0, None, 2), slice(1, None, 2)
    factors = _factors(sums[fitted], -measured[fitted])
    again = spearman(sums[held_out] @ factors, -measured[held_out])
    plain = spearman(sums[held_out].sum(axis=1), -measured[held_out])
    return Check(len(plans), rho, again), factors if again > plain else ones


def _factors(sums: Doubles, target: Doubles) -> Doubles:
    """Positive factors of layers by ridge regression towards 1."""
    scale = sums.std(axis=0).max() or 1.0
    a = (sums - sums.mean(axis=0)) / scale
    b = (target - target.mean()) / scale - a.sum(axis=1)
    ridge = 0.1 * len(a) * np.eye(a.shape[1])
    return np.maximum(1 + np.linalg.solve(a.T @ a + ridge, a.T @ b), 0.05)
