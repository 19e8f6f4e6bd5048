"""What keys and values in int8 lose, in nats a token: measured on text, as gains are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stic.compiler.decoder.forward import Cache, hidden, run_vocabulary
from stic.compiler.decoder.model import Array, Decoder
from stic.compiler.decoding.head import divergence, log_softmax
from stic.compiler.decoding.quantize import Ids

INT8_MAX = np.float32(127)
JUDGED = 128  # tokens whose distributions are compared


@dataclass(eq=False)
class Int8Cache(Cache):
    """A cache that keeps keys and values as the engine's int8 form does: a scale for each token and key head."""

    def extend(self, number: int, key: Array, value: Array) -> tuple[Array, Array]:
        """See `Cache.extend`."""
        return super().extend(number, _rounded(key), _rounded(value))


def int8_loss(decoder: Decoder, ids: Ids) -> float:
    """How much further from the exact model's words `ids` (windows, tokens) are where its cache is int8."""
    logits = []
    for kind in (Cache, Int8Cache):
        stream = hidden(decoder, ids, kind(decoder.architecture, *ids.shape))
        logits.append(run_vocabulary(decoder, stream.reshape(-1, stream.shape[-1])[:: _step(ids)]))
    return max(0.0, divergence(log_softmax(logits[0]), log_softmax(logits[1])))


def _rounded(x: Array) -> Array:
    """(batch, heads, tokens, features) in int8 steps of each token's and head's largest magnitude."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / INT8_MAX
    found: Array = np.rint(x / np.where(scale > 0, scale, np.float32(1))) * scale
    return found


def _step(ids: Ids) -> int:
    """Tokens from one that is judged to the next."""
    return max(1, ids.size // JUDGED)
