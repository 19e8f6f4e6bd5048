"""Choose codes together, so that the errors of a row cancel over correlated inputs, at every width of a nested code.

Rounding each weight to its nearest table entry ignores that inputs have a mean and are correlated: errors add up along
these directions (the insight of OBQ and GPTQ, arXiv 2208.11580 and 2210.17323). A nested code cannot let errors wander
as GPTQ does, since a weight put in a far cell stays there at 8 bits. But a weight near a threshold may take either side
of it almost for free, and a row has many of them. So level by level, from 2 bits on, one sweep over the columns moves
weights across their nearest threshold where that lowers

    error^T moments error + penalty * sum over weights of moments[k, k] * (distance beyond the threshold)^2

The penalty is what finer levels lose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array
from stic.compiler.quantization.codebook import HIGH, LEAVES, LOW, Tree

BLOCK = 32  # columns between updates of all gradients


def round_jointly(
    values: Array, tree: Tree, moments: Array, frozen: NDArray[np.bool_], priority: dict[int, float]
) -> NDArray[np.uint8]:
    """Return 8-bit codes (n, k) for `values` (n, k), in the unit of the tree's thresholds and centroids.

    `moments` (k, k) is the second moment of the inputs, `frozen` marks weights that count for nothing (outliers).
    `priority[bits]` weighs squared errors of the levels against each other.
    """
    # The sweeps go column by column, so everything here is transposed: (k, n).
    turned, still = np.ascontiguousarray(values.T), np.ascontiguousarray(frozen.T)
    codes = tree.codes(turned)
    for bits in range(LOW, HIGH + 1):
        penalty = sum(priority[finer] for finer in range(bits + 1, HIGH + 1)) / priority[bits]
        codes = _settle(turned, codes, tree, moments, still, bits, np.float32(penalty))
    return np.ascontiguousarray(codes.T)


def _settle(
    values: Array,
    codes: NDArray[np.uint8],
    tree: Tree,
    moments: Array,
    frozen: NDArray[np.bool_],
    bits: int,
    penalty: np.float32,
) -> NDArray[np.uint8]:
    """Move weights across the thresholds that are new at `bits` (at 2 bits: across any)."""
    shift = HIGH - bits
    table = tree.centroids[bits].astype(np.float32)
    code = (codes >> shift).astype(np.intp)
    error = values - table[code]
    # What a move needs follows from the code, and at 2 bits from the side that the weight is on: small tables.
    if bits == LOW:
        here = np.repeat(np.arange(len(table)), 2)
        other = np.clip(here + np.tile((-1, 1), len(table)), 0, len(table) - 1)
        code = 2 * code + (error > 0)
    else:
        here = np.arange(len(table))
        other = here ^ 1
    upward = other > here
    leaf = np.where(upward, other << shift, ((other + 1) << shift) - 1)
    edge = tree.thresholds.astype(np.float32)[np.where(upward, np.maximum(leaf - 1, 0), np.minimum(leaf, LEAVES - 2))]
    beyond = np.maximum((edge[code] - values) * np.where(upward, np.float32(1), np.float32(-1))[code], 0)
    error[frozen] = 0
    change = (table[here] - table[other])[code]
    change[frozen] = 0
    moved = _sweep(error, change, penalty * np.square(beyond), moments)
    return np.where(moved, leaf.astype(np.uint8)[code], codes)


def _sweep(error: Array, change: Array, extra: Array, moments: Array) -> NDArray[np.bool_]:
    """Column by column, take `change` where it lowers error^T moments error by more than extra * moments[k, k].

    All are transposed: (k, n).
    """
    gradient = moments @ error
    cost = (np.square(change) + extra) * np.diag(moments)[:, None]
    taken = np.zeros(change.shape, np.bool_)
    for start in range(0, len(change), BLOCK):
        end = min(start + BLOCK, len(change))
        steps = np.zeros((end - start, change.shape[1]), np.float32)
        inner = moments[start:end, start:end]
        for row in range(end - start):
            column = start + row
            now = gradient[column] + inner[row, :row] @ steps[:row]
            take = 2 * change[column] * now + cost[column] < 0
            taken[column] = take
            np.multiply(change[column], take, out=steps[row])
        gradient[end:] += moments[end:, start:end] @ steps
    return taken
