"""Digests of values; weights of one model are read once a process, however many keys they are part of.

A model is known by its identity, since stages exchange frozen values; one that a stage made is known by what it was
made from (`follows`), without reading it at all. Any other, such as a changed copy, is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from stic.compiler.model import Model
from stic.compiler.quantization.quantize import QuantizedModel

_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def digest(*values: Any) -> str:
    """Return a hexadecimal digest of dataclasses, containers, arrays and scalars; paths do not count."""
    state = hashlib.sha256()
    for value in values:
        _feed(state, value)
    return state.hexdigest()[:32]


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


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        state.update(f"{value.dtype.str}{value.shape}".encode())
        state.update(np.ascontiguousarray(value).data)
    elif is_dataclass(value):
        state.update(type(value).__name__.encode())
        for field in fields(value):
            _feed(state, getattr(value, field.name))
    elif isinstance(value, Mapping):
        for name in sorted(value):
            _feed(state, name)
            _feed(state, value[name])
    elif isinstance(value, list | tuple):
        state.update(f"[{len(value)}".encode())
        for item in value:
            _feed(state, item)
    elif not isinstance(value, Path):
        state.update(f"{value!r};".encode())
