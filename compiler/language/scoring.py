"""Who computes logits, and what their numbers say of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Ids = Sequence[int]


class Scorer(Protocol):
    """A language model at work: an engine's session, or a forward pass in numpy."""

    @property
    def context(self) -> int:
        """The most tokens that it takes."""

    def logits(self, ids: Ids, first: int = 0) -> Logits:
        """Return (len(ids) - first, vocabulary): what follows each of ids[first:], from an empty cache."""


@dataclass(frozen=True)
class Score:
    """A measured number and how sure it is."""

    metric: str  # "perplexity", "accuracy"
    value: float
    n: int  # tokens, or items
    low: float  # bounds of a 95 % confidence interval
    high: float

    def to_json(self) -> dict[str, Any]:
        """As plain data; an interval without an end is None there, since JSON knows no infinity."""
        interval = [bound if math.isfinite(bound) else None for bound in (self.low, self.high)]
        return {"metric": self.metric, "value": self.value, "n": self.n, "interval": interval}


def log_probabilities(logits: Logits, following: Ids) -> NDArray[np.float64]:
    """Return the log probability of each token of `following` (n,) under the row of `logits` (n, vocabulary)."""
    rows = logits.astype(np.float64)
    most = rows.max(axis=1, keepdims=True)
    total = np.log(np.exp(rows - most).sum(axis=1)) + most[:, 0]
    found: NDArray[np.float64] = rows[np.arange(len(rows)), np.asarray(following)] - total
    return found


def share(right: int, n: int) -> Score:
    """Accuracy with Wilson's interval (E. B. Wilson, JASA 22, 1927)."""
    z, p = 1.959964, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Score("accuracy", p, n, middle - half, middle + half)
