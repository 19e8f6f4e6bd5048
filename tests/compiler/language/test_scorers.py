"""Whoever scores text computes again only what a text does not share with the one before it."""

from __future__ import annotations

import numpy as np
import pytest

from stic.compiler.decoder.forward import logits
from stic.compiler.decoding.synthetic import random_decoder
from stic.compiler.language.scorers import ForwardScorer
from tests.runtime.decoder_cases import ARCHITECTURES, ROWS

TEXTS = (([3, 1, 4, 1, 5, 9], 0), ([3, 1, 4, 1, 2], 4), ([3, 1, 4, 7, 7, 7, 7], 2), ([3, 1, 4, 7], 3), ([2, 7], 0))


@pytest.mark.parametrize("name", ["llama", "capped"])
def test_a_text_that_begins_like_the_one_before(name: str) -> None:
    decoder = random_decoder(ARCHITECTURES[name])
    scorer = ForwardScorer(decoder)
    for ids, first in TEXTS:
        assert max(ids) < ROWS
        found, wanted = scorer.logits(ids, first), logits(decoder, np.array([ids]))[0, first:]
        assert found.shape == wanted.shape and np.allclose(found, wanted, atol=1e-4)
