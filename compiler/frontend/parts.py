"""The parts that layers and heads are made of: sums, linear maps, norms, activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.forward import gelu, gelu_tanh
from stic.compiler.frontend.graph import NEUTRAL, Graph
from stic.compiler.model import HeadActivation, Linear, Norm

_ELEMENTWISE = {
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
    features, constants = terms(graph, value)
    if len(features) != 1 or graph.op(features[0]) not in ("MatMul", "Gemm"):
        return None
    node = graph.producers[features[0]]
    if any(name in graph.features for name in node.input[1:]) or node.input[0] not in graph.features:
        return None
    return fold_linear(graph, features[0], constants)


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
    bias = np.zeros(weight.shape[0], np.float32)
    weight = weight * np.float32(options.get("alpha", 1.0))
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]:
        bias = bias + _bias(graph, product, node.input[2], len(bias)) * np.float32(options.get("beta", 1.0))
    for name in constants:
        bias = bias + _bias(graph, product, name, len(bias))
    return graph.source(node.input[0]), Linear(np.ascontiguousarray(weight, np.float32), bias.astype(np.float32))


def _bias(graph: Graph, product: str, name: str, size: int) -> NDArray[Any]:
    array = graph.value(name)
    if not graph.is_constant(name) or array.size not in (1, size) or array.shape[-1:] not in ((), (1,), (size,)):
        raise graph.refuse(product, f"a constant bias of {size} values")
    return array.reshape(-1)


def norm(graph: Graph, value: str) -> tuple[str, Norm] | None:
    """Read a layer normalisation, fused or decomposed; return (its input, norm), or None."""
    value = graph.source(value)
    if value not in graph.features:
        return None
    node = graph.producers[value]
    size = graph.shape(value)[-1] if graph.shape(value) else 1
    if node.op_type == "LayerNormalization":
        options = {a.name: a.f if a.name == "epsilon" else a.i for a in node.attribute}
        if options.get("axis", -1) not in (-1, len(graph.shape(value)) - 1):
            raise graph.refuse(value, "a layer normalisation over the last axis")
        gamma = _vector(graph, node.input[1], size)
        beta = _vector(graph, node.input[2], size) if len(node.input) > 2 and node.input[2] else np.zeros(size)
        if gamma is None or beta is None:
            raise graph.refuse(value, "a layer normalisation with constant scale and shift")
        return graph.source(node.input[0]), _norm(gamma, beta, options.get("epsilon", 1e-5))
    beta, value = _affine(graph, value, "Add", size, np.zeros(size))
    gamma, value = _affine(graph, value, "Mul", size, np.ones(size))
    parts = _quotient(graph, value)
    if parts is None:
        return None
    centred, deviation = parts
    before = _centred(graph, centred)
    variance_features, variance_rest = terms(graph, deviation)
    if before is None or len(variance_features) != 1 or len(variance_rest) > 1:
        return None
    epsilon = graph.scalar(variance_rest[0]) if variance_rest else 0.0
    if epsilon is None or not _is_variance(graph, variance_features[0], before):
        return None
    return before, _norm(gamma, beta, epsilon)


def _norm(gamma: NDArray[Any], beta: NDArray[Any], epsilon: float) -> Norm:
    return Norm(gamma.astype(np.float32), beta.astype(np.float32), float(epsilon))


def _vector(graph: Graph, name: str, size: int) -> NDArray[Any] | None:
    if not graph.is_constant(name) or graph.value(name).size not in (1, size):
        return None
    return np.broadcast_to(graph.value(name).reshape(-1), (size,))


def _affine(graph: Graph, value: str, op: str, size: int, default: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Split a constant vector off a sum or product, if there is one."""
    value = graph.source(value)
    if graph.op(value) == op:
        features, others = graph.operands(value)
        vector = _vector(graph, others[0], size) if len(features) == 1 else None
        if vector is not None:
            return vector, graph.source(features[0])
    return default, value


def _quotient(graph: Graph, value: str) -> tuple[str, str] | None:
    """Read value = a / sqrt(b), in any of its spellings; return (a, b)."""
    if graph.op(value) not in ("Div", "Mul") or len(graph.operands(value)[0]) != 2:
        return None
    pairs = [tuple(graph.source(name) for name in graph.producers[value].input)]
    pairs = pairs if graph.op(value) == "Div" else [pairs[0], pairs[0][::-1]]
    for top, root in pairs:
        if graph.op(value) == "Mul":
            exponent = graph.scalar(graph.producers[root].input[1]) if graph.op(root) == "Pow" else None
            if exponent == -0.5:
                return top, graph.source(graph.producers[root].input[0])
            if graph.op(root) not in ("Reciprocal", "Div"):
                continue
            root = graph.source(graph.producers[root].input[-1])
        if graph.op(root) == "Sqrt" or (
            graph.op(root) == "Pow" and graph.scalar(graph.producers[root].input[1]) == 0.5
        ):
            return top, graph.source(graph.producers[root].input[0])
    return None


def _centred(graph: Graph, value: str) -> str | None:
    """Read value = x - mean(x) over the last axis; return x."""
    if graph.op(value) != "Sub":
        return None
    left, right = (graph.source(name) for name in graph.producers[value].input)
    if graph.op(right) != "ReduceMean" or graph.source(graph.producers[right].input[0]) != left:
        return None
    return left if graph.shape(right) == (*graph.shape(left)[:-1], 1) else None


def _is_variance(graph: Graph, value: str, before: str) -> bool:
    if graph.op(value) != "ReduceMean" or graph.shape(value)[-1:] != (1,):
        return False
    square = graph.source(graph.producers[value].input[0])
    names = graph.producers[square].input if square in graph.producers else []
    if graph.op(square) == "Pow":
        return graph.scalar(names[1]) == 2.0 and _centred(graph, graph.source(names[0])) == before
    return graph.op(square) == "Mul" and all(_centred(graph, graph.source(n)) == before for n in names)


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
        if graph.op(name) in _ELEMENTWISE and features and all(graph.scalar(o) is not None for o in others):
            waiting.extend(features)
        else:
            starts.add(name)
    if len(starts) != 1 or starts == {value}:
        return value, "none"
    start = starts.pop()
    grid = np.linspace(-8, 8, 4001, dtype=np.float32)
    result = _on_grid(graph, value, {start: grid})
    kinds = {
        "none": grid, "relu": np.maximum(grid, 0), "tanh": np.tanh(grid), "gelu": gelu(grid.copy()),
        "gelu_tanh": gelu_tanh(grid.copy()),
    }  # fmt: skip
    for kind, expected in kinds.items():
        if np.shape(result) == grid.shape and np.abs(result - expected).max() < 2e-5:
            return start, kind
    raise graph.refuse(value, "GELU (erf or tanh form), ReLU or tanh as activation")


def _on_grid(graph: Graph, value: str, known: dict[str, Any]) -> NDArray[Any]:
    """Compute `value` from the values in `known`, everything else being scalar constants."""
    if value not in graph.features:
        return graph.value(value).reshape(())
    if value not in known:
        node = graph.producers[value]
        if node.op_type in NEUTRAL or graph.source(value) != value:
            known[value] = _on_grid(graph, graph.source(value), known)
        else:
            arrays = [_on_grid(graph, name, known) if name else None for name in node.input]
            known[value] = graph.run_node(node, arrays)[0]
    return np.asarray(known[value])
