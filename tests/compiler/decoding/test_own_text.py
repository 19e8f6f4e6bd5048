"""Text that a model writes for its own calibration."""

import numpy as np

from stic.compiler.decoder.forward import logits
from stic.compiler.decoding import own_text as module
from stic.compiler.decoding.own_text import own_text, writes
from tests.compiler.decoding.test_quantize import VOCABULARY, make_decoder


def test_a_seed_writes_the_same_text_again():
    decoder, told = make_decoder(), []
    first = own_text(decoder, 3, 12, seed=4, progress=lambda done, total: told.append((done, total)))
    assert first.shape == (3, 12) and first.min() >= 0 and first.max() < VOCABULARY
    assert np.array_equal(first, own_text(decoder, 3, 12, seed=4))
    assert not np.array_equal(first, own_text(decoder, 3, 12, seed=5))
    assert told == [(n, 11) for n in range(1, 12)]


def test_tokens_are_drawn_as_the_model_has_them():
    """Of many texts, the mean probability of what was drawn is that of drawing from the model's distributions."""
    decoder = make_decoder()
    ids = own_text(decoder, 400, 3)
    rows = logits(decoder, ids)[:, 1].astype(np.float64)
    chances = np.exp(rows - rows.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    drawn = chances[np.arange(len(ids)), ids[:, 2]]
    wanted = np.square(chances).sum(axis=1)
    assert abs(drawn.mean() - wanted.mean()) < 4 * drawn.std() / len(ids) ** 0.5


def test_a_large_model_does_not_write(monkeypatch):
    decoder = make_decoder()
    assert writes(decoder)
    monkeypatch.setattr(module, "LARGE_BYTES", 1000)
    assert not writes(decoder)
