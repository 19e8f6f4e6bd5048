"""Derivatives of an encoder, backwards: from cotangents of what a layer or the head returns to those of what it reads.

Cotangents are stacked along a first axis; weights have none, as nothing is trained. The forward pass is `forward`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.forward import Layout, activate, mix, normalise
from stic.compiler.model import Array, Head, Layer, Linear, Norm

_STEP = 1e-2  # of a central difference: float32 loses 1e-5 to rounding there, the difference as much to curvature


@dataclass(frozen=True, eq=False)
class StreamGradients:
    """Cotangents (n, rows, hidden) inside a layer, for cotangents of its output."""

    before: Array  # of the layer's input
    attention: Array  # of the stream after attention, before its norm
    ffn: Array  # of the stream after the FFN, before its norm
    inner: Array  # (rows, hidden): what the FFN reads


def slope(x: Array, kind: str) -> Array:
    """Return the derivative of an activation at `x`, by a central difference: one for all kinds."""
    if kind == "none":
        return np.ones_like(x)
    if kind == "relu":
        return (x > 0).astype(np.float32)
    return (activate(x + np.float32(_STEP), kind) - activate(x - np.float32(_STEP), kind)) / np.float32(2 * _STEP)


def norm_cotangents(x: Array, norm: Norm, cotangents: Array) -> Array:
    """Carry cotangents (n, rows, hidden) of a norm's output back to its input `x` (rows, hidden)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.float32(1) / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(norm.epsilon))
    unit = centred * scale
    turned = cotangents * norm.gamma
    along = np.einsum("nrh,rh->nr", turned, unit)[..., None] / np.float32(x.shape[-1])
    turned -= turned.mean(axis=-1, keepdims=True)
    for one, share in zip(turned, along, strict=True):  # one after another, or their products are all there at once
        one -= unit * share
    turned *= scale
    return turned


def layer_cotangents(
    layer: Layer, heads: int, activation: str, x: Array, layout: Layout, cotangents: Array
) -> StreamGradients:
    """Carry cotangents (n, rows, hidden) of a layer's output back through it, to its input `x` (rows, hidden).

    `cotangents` are overwritten: those of the input take their place, as most of a job's memory is arrays of this size.
    The attention scale is in the query weights, as in a sharded model.
    """
    query, key, value = (_applied(linear, x) for linear in (layer.query, layer.key, layer.value))
    stream = x + _applied(layer.output, mix(query, key, value, heads, layout))
    inner = normalise(stream.copy(), layer.attention_norm)
    before_activation = _applied(layer.ffn_in, inner)
    slopes = slope(before_activation, activation)
    outer = _applied(layer.ffn_out, activate(before_activation, activation))
    outer += inner
    ffn = norm_cotangents(outer, layer.ffn_norm, cotangents)
    # One cotangent after another: an FFN is wide, and its products are large enough alone.
    before = cotangents
    for one, result in zip(ffn, before, strict=True):
        np.add(one, ((one @ layer.ffn_out.weight) * slopes) @ layer.ffn_in.weight, out=result)
    attention = norm_cotangents(stream, layer.attention_norm, before)
    for one, result in zip(attention, before, strict=True):
        np.add(one, _attention(layer, heads, (query, key, value), layout, one), out=result)
    return StreamGradients(before, attention, ffn, inner)


def _applied(linear: Linear, x: Array) -> Array:
    return x @ linear.weight.T + linear.bias


def _attention(
    layer: Layer, heads: int, projected: tuple[Array, Array, Array], layout: Layout, cotangent: Array
) -> Array:
    """Carry one cotangent (rows, hidden) of what attention adds back to the layer's input."""

    def split(part: Array) -> Array:
        batch, tokens = layout.shape
        return layout.spread(part).reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3)

    def merged(part: Array) -> Array:
        batch, tokens = layout.shape
        return layout.gather(part.transpose(0, 2, 1, 3).reshape(batch, tokens, -1))

    query, key, value = (split(part) for part in projected)
    scores: Array = query @ key.transpose(0, 1, 3, 2)
    if layout.bias is not None:
        scores += layout.bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    context = split(cotangent @ layer.output.weight)
    of_scores: Array = context @ value.transpose(0, 1, 3, 2)
    of_scores -= (of_scores * scores).sum(axis=-1, keepdims=True)
    of_scores *= scores
    found: Array = (
        merged(of_scores @ key) @ layer.query.weight
        + merged(of_scores.transpose(0, 1, 3, 2) @ query) @ layer.key.weight
        + merged(scores.transpose(0, 1, 3, 2) @ context) @ layer.value.weight
    )
    return found


def head_cotangents(head: Head, hidden: Array, mask: NDArray[np.bool_], cotangents: Array) -> Array:
    """Carry cotangents of the head's output, (n, batch[, tokens], features), back to `hidden` (batch, tokens, hidden).

    Returns (n, batch, tokens, hidden).
    """
    kept = mask.astype(np.float32)
    shares = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-9)
    x = hidden[:, 0] if head.pooling == "first" else hidden
    if head.pooling == "mean":
        x = np.matmul(shares[:, None, :], hidden)[:, 0]
    inputs = []
    for dense in head.dense:
        before = _applied(dense.linear, x)
        inputs.append(before)
        x = activate(before.copy(), dense.activation)
    turned = cotangents
    if head.normalize:
        length = np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        unit = x / length
        turned = (turned - unit * (turned * unit).sum(axis=-1, keepdims=True)) / length
    for dense, before in zip(reversed(head.dense), reversed(inputs), strict=True):
        turned = np.matmul(turned * slope(before, dense.activation), dense.linear.weight)
    if head.pooling == "tokens":
        return turned
    result = np.zeros((len(cotangents), *hidden.shape), np.float32)
    if head.pooling == "mean":
        result += shares[None, :, :, None] * turned[:, :, None, :]
    else:
        result[:, :, 0] = turned
    return result
