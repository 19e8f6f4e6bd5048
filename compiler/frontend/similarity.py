"""How alike vectors are: cosine, or what the model's config_sentence_transformers.json names instead."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]  # distances count negative: more is more alike


def paired(a: NDArray[np.floating], b: NDArray[np.floating], kind: Similarity = "cosine") -> NDArray[np.float64]:
    """Return (rows,): how alike each row of `a` (rows, features) is to that row of `b`."""
    if kind == "cosine":
        return cosine(a, b)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    if kind == "dot":
        found: NDArray[np.float64] = (a64 * b64).sum(axis=-1)
    else:
        found = -np.linalg.norm(a64 - b64, ord=1 if kind == "manhattan" else 2, axis=-1)
    return found


def crossed(a: NDArray[np.floating], b: NDArray[np.floating], kind: Similarity = "cosine") -> NDArray[np.float64]:
    """Return (rows of a, rows of b): how alike every row of `a` is to every row of `b`."""
    if kind in ("cosine", "dot"):
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        return _units(a64) @ _units(b64).T if kind == "cosine" else a64 @ b64.T
    return np.stack([paired(row[None], b, kind) for row in a])


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosine of each row of `a` with that row of `b`; 0 where either is zero."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=-1) * np.linalg.norm(b64, axis=-1)
    found: NDArray[np.float64] = (a64 * b64).sum(axis=-1) / np.where(norms > 0, norms, 1.0)
    return found


def _units(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
