"""Metrics of a model's outputs on labelled examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.importance.examples import LABELLED, Examples
from stic.runtime.errors import InputError


@dataclass(frozen=True)
class Metric:
    """One score of a model on a set of examples."""

    name: str  # "accuracy", "spearman"
    value: float  # accuracy in 0..1; spearman in -1..1
    n: int  # examples


def score(outputs: NDArray[np.floating], examples: Examples) -> Metric:
    """Score a model's outputs (sequences, features), in the order of `Examples.sequences`.

    Classification: accuracy of the largest logit (of the sign, where there is one feature). Similarity: Spearman of
    the cosines. Raises InputError for unlabelled examples and for outputs that are not one vector a sequence.
    """
    if examples.targets is None:
        raise InputError(f"{examples.source} has no labels to score against; columns accepted: {LABELLED}")
    if outputs.ndim != 2 or len(outputs) != len(examples.sequences):
        raise InputError(f"scoring needs one vector per sequence, {len(examples.sequences)} in all; got shape "
                         f"{outputs.shape}: use a model with pooling")  # fmt: skip
    if examples.kind == "similarity":
        value = spearman(cosine(outputs[: len(examples)], outputs[len(examples) :]), examples.targets)
        return Metric("spearman", value, len(examples))
    classes = outputs.shape[1]
    if examples.targets.max() >= max(classes, 2):
        raise InputError(f"{examples.source} has class {int(examples.targets.max())}, the model only {classes} outputs")
    found = outputs.argmax(axis=1) if classes > 1 else (outputs[:, 0] > 0).astype(np.intp)
    return Metric("accuracy", float(np.mean(found == examples.targets)), len(examples))


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the cosine of each row of `a` with that row of `b`; 0 where either is zero."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=-1) * np.linalg.norm(b64, axis=-1)
    found: NDArray[np.float64] = (a64 * b64).sum(axis=-1) / np.where(norms > 0, norms, 1.0)
    return found


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation, ties taking their average rank; NaN if one side is constant."""
    ranks = [average_ranks(np.asarray(values, np.float64)) for values in (a, b)]
    x, y = (values - values.mean() for values in ranks)
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1, equal values sharing the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
