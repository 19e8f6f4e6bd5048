"""Encoder layers, read backwards from a norm to the one before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.graph import Graph, Moved
from stic.compiler.frontend.norms import norm
from stic.compiler.frontend.parts import activation, fold_linear, linear, terms
from stic.compiler.frontend.probe import MASKED, UNMASKED, Inputs
from stic.compiler.frontend.scores import additive, check_mask, read_scores
from stic.compiler.model import Linear, Norm

_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True, eq=False)
class AttentionHalf:
    """x = norm(x + output(attention(query, key, value))); heads are in `output`'s column order."""

    before: str  # value of x
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    norm: Norm
    heads: int
    scale: float


@dataclass(frozen=True, eq=False)
class FeedForwardHalf:
    """x = norm(x + second(activation(first(x))))."""

    before: str
    first: Linear
    second: Linear
    norm: Norm
    activation: str


def half(graph: Graph, inputs: Inputs, value: str) -> AttentionHalf | FeedForwardHalf:
    """Read the half layer that ends in the norm at `value`; UnsupportedModelError names what does not fit."""
    found = norm(graph, value)
    if found is None:
        raise graph.refuse(value, "a layer normalisation (post-norm encoder layer: norm(x + sublayer(x)))")
    summed, layer_norm = found
    features, constants = terms(graph, summed)
    products = [name for name in features if graph.op(name) in _PRODUCTS]
    residual = [name for name in features if graph.op(name) not in _PRODUCTS]
    if len(products) != 1 or len(residual) != 1:
        raise graph.refuse(summed, "the sum of a residual and a linear map, normalised")
    before, last = fold_linear(graph, products[0], constants)
    if norm(graph, residual[0]) is None:
        raise graph.refuse(residual[0], "the output of the layer normalisation before, as residual")
    inner = graph.moved(before)
    if graph.op(graph.source(inner.source)) in ("MatMul", "Attention"):
        return _attention(graph, inputs, before, inner, residual[0], last, layer_norm)
    if not np.array_equal(inner.index.ravel(), np.arange(inner.index.size)):  # heads were moved
        raise graph.refuse(inner.source, "attention: softmax(queries x keys) x values, heads merged after it")
    start, kind = activation(graph, before)
    first = linear(graph, start)
    if first is None or kind not in ("gelu", "gelu_tanh", "relu"):
        raise graph.refuse(start, "a linear map followed by GELU or ReLU (the feed-forward half of a layer)")
    if first[0] != residual[0]:
        raise graph.refuse(first[0], "the same value that the residual carries, as the feed-forward half's input")
    return FeedForwardHalf(residual[0], first[1], last, layer_norm, kind)


def _attention(
    graph: Graph, inputs: Inputs, merged: str, inner: Moved, before: str, last: Linear, layer_norm: Norm
) -> AttentionHalf:
    context = graph.source(inner.source)
    node = graph.producers[context]
    if node.op_type == "Attention":
        operands, softmax_factor = _fused(graph, inputs, context)
    else:
        weights = graph.source(node.input[0])
        if graph.op(weights) != "Softmax" or node.input[1] not in graph.features:
            raise graph.refuse(context, "attention: softmax(queries x keys) x values")
        scores = read_scores(graph, graph.producers[weights].input[0])
        if graph.op(scores.product) != "MatMul" or any(
            name not in graph.features for name in graph.producers[scores.product].input
        ):
            raise graph.refuse(scores.product, "the product of queries and keys")
        query, key = graph.producers[scores.product].input
        operands, softmax_factor = (query, key, node.input[1]), scores.factor
    query, key, value = (graph.moved(name) for name in operands)
    size, width = inputs.mask.shape[2], graph.shape(operands[2])[-1]
    batch = inputs.mask.shape[1]
    heads_last = node.op_type == "Attention" and len(graph.shape(operands[0])) == 3
    if heads_last:
        heads = _attribute(node, "q_num_heads", 1)
        indices = [m.index.reshape(batch, size, heads, -1).transpose(0, 2, 1, 3) for m in (query, key, value)]
    else:
        keys = key.index if node.op_type == "Attention" else key.index.swapaxes(-1, -2)
        heads = query.index.size // (batch * size * query.index.shape[-1])
        if any(i.size != batch * heads * size * i.shape[-1] for i in (keys, value.index)):
            raise graph.refuse(context, "as many key and value heads as query heads")
        indices = [i.reshape(batch, heads, size, i.shape[-1]) for i in (query.index, keys, value.index)]
    if node.op_type != "Attention":
        check_mask(graph, inputs, weights, scores.bias, heads)
    width = indices[2].shape[-1]
    if any(index.shape[-1] != width for index in indices):
        raise graph.refuse(context, "queries, keys and values of one head size")
    q, k, v = (_projection(graph, moved, at, before) for moved, at in zip((query, key, value), indices, strict=True))
    columns = _head_columns(graph, merged, inner, heads, batch, size, width, heads_last)
    scale = softmax_factor * query.factor * key.factor
    order, factor = np.argsort(columns), np.float32(inner.factor * value.factor)
    if factor != 1 or np.any(np.diff(order) != 1):
        last = Linear(np.ascontiguousarray(last.weight[:, order] * factor), last.bias)
    return AttentionHalf(before, q, k, v, last, layer_norm, heads, scale)


