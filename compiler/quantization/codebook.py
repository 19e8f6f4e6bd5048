"""Fit one nested family of scalar codebooks, 2 to 8 bits, to weighted samples.

A codebook of b bits cuts the line at 2^b - 1 thresholds; those of b + 1 bits keep them and cut every interval once
more, so the code at b bits is a prefix of the code at 8 bits (Any-Precision LLM, arXiv 2402.10517). There each level is
split greedily from the one above. Here the greedy tree is only the start: `fit_tree` then moves all 255 thresholds
together, so that an early cut also serves the levels below it.

Samples are sorted once; with prefix sums of weight and weight * value, the means of any 2^b intervals
cost 2^b binary searches, whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.runtime.format import LEVEL_BITS

Doubles = NDArray[np.float64]

LOW, HIGH = LEVEL_BITS[0], LEVEL_BITS[-1]
LEAVES = 1 << HIGH
_CELLS, _CROWDED = 4096, 8  # of the grid that finds codes; how many thresholds in one cell are too many for it
# Intervals of all levels one after the other: the leaf that each begins with, the leaf after it, and each level's part.
_LEFT = np.concatenate([np.arange(0, LEAVES, LEAVES >> bits) for bits in LEVEL_BITS])
_RIGHT = np.concatenate([np.arange(0, LEAVES, LEAVES >> bits) + (LEAVES >> bits) for bits in LEVEL_BITS])
_PART = {bits: slice((1 << bits) - (1 << LOW), (2 << bits) - (1 << LOW)) for bits in LEVEL_BITS}


@dataclass(frozen=True, eq=False)
class Tree:
    """A nested family of codebooks."""

    thresholds: Doubles  # (255,) ascending; a sample's 8-bit code is the number of thresholds <= it
    centroids: dict[int, Doubles]  # bits -> (2^bits,) ascending

    def codes(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the 8-bit code of each value.

        A grid over the thresholds says how many lie in lower cells; those in the value's own cell, one at most where
        they are not crowded, are compared one after the other.
        """
        thresholds, flat = self.thresholds.astype(np.float32), values.ravel()
        scale = np.float32(_CELLS) / np.maximum(thresholds[-1] - thresholds[0], np.float32(1e-30))

        def cell(x: NDArray[np.float32]) -> NDArray[np.intp]:
            number: NDArray[np.intp] = np.clip((x - thresholds[0]) * scale, 0, _CELLS).astype(np.intp)
            return number

        cells = cell(thresholds)
        crowd = int(np.bincount(cells).max())
        if crowd > _CROWDED:
            return np.searchsorted(thresholds, flat, side="right").astype(np.uint8).reshape(values.shape)
        code = np.searchsorted(cells, np.arange(_CELLS + 1))[cell(flat)]
        following = np.append(thresholds, np.float32(np.inf))
        for _ in range(crowd):
            code += following[code] <= flat
        return code.astype(np.uint8).reshape(values.shape)


