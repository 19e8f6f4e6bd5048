"""The nested quantizer: outliers out once, row scales, one tree of codebooks for 2 to 8 bits, codes chosen together.

For each matrix and bitwidth it lowers the mean square error of the output: error^T E[x x^T] error summed over rows,
where error = w - scale * table[code] and E[x x^T] are the second moments of the inputs. Tables and scales are fitted to
its diagonal, codes (`rounding`) to the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array
from stic.compiler.quantization.codebook import HIGH, Fit, Tree, fit_tree, refine
from stic.compiler.quantization.rounding import round_jointly
from stic.runtime.format import LEVEL_BITS

# 1 / (error of the Lloyd-Max quantizer of a unit normal): levels count by how far they are from their own best. 2 bits
# count twice: there the loss is steepest.
PRIORITY = {2: 17.0, 3: 29.0, 4: 105.0, 5: 400.0, 6: 1550.0, 7: 6000.0, 8: 24000.0}
SCALED_BY = (2, 3, 4)  # levels that the row scales are fitted to; above, any scale does
INT8_MAX = 127


def fit_nested(
    weights: Sequence[Array], moments: Sequence[Array], outlier_rate: float, alternations: int = 3
) -> tuple[Array, list[Fit]]:
    """Fit matrices (n, k) that share their row scale; `moments` (k, k) are the second moments of their inputs.

    Returns the scale (n,) and one Fit a matrix. `outlier_rate` is the share of weights kept exactly: those furthest
    out in units of their row's root mean square.
    """
    outliers = _outliers(weights, outlier_rate)
    squares = [np.diag(moment) for moment in moments]
    scale = _rms(weights, outliers)
    for turn in range(alternations + 1):
        scaled = [w / scale[:, None] for w in weights]
        trees = [_tree(z, scale, moment, outlier) for z, moment, outlier in zip(scaled, squares, outliers, strict=True)]
        if turn < alternations:
            scale = _least_squares(weights, scaled, trees, squares, outliers, scale)
    largest = max(max(abs(tree.centroids[HIGH][0]), abs(tree.centroids[HIGH][-1])) for tree in trees)
    step = np.float32(largest / INT8_MAX) if largest > 0 else np.float32(1.0)
    fits = [
        _coded(z, tree, step, moment, outlier)
        for z, tree, moment, outlier in zip(scaled, trees, moments, outliers, strict=True)
    ]
    return (scale * step).astype(np.float32), fits


def _rms(weights: Sequence[Array], outliers: Sequence[NDArray[np.bool_]]) -> Array:
    """Root mean square of each row over the matrices, outliers apart; 1 for a row of zeros."""
    squares = sum(np.where(o, 0, w * w).sum(axis=1, dtype=np.float64) for w, o in zip(weights, outliers, strict=True))
    counts = sum((~o).sum(axis=1) for o in outliers)
    rms = np.sqrt(squares / np.maximum(counts, 1)).astype(np.float32)
    return np.where(rms > 0, rms, np.float32(1.0))


def _outliers(weights: Sequence[Array], rate: float) -> list[NDArray[np.bool_]]:
    """Mark the given share; twice, because outliers inflate their row's first estimate."""
    outliers = [np.zeros(w.shape, np.bool_) for w in weights]
    for _ in range(2):
        scale = _rms(weights, outliers)[:, None]
        distances = [np.abs(w) / scale for w in weights]
        flat = np.concatenate([d.ravel() for d in distances])
        keep = len(flat) - int(rate * len(flat))
        if keep >= len(flat):
            return outliers
        limit = np.partition(flat, keep - 1)[keep - 1]
        outliers = [d > limit for d in distances]
    return outliers


def _tree(scaled: Array, scale: Array, moment: Array, outlier: NDArray[np.bool_]) -> Tree:
    inside = ~outlier
    errors = np.broadcast_to((scale * scale)[:, None] * moment[None, :], scaled.shape)
    return fit_tree(scaled[inside], errors[inside], PRIORITY)


def _least_squares(
    weights: Sequence[Array],
    scaled: Sequence[Array],
    trees: Sequence[Tree],
    moments: Sequence[Array],
    outliers: Sequence[NDArray[np.bool_]],
    scale: Array,
) -> Array:
    """Given codes and tables, the row scale of least error, the levels of SCALED_BY added by PRIORITY."""
    top = np.zeros(len(scale))
    bottom = np.zeros(len(scale))
    for w, z, tree, moment, outlier in zip(weights, scaled, trees, moments, outliers, strict=True):
        codes = tree.codes(z)
        weight = np.where(outlier, 0, moment[None, :])
        for bits in SCALED_BY:
            value = tree.centroids[bits].astype(np.float32)[codes >> (HIGH - bits)]
            top += PRIORITY[bits] * (weight * w * value).sum(axis=1)
            bottom += PRIORITY[bits] * (weight * value * value).sum(axis=1)
    return np.where((bottom > 0) & (top > 0), top / np.where(bottom > 0, bottom, 1), scale).astype(np.float32)


def _coded(scaled: Array, tree: Tree, step: np.float32, moment: Array, outlier: NDArray[np.bool_]) -> Fit:
    """Round the tables to int8, put the thresholds between the rounded entries, and choose the codes."""
    rounded = {bits: np.rint(tree.centroids[bits] / step) for bits in LEVEL_BITS}
    thresholds = refine(tree.thresholds / step, rounded, PRIORITY)
    codes = round_jointly(scaled / step, Tree(thresholds, rounded), moment, outlier, PRIORITY)
    return Fit(
        {HIGH: codes},
        {bits: table.astype(np.int8) for bits, table in rounded.items()},
        outlier,
        {bits: (table / step).astype(np.float32) for bits, table in tree.centroids.items()},
    )
