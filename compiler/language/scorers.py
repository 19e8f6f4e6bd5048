"""Who computes a language model's logits: an engine's session, or the compiler's forward pass."""

from __future__ import annotations

import itertools

import numpy as np

from stic.compiler.decoder.forward import HeldWeights, hidden, run_vocabulary
from stic.compiler.decoder.model import Decoder
from stic.compiler.language.scoring import Ids, Logits
from stic.runtime.session import Session


class SessionScorer:
    """A package at work. Tokens that a text shares with the one before it are not computed again."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held: list[int] = []

    @property
    def context(self) -> int:
        return int(self._session.info.max_length)

    def logits(self, ids: Ids, first: int = 0) -> Logits:
        """Return (len(ids) - first, vocabulary): what follows each of ids[first:]."""
        pairs = zip(ids[:first], self._held, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._session.rewind(shared)
        self._held = []  # whatever happens now
        if shared < first:
            self._session.extend(list(ids[shared:first]))
        found = self._session.score(list(ids[first:]))
        self._held = list(ids)
        return found


class ForwardScorer:
    """A model as it was read, in float32; its weights are held."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = Decoder(decoder.name, decoder.architecture, HeldWeights(decoder.weights), decoder.text)

    @property
    def context(self) -> int:
        return self._decoder.architecture.context

    def logits(self, ids: Ids, first: int = 0) -> Logits:
        """Return (len(ids) - first, vocabulary): what follows each of ids[first:]."""
        states = hidden(self._decoder, np.asarray(ids)[None])
        found: Logits = run_vocabulary(self._decoder, states[:, first:])[0]
        return found
