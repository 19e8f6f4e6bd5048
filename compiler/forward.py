"""A model's forward pass in numpy, batched and in float32: the compiler's answer to what a model computes.

Importance profiling runs it thousands of times, so it can start at any layer (`run_layers` from given hidden states),
run any prefix of a layer's heads and neurons, and take layers whose weights were replaced. Matrix products go to
BLAS without copies of operands; element-wise work is done in place, in blocks that stay in cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array, Embeddings, Head, Layer, Linear, Model, Norm

Ints = NDArray[np.integer[Any]]
Width = tuple[int, int] | None  # (heads kept, neurons kept); None: all; (0, 0): the layer is left out
_BLOCK = 1 << 15  # elements of a block in cache
# erfc(z) ~ t (A1 + t (A2 + ...)) exp(-z^2), t = 1 / (1 + P z), z >= 0, |error| <= 1.5e-7:
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26 (after C. Hastings, 1955).
_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def gelu(x: Array) -> Array:
    """Replace contiguous `x` by x * Phi(x) (exact, erf form; absolute error < 1e-6) and return it."""
    flat = x.reshape(-1)
    scratch = np.empty((3, min(_BLOCK, flat.size)), np.float32)
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        size, t, tail = (row[: part.size] for row in scratch)
        np.abs(part, out=size)
        np.multiply(size, np.float32(_P / np.sqrt(2.0)), out=t)
        t += np.float32(1.0)
        np.reciprocal(t, out=t)
        np.multiply(t, np.float32(_A[4]), out=tail)
        for coefficient in _A[3::-1]:
            tail += np.float32(coefficient)
            tail *= t
        np.multiply(size, size, out=t)
        t *= np.float32(-0.5)
        np.exp(t, out=t)
        tail *= t
        tail *= size
        tail *= np.float32(0.5)
        np.maximum(part, np.float32(0.0), out=part)
        part -= tail  # gelu(x) = relu(x) - |x| erfc(|x| / sqrt 2) / 2, for either sign
    return x


def gelu_tanh(x: Array) -> Array:
    """Replace contiguous `x` by the tanh form of GELU (arXiv 1606.08415, section 2) and return it."""
    flat = x.reshape(-1)
    scratch = np.empty(min(_BLOCK, flat.size), np.float32)
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        inner = scratch[: part.size]
        np.multiply(part, part, out=inner)
        inner *= np.float32(0.044715)
        inner += np.float32(1.0)
        inner *= part
        inner *= np.float32(np.sqrt(2.0 / np.pi))
        np.tanh(inner, out=inner)
        inner += np.float32(1.0)
        part *= inner
        part *= np.float32(0.5)
    return x


def activate(x: Array, kind: str) -> Array:
    """Apply an activation in place (contiguous `x`) and return it."""
    if kind == "gelu":
        return gelu(x)
    if kind == "gelu_tanh":
        return gelu_tanh(x)
    if kind == "relu":
        return np.maximum(x, np.float32(0.0), out=x)
    if kind == "tanh":
        return np.tanh(x, out=x)
    return x


def normalise(x: Array, norm: Norm) -> Array:
    """Layer-normalise `x` (rows, hidden) in place and return it."""
    x -= x.mean(axis=-1, keepdims=True)
    variance = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(x.shape[-1])
    x *= np.float32(1.0) / np.sqrt(variance + np.float32(norm.epsilon))
    x *= norm.gamma
    x += norm.beta
    return x


def _apply(linear: Linear, x: Array) -> Array:
    y = x @ linear.weight.T
    y += linear.bias
    return y


def position_rows(tables: Embeddings, ids: Ints) -> NDArray[np.intp]:
    """Return the row of the position table that each of `ids` (batch, tokens) gets."""
    if tables.padding is None:
        return np.broadcast_to(tables.position_offset + np.arange(ids.shape[1]), ids.shape)
    counted = ids != tables.padding
    return np.asarray(tables.position_offset - 1 + np.cumsum(counted, axis=1) * counted)


def embed(model: Model, ids: Ints, token_types: Ints | None = None) -> Array:
    """Return the hidden states before layer 0, (batch, tokens, hidden); `ids` is (batch, tokens)."""
    tables = model.embeddings
    batch, tokens = ids.shape
    x = tables.word[ids]
    x += tables.position[position_rows(tables, ids)]
    if tables.token_type is not None:
        single = token_types is None or len(tables.token_type) == 1
        x += tables.token_type[np.zeros_like(ids) if single else token_types]
    return normalise(x.reshape(batch * tokens, -1), tables.norm).reshape(x.shape)


def attention_bias(mask: NDArray[Any] | None) -> Array | None:
    """Return what is added to scores, (batch, 1, 1, tokens), from a mask (batch, tokens); None if nothing is masked."""
    if mask is None or np.all(mask):
        return None
    return np.where(np.asarray(mask, bool), np.float32(0.0), np.float32(-1e30))[:, None, None, :]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the rows of a matrix (rows, features) stand in a batch of sequences."""

    shape: tuple[int, int]  # (batch, tokens)
    bias: Array | None  # added to scores, from `attention_bias`
    places: NDArray[np.intp] | None = None  # of the rows in batch * tokens; None: there is a row for each

    def spread(self, x: Array) -> Array:
        """Return rows (rows, features) as (batch, tokens, features), zeros where there is no row."""
        if self.places is None:
            return x.reshape(*self.shape, -1)
        whole = np.zeros((self.shape[0] * self.shape[1], x.shape[1]), x.dtype)
        whole[self.places] = x
        return whole.reshape(*self.shape, -1)

    def gather(self, x: Array) -> Array:
        """Return the rows of (batch, tokens, features)."""
        rows = x.reshape(-1, x.shape[-1])
        return rows if self.places is None else rows[self.places]


