"""Choose codes of one bitwidth column by column, so that later columns make up for the errors of earlier ones.

What is lowered is error^T moments error, summed over rows. `feed_forward` is GPTQ (arXiv 2210.17323) for tables and
units that are given: a column is rounded, and what that loses is subtracted from the columns that follow, along the
correlations of the inputs. Columns of the largest inputs go first, while there are many left to make up for them.
`descend` then revisits every code with all others fixed, which GPTQ cannot, since it never looks back.

Everything is transposed, (columns, rows): a step handles one column of all rows, and these are neighbours in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array

Codes = NDArray[np.uint8]

BLOCK = 64  # columns between updates of all later ones
_FEW = 16  # table entries up to which a value is compared with every threshold


def nearest(values: Array, table: Array) -> Codes:
    """The code of the entry of an ascending table that is nearest to each value."""
    thresholds = (table[1:] + table[:-1]) / 2
    if len(table) > _FEW:
        return np.searchsorted(thresholds, values).astype(np.uint8)
    codes = np.zeros(values.shape, np.uint8)
    for threshold in thresholds:
        codes += values > threshold
    return codes


@dataclass(frozen=True, eq=False)
class Spread:
    """How the error of each column spreads to those after it, for inputs of some second moments."""

    order: NDArray[np.intp]  # (k,): columns of the largest inputs first
    rows: Array  # (k, k), in that order: the upper triangle U with U^T U = moments^-1

    @classmethod
    def of(cls, moments: Array) -> Spread:
        """`moments` (k, k) is positive definite."""
        order = np.argsort(-np.diag(moments), kind="stable")
        ordered = moments[np.ix_(order, order)].astype(np.float64)
        lower = np.linalg.cholesky(np.linalg.inv(ordered))
        return cls(order, np.ascontiguousarray(lower.T, np.float32))


def feed_forward(weights: Array, unit: Array, table: Array, along: Spread) -> Codes:
    """Return codes (k, n) for `weights` (k, n), where weight = unit * table[code] and `unit` (k, n) is above 0."""
    order, spread = along.order, along.rows
    left, units = weights[order], unit[order]
    codes = np.empty(weights.shape, np.uint8)
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        lost = np.empty((end - start, left.shape[1]), np.float32)
        for column in range(start, end):
            code = nearest(left[column] / units[column], table)
            codes[order[column]] = code
            lost[column - start] = (left[column] - units[column] * table[code]) / spread[column, column]
            left[column + 1 : end] -= spread[column, column + 1 : end, None] * lost[column - start]
        left[end:] -= spread[start:end, end:].T @ lost
    return codes


def descend(weights: Array, unit: Array, table: Array, moments: Array, codes: Codes, sweeps: int) -> Codes:
    """Return codes (k, n) after `sweeps` over all columns, each of which takes the best code given all others."""
    codes = codes.copy()
    values = unit * table[codes]
    pull = moments @ (weights - values)  # minus half the gradient
    largest = np.diag(moments)
    for _ in range(sweeps):
        for start in range(0, len(weights), BLOCK):
            end = min(start + BLOCK, len(weights))
            moves = np.zeros((end - start, weights.shape[1]), np.float32)
            inner = moments[start:end, start:end]
            for column in range(start, end):
                at = column - start
                best = values[column] + (pull[column] - inner[at, :at] @ moves[:at]) / largest[column]
                codes[column] = nearest(best / unit[column], table)
                now = unit[column] * table[codes[column]]
                moves[at] = now - values[column]
                values[column] = now
            pull -= moments[:, start:end] @ moves
    return codes
