"""What heads, neurons and slices add to a layer's residual stream: importance without gradients.

Like Wanda (arXiv 2306.11695), a unit is scored by weight times activation, here as the size of what it adds to the
hidden state, and like HAWQ-V3 (arXiv 2011.10680) a bitwidth by the error it makes locally, here after the slice's own
nonlinearities and relative to the spread of the stream that the following layer norm divides by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stic.compiler.forward import normalise
from stic.compiler.importance.evaluate import Evaluator, slice_attention, slice_ffn
from stic.compiler.importance.examples import Batch
from stic.compiler.model import Array, Model
from stic.compiler.quantization.moments import tapped_states
from stic.compiler.sharding import shard_bias

Scores = NDArray[np.float64]
Order = NDArray[np.intp]

_BATCHES = 4  # whose slices are held at once: weights are dequantised once for all of them


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
    sharded = evaluator.setup.quantized.sharded
    result = np.zeros((sharded.geometry.slices, len(bits)))
    for start in range(0, len(evaluator.layouts), _BATCHES):
        result += _squared_errors(evaluator, layer, bits, slice(start, start + _BATCHES))
    return result / evaluator.setup.tokens


def _squared_errors(evaluator: Evaluator, layer: int, bits: Sequence[int], batches: slice) -> Scores:
    """The sum over the tokens of some batches, which is all that is held at once."""
    sharded = evaluator.setup.quantized.sharded
    g, weights, activation = sharded.geometry, sharded.model.layers[layer], sharded.model.activation
    biases = [shard_bias(sharded, layer, index) for index in range(g.slices)]
    exact = [evaluator.matrices(layer, index, 32) for index in range(g.slices)]
    held = []
    for x, layout in zip(evaluator.prefix(layer)[batches], evaluator.layouts[batches], strict=True):
        attention = [slice_attention(g, m, b, x, layout) for m, b in zip(exact, biases, strict=True)]
        stream = x + np.sum(attention, axis=0) + weights.output.bias
        variance = float(stream.var(axis=1).mean())
        inner = normalise(stream, weights.attention_norm)
        ffn = [slice_ffn(g, i, m, b, inner, activation) for i, (m, b) in enumerate(zip(exact, biases, strict=True))]
        inner_variance = float((inner + np.sum(ffn, axis=0) + weights.ffn_out.bias).var(axis=1).mean())
        held.append((x, layout, attention, variance, inner, ffn, inner_variance))
    result = np.zeros((g.slices, len(bits)))
    for index, place in np.ndindex(result.shape):
        matrices = evaluator.matrices(layer, index, bits[place])
        for x, layout, attention, variance, inner, ffn, inner_variance in held:
            change = slice_attention(g, matrices, biases[index], x, layout) - attention[index]
            inner_change = slice_ffn(g, index, matrices, biases[index], inner, activation) - ffn[index]
            result[index, place] += np.square(change, dtype=np.float64).mean(axis=1).sum() / variance
            result[index, place] += np.square(inner_change, dtype=np.float64).mean(axis=1).sum() / inner_variance
    return result