class Samples:
    """Sorted samples with prefix sums: means of intervals by binary search."""

    def __init__(self, values: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        order = np.argsort(values)
        self.values = values[order].astype(np.float64)
        weight = weights[order].astype(np.float64)
        self.sums = np.zeros((2, len(values) + 1))  # of weights, of weight * value
        np.cumsum(weight, out=self.sums[0, 1:])
        np.cumsum(weight * self.values, out=self.sums[1, 1:])

    def quantiles(self, count: int) -> Doubles:
        """Return `count` - 1 values that cut the samples into parts of equal weight."""
        at = np.searchsorted(self.sums[0], self.sums[0, -1] * np.arange(1, count) / count)
        found: Doubles = self.values[np.clip(at, 0, len(self.values) - 1)]
        return found

    def k_means(self, thresholds: Doubles, rounds: int) -> Doubles:
        """Return the thresholds between clusters after some rounds, from those given on."""
        for _ in range(rounds):
            means = self.means(thresholds)
            thresholds = (means[1:] + means[:-1]) / 2
        return thresholds

    def means(self, thresholds: Doubles) -> Doubles:
        """Return the mean of each interval between thresholds; an empty one takes a value inside it."""
        sums, edges = self._below(thresholds)
        return self._means(sums[:, 1:] - sums[:, :-1], edges[:-1], edges[1:])

    def means_of_levels(self, thresholds: Doubles) -> dict[int, Doubles]:
        """Return `means` for each level of all 255 thresholds, from one search."""
        sums, edges = self._below(thresholds)
        means = self._means(sums[:, _RIGHT] - sums[:, _LEFT], edges[_LEFT], edges[_RIGHT])
        return {bits: means[part] for bits, part in _PART.items()}

    def _below(self, thresholds: Doubles) -> tuple[Doubles, Doubles]:
        """Sums (2, n + 2) of what lies below each edge, and the edges: the least sample, thresholds, the largest."""
        at = np.empty(len(thresholds) + 2, np.intp)
        at[0], at[1:-1], at[-1] = 0, self.values.searchsorted(thresholds), len(self.values)
        edges = np.empty(len(at))
        edges[0], edges[1:-1], edges[-1] = self.values[0], thresholds, self.values[-1]
        return self.sums.take(at, axis=1), edges

    def _means(self, sums: Doubles, left: Doubles, right: Doubles) -> Doubles:
        mass, moment = sums
        empty = mass <= 1e-12 * self.sums[0, -1]
        if not empty.any():
            within: Doubles = np.minimum(np.maximum(moment / mass, left), np.maximum(right, left))
            return within
        inside = np.minimum(np.maximum(moment / np.where(empty, 1.0, mass), left), np.maximum(right, left))
        found: Doubles = np.where(empty, (left + right) / 2, inside)
        return found


def _greedy(samples: Samples, rounds: int) -> Doubles:
    """Four clusters by k-means, then each cluster in two, down to LEAVES: the start of the joint fit."""
    thresholds = samples.k_means(samples.quantiles(1 << LOW), 4 * rounds)
    for bits in range(LOW + 1, HIGH + 1):
        finer = np.empty((1 << bits) - 1)
        finer[1::2] = thresholds
        finer[0::2] = samples.means(thresholds)
        for _ in range(rounds):
            means = samples.means(finer)
            finer[0::2] = (means[0::2] + means[1::2]) / 2
        thresholds = finer
    return thresholds


def refine(thresholds: Doubles, centroids: dict[int, Doubles], priority: dict[int, float]) -> Doubles:
    """Move every threshold to where both of its sides cost the same, summed over the levels that have it.

    A value at threshold t costs (t - left_b)^2 on its left side at level b, and (t - right_b)^2 on its right side.
    The returned t is where the sum over levels of priority_b * (left cost - right cost) is zero.
    """
    above, below = np.zeros(LEAVES - 1), np.zeros(LEAVES - 1)
    for bits, means in centroids.items():
        step = LEAVES >> bits
        gap = means[1:] - means[:-1]
        above[step - 1 :: step] += priority[bits] * gap * (means[1:] + means[:-1])
        below[step - 1 :: step] += priority[bits] * gap
    moved = np.where(below > 0, above / np.where(below > 0, 2 * below, 1.0), thresholds)
    return np.maximum.accumulate(moved)


def fit_tree(
    values: NDArray[np.float32], weights: NDArray[np.float32], priority: dict[int, float], rounds: int = 8
) -> Tree:
    """Fit nested codebooks of 2..8 bits to flat samples, minimising weighted squared error.

    `priority[bits]` says how much the squared error of that level counts; 1 / (error of the best codebook of that
    level) treats levels alike. No samples: every centroid is 0.
    """
    if not len(values):
        zeros = {bits: np.zeros(1 << bits) for bits in LEVEL_BITS}
        return Tree(np.zeros(LEAVES - 1), zeros)
    samples = Samples(values, weights)
    thresholds = _greedy(samples, rounds)
    for _ in range(rounds):
        thresholds = refine(thresholds, samples.means_of_levels(thresholds), priority)
    return Tree(thresholds, samples.means_of_levels(thresholds))


@dataclass(frozen=True, eq=False)
class Fit:
    """What a quantizer found for one matrix, padding apart; the scale stands beside it, as matrices may share it."""

    codes: dict[int, NDArray[np.uint8]]  # bits -> (n, k), any code at outliers; a nested one has 8 only
    luts: dict[int, NDArray[np.int8]]
    outlier: NDArray[np.bool_]  # (n, k)
    centroids: dict[int, NDArray[np.float32]]  # the tables before rounding, in units of the scale
