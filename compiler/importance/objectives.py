"""What a loss is measured in: cross entropy with labels, or agreement with the full model."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.reading import Kind
from stic.compiler.importance.examples import Examples
from stic.compiler.model import Array, Model

Objective = Literal["cross entropy", "kl", "cosine", "squared"]


def default_objective(model: Model, examples: Examples) -> Objective:
    """Return cross entropy for labelled classification, else agreement: `agreement_objective`."""
    if examples.kind == "labels":
        return "squared"
    return "cross entropy" if examples.kind == "classification" else agreement_objective(model)


def agreement_objective(model: Model, kind: Kind | None = None) -> Objective:
    """Return how agreement with the full model is measured; `kind`: how its outputs are read, where that is known.

    A head that ends in a plain linear map to fewer features than hidden is a classifier: KL divergence of its class
    probabilities, or the squared error over the variance if it has one output, or several that stand each for itself.
    All else is an embedding: 1 - cosine.
    """
    if kind in ("labels", "score", "values"):
        return "squared"
    dense = model.head.dense
    if kind == "vector" or not dense or model.head.normalize or dense[-1].activation != "none":
        return "cosine"
    features = dense[-1].linear.weight.shape[0]
    if features == 1:
        return "squared"
    return "kl" if features < model.hidden else "cosine"


def loss(objective: Objective, found: Array, reference: Array, examples: Examples) -> float:
    """Return the mean loss of outputs (rows, features); 0 is perfect, except for cross entropy."""
    if objective == "cross entropy":
        assert examples.targets is not None
        classes = examples.targets.astype(np.intp)
        logits = found.astype(np.float64)
        if logits.shape[1] == 1:
            logits = np.concatenate((np.zeros_like(logits), logits), axis=1)
        return float(-np.mean(log_softmax(logits)[np.arange(len(classes)), classes]))
    if objective == "kl":
        true, guess = log_softmax(reference.astype(np.float64)), log_softmax(found.astype(np.float64))
        return float(np.mean((np.exp(true) * (true - guess)).sum(axis=-1)))
    a, b = reference.astype(np.float64), found.astype(np.float64)
    if objective == "squared":
        return float(np.mean((a - b) ** 2) / max(float(a.var()), 1e-12))
    # 1 - cos as half the squared distance of unit vectors: no cancellation when they are close
    a, b = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (a, b))
    return float(np.mean(((a - b) ** 2).sum(axis=-1)) / 2)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the class probabilities, along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
