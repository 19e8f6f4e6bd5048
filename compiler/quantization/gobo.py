"""The published quantizer, GOBO (arXiv 2005.03842), as STI (arXiv 2207.05022) uses it: the yardstick.

Each matrix of each shard has its own Gaussian, its own outliers and, for every bitwidth, its own dictionary. Centroids
start as means of equally populated bins; then weights move to the nearest centroid and centroids to the mean
of theirs, and the dictionary with the least L1 error is kept: the loop ends as soon as L1 stops falling.

The paper's outlier test, log-density < -4, changes its meaning with the unit of the weights: |z| > 3.55 at sigma 0.04
but 2.48 at sigma 1. Here the limit is stated in |z|: 3.17, beyond which 0.15 % of a Gaussian lie, the rate that the
paper reports. Real tails are heavier, so more weights are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array
from stic.compiler.quantization.codebook import Fit
from stic.runtime.format import LEVEL_BITS

OUTLIER_Z = 3.17
MAX_ITERATIONS = 100
INT8_MAX = 127


def fit_gobo(weights: Sequence[Array]) -> tuple[Array, list[Fit]]:
    """Fit matrices (n, k) independently. The returned scale (n,) is one number repeated: GOBO has no row scales.

    Dictionaries are float32 in the paper (`Fit.centroids`, in units of the scale); `Fit.luts` rounds them to int8
    for the engine, with one step for all the given matrices.
    """
    outliers = [_outliers(w) for w in weights]
    dictionaries = [
        {bits: dictionary(w[~outlier], bits) for bits in LEVEL_BITS}
        for w, outlier in zip(weights, outliers, strict=True)
    ]
    largest = max(np.abs(table).max() for tables in dictionaries for table in tables.values())
    step = np.float32(largest / INT8_MAX) if largest > 0 else np.float32(1.0)
    fits = []
    for w, outlier, tables in zip(weights, outliers, dictionaries, strict=True):
        codes = {bits: _nearest(w, table) for bits, table in tables.items()}
        luts = {bits: np.rint(table / step).astype(np.int8) for bits, table in tables.items()}
        fits.append(Fit(codes, luts, outlier, {bits: table / step for bits, table in tables.items()}))
    return np.full(len(weights[0]), step, np.float32), fits


def _outliers(weights: Array) -> NDArray[np.bool_]:
    if not weights.size:
        return np.zeros(weights.shape, np.bool_)
    mean, deviation = weights.mean(dtype=np.float64), weights.std(dtype=np.float64)
    outlier: NDArray[np.bool_] = np.abs(weights - mean) > OUTLIER_Z * deviation
    return outlier


def dictionary(weights: Array, bits: int) -> Array:
    """Return the 2^bits centroids, ascending, for flat `weights`."""
    count = 1 << bits
    if not len(weights):
        return np.zeros(count, np.float32)
    values = np.sort(weights).astype(np.float64)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    cuts = np.arange(1, count) * len(values) // count
    best, least = _means(values, sums, cuts, np.zeros(count)), np.inf
    centroids = best
    for _ in range(MAX_ITERATIONS):
        cuts = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        error = _l1(values, sums, cuts, centroids)
        if error >= least:
            break
        best, least = centroids, error
        centroids = _means(values, sums, cuts, centroids)
    return best.astype(np.float32)


def _means(
    values: NDArray[np.float64], sums: NDArray[np.float64], cuts: NDArray[np.intp], old: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of each bin; an empty bin keeps its old centroid (at the start: its left neighbour's largest value)."""
    edges = np.concatenate(([0], cuts, [len(values)]))
    counts, totals = np.diff(edges), np.diff(sums[edges])
    fallback = old if old.any() else values[np.maximum(edges[1:] - 1, 0)]
    return np.maximum.accumulate(np.where(counts > 0, totals / np.maximum(counts, 1), fallback))


def _l1(
    values: NDArray[np.float64], sums: NDArray[np.float64], cuts: NDArray[np.intp], centroids: NDArray[np.float64]
) -> float:
    """Sum of |value - centroid| from prefix sums, each bin split where its centroid stands."""
    edges = np.concatenate(([0], cuts, [len(values)]))
    middle = np.clip(np.searchsorted(values, centroids), edges[:-1], edges[1:])
    below = centroids * (middle - edges[:-1]) - (sums[middle] - sums[edges[:-1]])
    above = (sums[edges[1:]] - sums[middle]) - centroids * (edges[1:] - middle)
    return float((below + above).sum())


def _nearest(weights: Array, table: Array) -> NDArray[np.uint8]:
    return np.searchsorted((table[1:] + table[:-1]) / 2, weights.ravel()).astype(np.uint8).reshape(weights.shape)
