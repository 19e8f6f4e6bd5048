"""The parts that layers and heads are made of: sums, linear maps, norms, activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.forward import gelu, gelu_tanh
from stic.compiler.frontend.graph import NEUTRAL, Graph
from stic.compiler.frontend.norms import norm
from stic.compiler.model import HeadActivation, Linear

ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Erf", "Tanh", "Relu", "Gelu", "Sigmoid", "Exp", "Neg", "Reciprocal",
    "Abs", "Sign", "Max", "Min", "Clip", "Where", "Greater", "Less", "Elu", "LeakyRelu", "Selu", "Softplus", "Swish",
    "Mish", "HardSwish", "HardSigmoid",
}  # fmt: skip


def terms(graph: Graph, value: str) -> tuple[list[str], list[str]]:
    """Flatten a sum: the features in it, and the other values in it."""
    value = graph.source(value)
    if value not in graph.features:
        return [], [value]
    if graph.op(value) != "Add" or norm(graph, value) is not None:  # a decomposed norm ends in adding its shift
        return [value], []
    found = [terms(graph, name) for name in graph.producers[value].input]
    return [n for features, _ in found for n in features], [n for _, others in found for n in others]


def linear(graph: Graph, value: str) -> tuple[str, Linear] | None:
    """Read `value = weight @ x + bias`; return (x, map), or None if it is no linear map of one value."""
    found = _product(graph, value)
    return None if found is None else fold_linear(graph, *found)


def _product(graph: Graph, value: str) -> tuple[str, list[str]] | None:
    """Split `value` into a product of one value by no other, and what is added to it; None if it is no such sum."""
    features, constants = terms(graph, value)
    if len(features) != 1 or graph.op(features[0]) not in ("MatMul", "Gemm"):
        return None
    node = graph.producers[features[0]]
    if any(name in graph.features for name in node.input[1:]) or node.input[0] not in graph.features:
        return None
    return features[0], constants


def fold_linear(graph: Graph, product: str, constants: list[str]) -> tuple[str, Linear]:
    """Fold a MatMul or Gemm by a constant matrix, and the constants added to it, into one map; return (x, map)."""
    node = graph.producers[product]
    options = {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in node.attribute}
    if node.input[0] not in graph.features or not graph.is_constant(node.input[1]):
        raise graph.refuse(product, "features times a constant weight matrix")
    weight = graph.value(node.input[1])
    if weight.ndim != 2 or options.get("transA", 0):
        raise graph.refuse(product, "a weight matrix of two axes")
    weight = weight if options.get("transB", 0) else weight.T
    bias: NDArray[Any] = np.zeros(weight.shape[0], np.float32)
    weight = _times(weight, options.get("alpha", 1.0))
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]:
        bias = bias + _bias(graph, product, node.input[2], len(bias)) * np.float32(options.get("beta", 1.0))
    for name in constants:
        bias = bias + _bias(graph, product, name, len(bias))
    return graph.source(node.input[0]), Linear(np.ascontiguousarray(weight, np.float32), bias.astype(np.float32))


def _times(weight: NDArray[Any], factor: float) -> NDArray[Any]:
    """A multiple, in float32; the weight itself, which may be large, where the factor is 1."""
    return weight if factor == 1.0 else weight * np.float32(factor)


def _bias(graph: Graph, product: str, name: str, size: int) -> NDArray[Any]:
    array = graph.value(name)
    if not graph.is_constant(name) or array.size not in (1, size) or array.shape[-1:] not in ((), (1,), (size,)):
        raise graph.refuse(product, f"a constant bias of {size} values")
    return array.reshape(-1)


def activation(graph: Graph, value: str) -> tuple[str, HeadActivation | str]:
    """Find the function of single elements that ends at `value`: return (its input, its kind).

    The kind is "none", "relu", "tanh", "gelu" or "gelu_tanh", told by running the nodes in between on a grid, so that
    every way to write a GELU counts. UnsupportedModelError if it is another function.
    """
    value = graph.source(value)
    seen: set[str] = set()
    starts: set[str] = set()
    waiting = [value]
    while waiting:
        name = graph.source(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        features, others = graph.operands(name) if name in graph.producers else ([], [])
        scalars = bool(features) and all(graph.scalar(other) is not None for other in others)
        if graph.op(name) in ELEMENTWISE and scalars and _product(graph, name) is None:  # a bias may be one number
            waiting.extend(features)
        else:
            starts.add(name)
    if len(starts) != 1 or starts == {value}:
        return value, "none"
    start = starts.pop()
    grid = np.linspace(-8, 8, 4001, dtype=np.float32)
    result = on_grid(graph, value, {start: grid})
    kinds = {
        "none": grid, "relu": np.maximum(grid, 0), "tanh": np.tanh(grid), "gelu": gelu(grid.copy()),
        "gelu_tanh": gelu_tanh(grid.copy()),
    }  # fmt: skip
    if np.shape(result) == grid.shape:
        errors = {kind: float(np.abs(result - expected).max()) for kind, expected in kinds.items()}
        nearest = min(errors, key=lambda kind: errors[kind])
        if errors[nearest] < graph.precision.activation:
            return start, nearest
    raise graph.refuse(value, "GELU (erf or tanh form), ReLU or tanh as activation")


def on_grid(graph: Graph, value: str, known: dict[str, Any]) -> NDArray[Any]:
    """Compute `value` from the values in `known`, everything else being scalar constants."""
    if value not in graph.features:
        return graph.value(value).reshape(())
    if value not in known:
        node = graph.producers[value]
        if node.op_type in NEUTRAL or graph.source(value) != value:
            known[value] = on_grid(graph, graph.source(value), known)
        else:
            arrays = [on_grid(graph, name, known) if name else None for name in node.input]
            known[value] = graph.run_node(node, arrays)[0]
    return np.asarray(known[value])
