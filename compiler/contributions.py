"""What heads, neurons and slices add to a layer's residual stream: importance without gradients.

Like Wanda (arXiv 2306.11695), a unit is scored by weight times activation, here as the size of what it adds to the
hidden state, and like HAWQ-V3 (arXiv 2011.10680) a bitwidth by the error it makes locally, here after the slice's own
nonlinearities and relative to the spread of the stream that the following layer norm divides by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stic.compiler.evaluate import Evaluator
from stic.compiler.forward import activate, attention_bias, normalise
from stic.compiler.model import Array, Model
from stic.compiler.moments import tapped_states
from stic.compiler.sharding import Geometry, shard_bias
from stic.compiler.task import Batch

Scores = NDArray[np.float64]
Order = NDArray[np.intp]


def unit_scores(model: Model, batches: Sequence[Batch]) -> tuple[Scores, Scores]:
    """Score heads (layers, heads) and neurons (layers, ffn) by the mean norm of what they add to the residual stream.

    A head adds W_o,h context_h, a neuron w_out,j h_j: the mean over tokens of the norm of either.
    """
    heads = np.zeros((len(model.layers), model.heads))
    neurons = np.zeros((len(model.layers), model.ffn))
    for batch in batches:
        valid = batch.mask.ravel()

        def tap(layer: int, name: str, x: Array, valid: NDArray[np.bool_] = valid) -> Array:
            if name == "out":
                output = model.layers[layer].output.weight
                context = x[valid].reshape(-1, model.heads, model.head_dim)
                for head in range(model.heads):
                    columns = slice(head * model.head_dim, (head + 1) * model.head_dim)
                    heads[layer, head] += np.linalg.norm(context[:, head] @ output[:, columns].T, axis=1).sum()
            elif name == "down":
                norms = np.linalg.norm(model.layers[layer].ffn_out.weight, axis=0)
                neurons[layer] += np.abs(x[valid]).sum(axis=0) * norms
            return x

        tapped_states(model, batch.ids, batch.mask, batch.types, tap)
    tokens = max(sum(batch.tokens for batch in batches), 1)
    return heads / tokens, neurons / tokens


def unit_order(model: Model, batches: Sequence[Batch]) -> tuple[Order, Order]:
    """Return head_order (layers, heads) and neuron_order (layers, ffn) for `shard`: most important first."""
    heads, neurons = unit_scores(model, batches)
    return np.argsort(-heads, axis=1, kind="stable"), np.argsort(-neurons, axis=1, kind="stable")


def local_errors(evaluator: Evaluator, layer: int, bits: Sequence[int]) -> Scores:
    """Return (slices, len(bits)): the error that each slice of `layer` makes at each bitwidth, dimensionless.

    The mean square of the change in what the slice adds to the stream against float32 weights, over the variance of
    the stream before the norm that follows; attention and FFN added. Inputs are those of the base assignment.
    """
    sharded = evaluator.measurement.quantized.sharded
    g, weights, activation = sharded.geometry, sharded.model.layers[layer], sharded.model.activation
    biases = [shard_bias(sharded, layer, index) for index in range(g.slices)]
    result = np.zeros((g.slices, len(bits)))
    for batch, x in zip(evaluator.measurement.batches, evaluator.prefix(layer), strict=True):
        mask, valid = attention_bias(batch.mask), batch.mask.ravel()
        rows = x.reshape(-1, g.hidden)
        exact = [evaluator.matrices(layer, index, 32) for index in range(g.slices)]
        attention = [_attention(g, m, b, x, mask) for m, b in zip(exact, biases, strict=True)]
        stream = rows + np.sum(attention, axis=0) + weights.output.bias
        spread = float(stream[valid].var(axis=1).mean())
        inner = normalise(stream, weights.attention_norm)
        ffn = [_ffn(g, i, m, b, inner, activation) for i, (m, b) in enumerate(zip(exact, biases, strict=True))]
        inner_spread = float((inner + np.sum(ffn, axis=0) + weights.ffn_out.bias)[valid].var(axis=1).mean())
        for index in range(g.slices):
            for place, b in enumerate(bits):
                matrices = evaluator.matrices(layer, index, b)
                change = _attention(g, matrices, biases[index], x, mask) - attention[index]
                inner_change = _ffn(g, index, matrices, biases[index], inner, activation) - ffn[index]
                result[index, place] += np.square(change[valid], dtype=np.float64).mean(axis=1).sum() / spread
                result[index, place] += (
                    np.square(inner_change[valid], dtype=np.float64).mean(axis=1).sum() / inner_spread
                )
    return result / evaluator.measurement.tokens


def _attention(
    g: Geometry, matrices: Mapping[str, Array], biases: Mapping[str, Array], x: Array, mask: Array | None
) -> Array:
    """What one slice's heads add, (rows, hidden), from (batch, tokens, hidden); the scale is in the query weights."""
    batch, tokens, hidden = x.shape
    width = g.attention_per_slice
    projected = x.reshape(-1, hidden) @ matrices["qkv"][:, :hidden].T + biases["qkv"]
    query, key, value = (
        projected[:, part * g.A : part * g.A + width]
        .reshape(batch, tokens, g.heads_per_slice, g.head_dim)
        .transpose(0, 2, 1, 3)
        for part in range(3)
    )
    scores = query @ key.swapaxes(-1, -2)
    if mask is not None:
        scores += mask
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    context = (grown / grown.sum(axis=-1, keepdims=True)) @ value
    return context.transpose(0, 2, 1, 3).reshape(-1, width) @ matrices["out"][:hidden, :width].T


def _ffn(
    g: Geometry, index: int, matrices: Mapping[str, Array], biases: Mapping[str, Array], x: Array, activation: str
) -> Array:
    """What one slice's neurons add, (rows, hidden), from (rows, hidden)."""
    count = len(g.neurons(index))
    inner = x @ matrices["up"][:count, : g.hidden].T + biases["up"][:count]
    return activate(inner, activation) @ matrices["down"][: g.hidden, :count].T
