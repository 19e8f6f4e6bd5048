"""Who computes a language model's logits: an engine's session, or the compiler's forward pass.

Both compute again only what a text does not share with the one before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from stic.compiler.decoder.forward import Cache, HeldWeights, hidden, run_vocabulary
from stic.compiler.decoder.model import Decoder
from stic.compiler.language.scoring import Ids, Logits
from stic.runtime.session import Session


class SessionScorer:
    """A package at work."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held: list[int] = []

    @property
    def context(self) -> int:
        return int(self._session.info.max_length)

    def logits(self, ids: Ids, first: int = 0) -> Logits:
        """Return (len(ids) - first, vocabulary): what follows each of ids[first:]."""
        shared = _shared(ids[:first], self._held)
        self._session.rewind(shared)
        self._held = []  # whatever happens now
        if shared < first:
            self._session.extend(list(ids[shared:first]))
        found = self._session.score(list(ids[first:]))
        self._held = list(ids)
        return found


class ForwardScorer:
    """A model as it was read, in float32; its weights are held. Rotary positions are those of its whole context."""

    def __init__(self, decoder: Decoder) -> None:
        architecture, weights = decoder.architecture, HeldWeights(decoder.weights)
        weights.read(None, "embedding")
        if not architecture.head.tied:
            weights.read(len(architecture.blocks) - 1, "head")
        self._decoder = Decoder(decoder.name, architecture, weights, decoder.text)
        self._cache = Cache(architecture, 1, architecture.context)
        self._held: list[int] = []

    @property
    def context(self) -> int:
        return self._decoder.architecture.context

    def logits(self, ids: Ids, first: int = 0) -> Logits:
        """Return (len(ids) - first, vocabulary): what follows each of ids[first:]."""
        shared = _shared(ids[:first], self._held)
        self._cache.length, self._held = shared, []
        states = hidden(self._decoder, np.asarray(ids[shared:])[None], self._cache)
        self._held = list(ids)
        found: Logits = run_vocabulary(self._decoder, states[:, first - shared :])[0]
        return found


def _shared(ids: Sequence[int], held: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, held, strict=False)))
