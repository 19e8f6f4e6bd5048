"""Metrics of a model's outputs on labelled examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.similarity import Similarity, paired
from stic.compiler.importance.examples import LABELLED, Examples
from stic.runtime.errors import InputError


@dataclass(frozen=True)
class Metric:
    """One score of a model on a set of examples."""

    name: str  # "accuracy", "auc", "f1", "spearman"
    value: float  # in 0..1; spearman in -1..1
    n: int  # examples


def score(outputs: NDArray[np.floating], examples: Examples, similarity: Similarity = "cosine") -> Metric:
    """Score a model's outputs (sequences, features), in the order of `Examples.sequences`.

    Classification: accuracy of the largest logit (of the sign, where there is one feature). Similarity: Spearman of
    the cosines, or of another similarity. Ranking: the share of pairs of a 1 and a 0 that are in order (the area under
    the ROC curve, ties counting half), or Spearman where targets are no 0 and 1. Labels: F1 of all labels together
    (micro), one that is likelier than not being found. Raises InputError for unlabelled examples, for targets that are
    all alike where that leaves nothing to rank, and for outputs that are not one vector a sequence.
    """
    if examples.targets is None:
        raise InputError(f"{examples.source} has no labels to score against; columns accepted: {LABELLED}")
    if outputs.ndim != 2 or len(outputs) != len(examples.sequences):
        raise InputError(f"scoring needs one vector per sequence, {len(examples.sequences)} in all; got shape "
                         f"{outputs.shape}: use a model with pooling")  # fmt: skip
    if examples.kind == "similarity":
        alike = paired(outputs[: len(examples)], outputs[len(examples) :], similarity)
        return Metric("spearman", spearman(alike, examples.targets), len(examples))
    if examples.kind == "ranking":
        return _ranking(outputs, examples)
    if examples.kind == "labels":
        return _labels(outputs, examples)
    classes = outputs.shape[1]
    if examples.targets.max() >= max(classes, 2):
        raise InputError(f"{examples.source} has class {int(examples.targets.max())}, the model only {classes} outputs")
    found = outputs.argmax(axis=1) if classes > 1 else (outputs[:, 0] > 0).astype(np.intp)
    return Metric("accuracy", float(np.mean(found == examples.targets)), len(examples))


def _ranking(outputs: NDArray[np.floating], examples: Examples) -> Metric:
    assert examples.targets is not None
    if outputs.shape[1] != 1:
        raise InputError(f"{examples.source} is for ranking, but the model gives {outputs.shape[1]} numbers, not one")
    if len(np.unique(examples.targets)) < 2:
        raise InputError(f"{examples.source} has the same label everywhere, so there is nothing to rank: add others")
    found, wanted = outputs[:, 0].astype(np.float64), examples.targets
    if not np.isin(wanted, (0.0, 1.0)).all():
        return Metric("spearman", spearman(found, wanted), len(examples))
    ones = int(wanted.sum())
    below = float(average_ranks(found)[wanted == 1].sum()) - ones * (ones + 1) / 2  # zeros that a one stands above
    return Metric("auc", below / (ones * (len(wanted) - ones)), len(examples))


def _labels(outputs: NDArray[np.floating], examples: Examples) -> Metric:
    assert examples.targets is not None
    if outputs.shape != examples.targets.shape:
        raise InputError(f"{examples.source} has {examples.targets.shape[1]} labels, the model {outputs.shape[1]}")
    found, wanted = outputs > 0, examples.targets > 0
    total = int(found.sum() + wanted.sum())
    return Metric("f1", 2 * int((found & wanted).sum()) / total if total else 1.0, len(examples))


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
