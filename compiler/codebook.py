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


@dataclass(frozen=True, eq=False)
class Tree:
    """A nested family of codebooks."""

    thresholds: Doubles  # (255,) ascending; a sample's 8-bit code is the number of thresholds <= it
    centroids: dict[int, Doubles]  # bits -> (2^bits,) ascending

    def codes(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the 8-bit code of each value."""
        found = np.searchsorted(self.thresholds.astype(np.float32), values.ravel(), side="right")
        return found.astype(np.uint8).reshape(values.shape)


class _Samples:
    """Sorted samples with prefix sums: means of intervals by binary search."""

    def __init__(self, values: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        order = np.argsort(values)
        self.values = values[order].astype(np.float64)
        weight = weights[order].astype(np.float64)
        self.mass = np.concatenate(([0.0], np.cumsum(weight)))
        self.moment = np.concatenate(([0.0], np.cumsum(weight * self.values)))

    def quantiles(self, count: int) -> Doubles:
        """Return `count` - 1 values that cut the samples into parts of equal weight."""
        at = np.searchsorted(self.mass, self.mass[-1] * np.arange(1, count) / count)
        return self.values[np.clip(at, 0, len(self.values) - 1)]

    def means(self, thresholds: Doubles) -> Doubles:
        """Return the mean of each interval between thresholds; an empty one takes a value inside it."""
        at = np.concatenate(([0], np.searchsorted(self.values, thresholds), [len(self.values)]))
        mass, moment = np.diff(self.mass[at]), np.diff(self.moment[at])
        edges = np.concatenate(([self.values[0]], thresholds, [self.values[-1]]))
        empty = mass <= 1e-12 * self.mass[-1]
        inside = np.clip(moment / np.where(empty, 1.0, mass), edges[:-1], np.maximum(edges[1:], edges[:-1]))
        return np.where(empty, (edges[:-1] + edges[1:]) / 2, inside)


def _level(thresholds: Doubles, bits: int) -> Doubles:
    """The thresholds that exist at `bits`, out of all 255."""
    step = LEAVES >> bits
    return thresholds[step - 1 :: step]


def _greedy(samples: _Samples, rounds: int) -> Doubles:
    """Four clusters by k-means, then each cluster in two, down to LEAVES: the start of the joint fit."""
    thresholds = samples.quantiles(1 << LOW)
    for _ in range(4 * rounds):
        means = samples.means(thresholds)
        thresholds = (means[1:] + means[:-1]) / 2
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
    """Move every threshold to where the levels that have it are, summed by priority, indifferent to its side.

    At level b the two sides of threshold t cost (t - left_b)^2 and (t - right_b)^2; the sum over levels
    of priority_b * difference vanishes at the returned t.
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
    samples = _Samples(values, weights)
    thresholds = _greedy(samples, rounds)
    for _ in range(rounds):
        centroids = {bits: samples.means(_level(thresholds, bits)) for bits in LEVEL_BITS}
        thresholds = refine(thresholds, centroids, priority)
    return Tree(thresholds, {bits: samples.means(_level(thresholds, bits)) for bits in LEVEL_BITS})


@dataclass(frozen=True, eq=False)
class Fit:
    """What a quantizer found for one matrix, padding apart; the scale stands beside it, as matrices may share it."""

    codes: dict[int, NDArray[np.uint8]]  # bits -> (n, k); a nested one has 8 only
    luts: dict[int, NDArray[np.int8]]
    outlier: NDArray[np.bool_]  # (n, k)
    centroids: dict[int, NDArray[np.float32]]  # the tables before rounding, in units of the scale
