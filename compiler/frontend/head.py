"""The head: what a graph does between the last hidden states and its output."""

from __future__ import annotations

from typing import cast

import numpy as np

from stic.compiler.frontend.graph import Graph
from stic.compiler.frontend.norms import norm
from stic.compiler.frontend.parts import activation, linear
from stic.compiler.frontend.probe import MASKED, UNMASKED, Inputs
from stic.compiler.model import Dense, Head, HeadActivation
from stic.runtime.format import Pooling


def read_head(graph: Graph, inputs: Inputs) -> tuple[Head, str]:
    """Read the head backwards from the output; return it and the value of the last hidden states."""
    value = _unfold(graph, graph.output)
    if value not in graph.features:
        raise graph.refuse(graph.output, "an output computed from the tokens' embeddings")
    before = _normalised(graph, value)
    value = before if before is not None else value
    dense: list[Dense] = []
    while norm(graph, value) is None:
        start, kind = activation(graph, value)
        found = linear(graph, start)
        if found is None:
            break
        if kind == "gelu_tanh":
            raise graph.refuse(value, "tanh, ReLU or GELU in its erf form in the head")
        dense.append(Dense(found[1], cast(HeadActivation, kind)))
        value = found[0]
    pooling, hidden = _pooling(graph, inputs, value)
    return Head(pooling, tuple(reversed(dense)), before is not None), hidden


def _unfold(graph: Graph, value: str) -> str:
    """Step back over layout operators that keep the elements' order (a squeezed axis, say)."""
    moved = graph.moved(value)
    count = graph.value(moved.source).size
    same = moved.factor == 1.0 and np.array_equal(moved.index.ravel(), np.arange(count))
    return moved.source if same else graph.source(value)


def _normalised(graph: Graph, value: str) -> str | None:
    """If `value` is x / ||x||, return x."""
    value = graph.source(value)
    if graph.op(value) not in ("Div", "Mul", "LpNormalization"):
        return None
    for name in graph.operands(value)[0]:
        if graph.shape(name) != graph.shape(value):
            continue
        fits = []
        for number in (UNMASKED, MASKED):
            x = graph.value(name, number)
            length = np.linalg.norm(x, axis=-1, keepdims=True)
            fits.append(np.allclose(graph.value(value, number), x / np.maximum(length, 1e-12), atol=1e-5))
        if all(fits):
            return graph.source(name)
    return None


def _pooling(graph: Graph, inputs: Inputs, value: str) -> tuple[Pooling, str]:
    """Tell how `value` was made of hidden states; return (pooling, hidden states)."""
    if norm(graph, value) is not None and len(graph.shape(value)) == 3:
        return "tokens", graph.source(value)
    moved = graph.moved(value)
    _, batch, tokens = inputs.mask.shape
    if norm(graph, moved.source) is not None and graph.value(moved.source).size % (batch * tokens) == 0:
        size = graph.value(moved.source).size // (batch * tokens)
        every = np.arange(batch * tokens * size).reshape(batch, tokens, size)
        if moved.index.size == batch * size and np.array_equal(moved.index.reshape(batch, size), every[:, 0]):
            return "first", graph.source(moved.source)
        if moved.index.size == every.size and np.array_equal(moved.index.ravel(), every.ravel()):
            return "tokens", graph.source(moved.source)
        raise graph.refuse(value, "the first token's features, all tokens' features, or their mean")
    hidden = _reduced(graph, value)
    for number in (UNMASKED, MASKED):
        mask = inputs.mask[number].astype(np.float32)
        if number == MASKED and not inputs.has_mask:
            mask = np.ones_like(mask)
        x = graph.value(hidden, number).reshape(batch, tokens, -1)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        result = graph.value(value, number)
        if result.size != mean.size or not np.allclose(result.reshape(mean.shape), mean, atol=1e-4):
            raise graph.refuse(value, "the mean of the features of the tokens that the mask keeps")
    return "mean", hidden


def _reduced(graph: Graph, value: str) -> str:
    """Walk back from a pooled value over sums, products with the mask and quotients to the hidden states."""
    start = value
    while norm(graph, value) is None:
        features = graph.operands(value)[0] if value in graph.producers else []
        if graph.op(value) not in ("Div", "Mul", "ReduceSum", "ReduceMean", "MatMul", "Cast") or len(features) != 1:
            raise graph.refuse(
                start if value == start else value,
                "a linear map, tanh or ReLU, or pooling (first token, or mean under the mask) of the last norm",
            )
        value = graph.source(features[0])
    return graph.source(value)
