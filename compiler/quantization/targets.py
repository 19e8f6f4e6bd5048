"""What a matrix should be when its inputs are not the model's own: weights that give back part of what was lost.

A quantised matrix reads what the quantised matrices before it made, not what the model would have made. So its best
weights W' are not the model's W: over tokens, W' x_quantised shall be near W x_exact (GPTAQ, arXiv 2504.02692, builds
the same aim into GPTQ). The least-squares answer, pulled towards W where the tokens say little, is

    W' = W + share * W E[(x_exact - x_quantised) x_quantised^T] (E[x_quantised x_quantised^T] + ridge)^-1

A share below 1 keeps it from learning the calibration text by heart.
"""

from __future__ import annotations

import numpy as np

from stic.compiler.model import Array

SHARE = 0.5  # of the difference that is made up for
RIDGE = 0.1  # added to the moments' diagonal, as a share of its mean


def target(weight: Array, moments: Array, difference: Array) -> Array:
    """Return the weights (N, K) that a quantised matrix shall come near.

    `moments` (K, K) are E[x x^T] of the inputs x that the matrix will read, `difference` (K, K) is E[(exact - x) x^T],
    exact being the model's own inputs at the same tokens. Without a difference, or inputs, it is `weight`.
    """
    mean = float(np.diag(moments).mean())
    if not mean > 0:
        return weight
    system = moments.astype(np.float64) + RIDGE * mean * np.eye(len(moments))
    gain = np.linalg.solve(system, difference.T.astype(np.float64)).T  # difference @ system^-1, which is symmetric
    return (weight + SHARE * (weight @ gain)).astype(np.float32)