def _fused(graph: Graph, inputs: Inputs, context: str) -> tuple[tuple[str, str, str], float]:
    """Read the standard op Attention (opset 23): heads on an axis of their own, or merged."""
    node = graph.producers[context]
    query, key, value = node.input[:3]
    rank3 = len(graph.shape(query)) == 3
    heads = _attribute(node, "q_num_heads", 1) if rank3 else graph.shape(query)[1]
    shapes = {graph.shape(name) for name in (query, key, value)}
    if len(shapes) != 1 or _attribute(node, "softcap", 0.0) or (rank3 and graph.shape(query)[-1] % heads):
        raise graph.refuse(context, "plain attention with as many key heads as query heads")
    if len(node.input) > 3 and node.input[3]:
        bias = tuple(additive(graph.value(node.input[3], number)) for number in (UNMASKED, MASKED))
        check_mask(graph, inputs, context, (bias[0], bias[1]), heads)
    elif inputs.has_mask:
        raise graph.refuse(context, "an attention mask as fourth input")
    size = graph.shape(query)[-1] // (heads if rank3 else 1)
    return (query, key, value), float(_attribute(node, "scale", 0.0) or size**-0.5)


def _attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute.f if isinstance(default, float) else attribute.i
    return default


def _projection(graph: Graph, moved: Moved, index: NDArray[np.int64], before: str) -> Linear:
    """Return the map whose rows are head-major: `index` (batch, heads, tokens, size) says which row each element is."""
    found = linear(graph, moved.source)
    if found is None:
        raise graph.refuse(moved.source, "a linear map (queries, keys or values)")
    start, mapping = found
    if start != before:
        raise graph.refuse(start, "the value that the residual carries, as the attention's input (self-attention)")
    rows = mapping.weight.shape[0]
    batch, heads, tokens, _ = index.shape
    first = index[0, :, 0, :]
    token = np.arange(batch * tokens).reshape(batch, 1, tokens, 1) * rows
    if first.max() >= rows or not np.array_equal(index, first[None, :, None, :] + token):
        raise graph.refuse(moved.source, f"features split into {heads} heads, the same for every token")
    chosen = first.reshape(-1)
    if np.array_equal(chosen, np.arange(rows)):
        return mapping
    return Linear(np.ascontiguousarray(mapping.weight[chosen]), np.ascontiguousarray(mapping.bias[chosen]))


def _head_columns(
    graph: Graph, merged: str, inner: Moved, heads: int, batch: int, tokens: int, width: int, heads_last: bool
) -> NDArray[np.int64]:
    """Return, for each input column of the output map, its place head * width + element."""
    index = inner.index.reshape(batch, tokens, -1)
    count = heads * width
    first = index[0, 0]
    place: NDArray[np.int64] = first if heads_last else first // (tokens * width) * width + first % width
    b, t = np.arange(batch)[:, None, None], np.arange(tokens)[None, :, None]
    head, element = place // width, place % width
    if heads_last:
        expected = (b * tokens + t) * count + place
    else:
        expected = ((b * heads + head) * tokens + t) * width + element
    if not np.array_equal(index, expected) or not np.array_equal(np.sort(place), np.arange(count)):
        raise graph.refuse(merged, f"the {heads} heads' outputs merged into {count} features per token")
    return place
