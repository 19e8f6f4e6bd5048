"""Digests of weights: of one model they are read once a process, however many keys they are part of.

A value is known by its identity, since stages exchange frozen values; one that a stage made is known by what it was
made from (`follows`), without reading it at all. Any other, such as a changed copy, is read.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from stic.compiler.importance.log import digest
from stic.compiler.model import Model
from stic.compiler.quantization.quantize import QuantizedModel

_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def encoder_digest(model: Model) -> str:
    """Of what decides the hidden states of a model: all weights but the head's."""
    if model not in _known:
        _known[model] = digest(model.embeddings, model.layers, model.heads, model.activation, model.attention_scale)
    return _known[model]


def codes_digest(quantized: QuantizedModel) -> str:
    """Of a quantised model, its head left out."""
    if quantized not in _known:
        sharded = quantized.sharded
        _known[quantized] = digest(
            quantized.quantizer, quantized.matrices, sharded.geometry, encoder_digest(sharded.model)
        )
    return _known[quantized]


def follows(made: Model | QuantizedModel, *origin: Any) -> None:
    """Note that `made` is decided by `origin`: digests and small values, the code that made it among them."""
    _known[made] = digest(*origin)