def dense_layout(mask: NDArray[np.bool_]) -> Layout:
    """Return the layout without rows for padding: what no output depends on is not computed."""
    return Layout((mask.shape[0], mask.shape[1]), attention_bias(mask), np.flatnonzero(mask))


def run_layer(
    layer: Layer, heads: int, activation: str, scale: float, x: Array, layout: Layout, width: Width = None
) -> Array:
    """Run one layer on `x` (rows, hidden), which is left unchanged.

    `heads` is the layer's number of heads. `width` = (k, n) runs the first k heads and n neurons; (0, 0) returns `x`
    itself.
    """
    if width == (0, 0):
        return x
    kept, neurons = width if width is not None else (heads, layer.ffn_in.weight.shape[0])
    return feed_forward(layer, attend(layer, x, heads, kept, scale, layout), activation, neurons)


def attend(layer: Layer, x: Array, heads: int, kept: int, scale: float, layout: Layout) -> Array:
    """Return the stream (rows, hidden) after the attention of the first `kept` heads, before the norm."""
    size = layer.query.weight.shape[0] // heads
    query, key, value = (
        _apply(Linear(linear.weight[: kept * size], linear.bias[: kept * size]), x)
        for linear in (layer.query, layer.key, layer.value)
    )
    query *= np.float32(scale)
    y = mix(query, key, value, kept, layout) @ layer.output.weight[:, : kept * size].T
    y += layer.output.bias
    y += x
    return y


def mix(query: Array, key: Array, value: Array, heads: int, layout: Layout) -> Array:
    """Return softmax(query key^T) value of each head; all are (rows, heads * size), heads side by side."""
    batch, tokens = layout.shape
    q, k, v = (
        layout.spread(part).reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3) for part in (query, key, value)
    )
    scores: Array = q @ k.transpose(0, 1, 3, 2)
    if layout.bias is not None:
        scores += layout.bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    context: Array = scores @ v
    context /= total
    return layout.gather(context.transpose(0, 2, 1, 3).reshape(batch, tokens, -1))


def feed_forward(layer: Layer, y: Array, activation: str, neurons: int) -> Array:
    """Return the layer's output from the stream after attention (rows, hidden), which is changed."""
    normalise(y, layer.attention_norm)
    z = y @ layer.ffn_in.weight[:neurons].T
    z += layer.ffn_in.bias[:neurons]
    z = activate(z, activation) @ layer.ffn_out.weight[:, :neurons].T
    z += layer.ffn_out.bias
    z += y
    return normalise(z, layer.ffn_norm)


def run_layers(
    model: Model, hidden: Array, mask: NDArray[Any] | None = None, first: int = 0,
    widths: Sequence[Width] | None = None, layers: Sequence[Layer] | None = None,
) -> Array:  # fmt: skip
    """Run layers `first`.. on the hidden states before layer `first`, (batch, tokens, hidden).

    `widths` has one entry for each layer of the model (see `run_layer`); `layers` replaces the model's layers.
    """
    layout = Layout((hidden.shape[0], hidden.shape[1]), attention_bias(mask))
    stack = model.layers if layers is None else layers
    x = layout.gather(hidden)
    for number in range(first, len(stack)):
        width = widths[number] if widths is not None else None
        x = run_layer(stack[number], model.heads, model.activation, model.attention_scale, x, layout, width)
    return x.reshape(hidden.shape)


def run_head(head: Head, hidden: Array, mask: NDArray[Any] | None = None) -> Array:
    """Return (batch, features), or (batch, tokens, features) with pooling "tokens", from (batch, tokens, hidden)."""
    x = hidden
    if head.pooling == "first":
        x = hidden[:, 0]
    elif head.pooling == "mean":
        kept = np.ones(hidden.shape[:2], np.float32) if mask is None else np.asarray(mask, np.float32)
        x = np.matmul(kept[:, None, :], hidden)[:, 0] / np.maximum(kept.sum(1, keepdims=True), 1e-9)
    for dense in head.dense:
        x = activate(_apply(dense.linear, x), dense.activation)
    if head.normalize:
        x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return x


def hidden_states(
    model: Model, ids: Ints, mask: NDArray[Any] | None = None, token_types: Ints | None = None,
    widths: Sequence[Width] | None = None,
) -> Array:  # fmt: skip
    """Return the last layer's output (batch, tokens, hidden) for `ids`, `mask`, `token_types` of (batch, tokens)."""
    return run_layers(model, embed(model, ids, token_types), mask, widths=widths)


def outputs(
    model: Model, ids: Ints, mask: NDArray[Any] | None = None, token_types: Ints | None = None,
    widths: Sequence[Width] | None = None,
) -> Array:  # fmt: skip
    """Return what the model's graph returns: `hidden_states` through the head."""
    return run_head(model.head, hidden_states(model, ids, mask, token_types, widths), mask)
