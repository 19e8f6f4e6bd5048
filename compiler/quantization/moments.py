"""Measure the inputs of each matrix: how large they are and how they move together.

The second moments of the inputs, over tokens, are the Hessian of a layer-wise quadratic loss. Tokens drawn at
random from the vocabulary give it without any data; text of the kind the model will read gives it better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.forward import Layout, activate, attention_bias, embed, mix, normalise
from stic.compiler.model import Array, Linear, Model
from stic.compiler.sharding import ShardedModel
from stic.runtime.format import MATRICES

Ids = NDArray[np.integer[Any]]
Tap = Callable[[int, str, Array], Array]  # (layer, matrix name, its input (rows, K))

RANDOM_SEQUENCES, RANDOM_LENGTH, RANDOM_SEED = 32, 32, 0
STACKED_TOKENS = 512  # that run at once, where sequences are equally long


def random_tokens(model: Model) -> list[Ids]:
    """Return token sequences drawn uniformly from the vocabulary, the same ones at every call."""
    rng = np.random.default_rng(RANDOM_SEED)
    length = min(RANDOM_LENGTH, model.max_length)
    return list(rng.integers(0, model.embeddings.word.shape[0], (RANDOM_SEQUENCES, length)))


def input_moments(sharded: ShardedModel, sequences: Iterable[Ids] | None = None) -> dict[tuple[int, str], Array]:
    """Return, for each (layer, matrix name), the second moments E[x x^T] of its inputs over all tokens.

    The shape is (1, K, K) for qkv and up, whose slices read the same inputs, and (slices, K, K) for out and down; K
    leaves padding out and covers a full slice. `sequences` are token ids, one array (length,) each, no
    padding; left out, `random_tokens`.
    """
    g, model = sharded.geometry, sharded.model
    blocks = {"qkv": 1, "up": 1, "out": g.slices, "down": g.slices}
    widths = {"qkv": g.hidden, "up": g.hidden, "out": g.attention_per_slice, "down": g.neurons_per_slice}
    batches = list(_stacks(random_tokens(model) if sequences is None else sequences, model.max_length))
    layouts = [Layout((len(batch), batch.shape[1]), None) for batch in batches]
    states = [embed(model, batch, None).reshape(-1, model.hidden) for batch in batches]
    tokens = sum(batch.size for batch in batches)
    found = {}
    for number in range(g.layers):  # a layer at a time: sums in double take as much memory as its weights
        sums = {name: np.zeros((blocks[name], widths[name], widths[name]), np.float64) for name in MATRICES["layer"]}

        def tap(layer: int, name: str, x: Array, sums: dict[str, NDArray[np.float64]] = sums) -> Array:
            missing = blocks[name] * widths[name] - x.shape[1]
            parts = np.pad(x, ((0, 0), (0, missing))).reshape(len(x), blocks[name], widths[name])
            for total, part in zip(sums[name], parts.transpose(1, 0, 2), strict=True):
                dense = np.ascontiguousarray(part)
                total += dense.T @ dense
            return x

        states = [_tapped_layer(model, number, x, layout, tap) for x, layout in zip(states, layouts, strict=True)]
        found.update({(number, name): (total / max(tokens, 1)).astype(np.float32) for name, total in sums.items()})
    return found


def _stacks(sequences: Iterable[Ids], max_length: int) -> Iterator[Ids]:
    """Put sequences of equal length, cut to `max_length`, on top of each other: (n, length), shortest first."""
    by_length: dict[int, list[Ids]] = {}
    for ids in sequences:
        by_length.setdefault(min(len(ids), max_length), []).append(np.asarray(ids)[:max_length])
    for length, group in sorted(by_length.items()):
        count = max(1, STACKED_TOKENS // max(length, 1))
        for start in range(0, len(group), count):
            yield np.stack(group[start : start + count])


def tapped_states(model: Model, ids: Ids, mask: NDArray[Any] | None, types: Ids | None, tap: Tap) -> Array:
    """Run the encoder in float32 on (batch, length) token ids; return (batch, length, hidden).

    `mask` is 1 at tokens, 0 at padding. `tap` sees the input of every matrix, (rows, K), and returns what
    the matrix shall read.
    """
    x = embed(model, ids, types)
    layout, shape = Layout((ids.shape[0], ids.shape[1]), attention_bias(mask)), x.shape
    x = x.reshape(-1, model.hidden)
    for number in range(len(model.layers)):
        x = _tapped_layer(model, number, x, layout, tap)
    return x.reshape(shape)


def _tapped_layer(model: Model, number: int, x: Array, layout: Layout, tap: Tap) -> Array:
    """Run one layer on (rows, hidden), past `tap`."""
    layer = model.layers[number]
    read = tap(number, "qkv", x)
    query, key, value = (_apply(m, read) for m in (layer.query, layer.key, layer.value))
    context = mix(query * np.float32(model.attention_scale), key, value, model.heads, layout)
    x = normalise(x + _apply(layer.output, tap(number, "out", context)), layer.attention_norm)
    inner = activate(_apply(layer.ffn_in, tap(number, "up", x)), model.activation)
    return normalise(x + _apply(layer.ffn_out, tap(number, "down", inner)), layer.ffn_norm)


def _apply(linear: Linear, x: Array) -> Array:
    return x @ linear.weight.T + linear.bias
