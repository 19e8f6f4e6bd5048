"""Calibration text that a model writes itself, where no other is given (LLM-QAT, arXiv 2305.17888, section 3.1).

What a model is calibrated on should be like what it will compute, and a model's own words are (docs/quantizers.md has
figures). They need no data, not even a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.forward import Cache, HeldWeights, hidden, run_vocabulary
from stic.compiler.decoder.model import Decoder
from stic.runtime.architecture import tensors

LARGE_BYTES = 3 << 30  # of float32 weights: a model that large is not held, and writes nothing


def writes(decoder: Decoder) -> bool:
    """Whether a model is small enough to write: all its weights are held meanwhile, in float32."""
    return sum(4 * int(np.prod(tensor.shape)) for tensor in tensors(decoder.architecture)) < LARGE_BYTES


def own_text(
    decoder: Decoder, windows: int, tokens: int, seed: int = 0, progress: Callable[[int, int], None] = lambda *_: None
) -> NDArray[np.int64]:
    """Draw (windows, tokens) ids: random first tokens, then what the model says, at temperature 1.

    The same seed gives the same text on machines whose sums of floats agree. `progress` is told tokens of a window
    and their number.
    """
    held = Decoder(decoder.name, decoder.architecture, HeldWeights(decoder.weights), decoder.text)
    rng, cache = np.random.default_rng(seed), Cache(decoder.architecture, windows, tokens)
    ids = np.zeros((windows, tokens), np.int64)
    ids[:, 0] = rng.integers(0, decoder.architecture.head.rows, windows)
    for at in range(1, tokens):
        logits = run_vocabulary(held, hidden(held, ids[:, at - 1 : at], cache)[:, -1]).astype(np.float64)
        # The greatest of logits with Gumbel noise is a draw from their softmax (E. J. Gumbel, 1954).
        ids[:, at] = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
        progress(at, tokens - 1)
    return ids
