"""Perplexity of a text: exp of the mean negative log probability of its tokens."""

from __future__ import annotations

import math

import numpy as np

from stic.compiler.language.scoring import Ids, Score, Scorer, log_probabilities
from stic.compiler.progress import Progress, silent
from stic.runtime.errors import InputError


def perplexity(scorer: Scorer, ids: Ids, window: int, limit: int | None = None, progress: Progress = silent) -> Score:
    """Cut `ids` into windows of `window` tokens that do not overlap, and predict in each all tokens but its first.

    `limit` is the most tokens of `ids` that are used; what is left of the last window is left out, unless it is the
    only one. The interval is that of the mean over windows, or of tokens where there is one window.
    Raises InputError where the text has no token to predict, or the window is longer than the context.
    """
    if not 2 <= window <= scorer.context:
        raise InputError(f"a window of {window} tokens cannot be: give --window 2 to {scorer.context}, the context")
    used = ids[: limit if limit is not None else len(ids)]
    if len(used) < 2:
        raise InputError("perplexity needs a text of at least two tokens: give a longer one")
    starts = range(0, max(1, len(used) - window + 1), window)
    losses = []
    for done, start in enumerate(starts):
        part = used[start : start + window]
        losses.append(-log_probabilities(scorer.logits(part)[:-1], part[1:]))
        progress("perplexity", done + 1, len(starts))
    every = np.concatenate(losses)
    means = np.array([part.mean() for part in losses]) if len(losses) > 1 else every
    spread = 1.959964 * float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    mean = float(every.mean())
    return Score("perplexity", _exp(mean), len(every), _exp(mean - spread), _exp(mean + spread))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
