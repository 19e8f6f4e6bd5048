"""The parts that a decoder's blocks are made of: linear maps whose weights stay where they are, and norms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array
from stic.compiler.frontend.decoder_graph_values import PRODUCTS, DecoderGraph, attribute
from stic.compiler.frontend.decoder_graph_weights import Matrix, dense, quantised, whole
from stic.compiler.frontend.norms import norm, rms
from stic.runtime.architecture import Norm, NormKind


@dataclass(frozen=True, eq=False)
class Map:
    """A linear map: its value is `matrix @ source + bias`."""

    source: str
    matrix: Matrix
    bias: Array | None = None

    def times(self, factor: float) -> Map:
        """The map times a number."""
        bias = None if self.bias is None else np.asarray(self.bias * np.float32(factor))
        return self if factor == 1.0 else Map(self.source, self.matrix.times(factor), bias)

    def rows(self, rows: NDArray[np.int64]) -> Map:
        """Some of its outputs, in that order."""
        bias = None if self.bias is None else self.bias[rows]
        return replace(self, matrix=replace(self.matrix, rows=self.matrix.rows[rows]), bias=bias)


@dataclass(frozen=True, eq=False)
class Normed:
    """A norm: what it reads, its kind, and its vectors."""

    source: str
    kind: Norm
    gamma: Array
    beta: Array | None = None

    def times(self, factor: float) -> Normed:
        """The norm times a number."""
        beta = None if self.beta is None else np.asarray(self.beta * np.float32(factor))
        return self if factor == 1.0 else replace(self, gamma=np.asarray(self.gamma * np.float32(factor)), beta=beta)


def scaled(graph: DecoderGraph, value: str) -> tuple[str, float]:
    """Step back over constant factors; return what they multiply, and their product."""
    factor = 1.0
    while True:
        value = graph.source(value)
        features, others = graph.operands(value) if value in graph.features else ([], [])
        number = graph.scalar(others[0]) if len(features) == len(others) == 1 else None
        op = graph.op(value)
        if number is None or number == 0 or not (op == "Mul" or (op == "Div" and features[0] == _first(graph, value))):
            return value, factor
        factor = factor * number if op == "Mul" else factor / number
        value = features[0]


def _first(graph: DecoderGraph, value: str) -> str:
    return str(graph.producers[value].input[0])


def linear(graph: DecoderGraph, value: str) -> Map | None:
    """The linear map that ends at `value`, with constants that are added and multiplied; None if there is none."""
    value, factor = scaled(graph, value)
    if value not in graph.features:
        return None
    features, others = graph.operands(value)
    if graph.op(value) == "Add" and len(features) == len(others) == 1 and graph.is_constant(others[0]):
        inner = linear(graph, features[0])
        if inner is None:
            return None
        size, bias = inner.matrix.shape[0], graph.value(others[0])
        if bias.size not in (1, size) or bias.shape[-1:] not in ((), (1,), (size,)):
            raise graph.refuse(value, f"a constant bias of {size} values")
        added = np.broadcast_to(bias.reshape(-1), (size,)).astype(np.float32)
        return replace(inner, bias=added if inner.bias is None else inner.bias + added).times(factor)
    product = _product(graph, value)
    return None if product is None else product.times(factor)


def _product(graph: DecoderGraph, value: str) -> Map | None:
    node = graph.producers[value]
    if node.op_type not in PRODUCTS or node.input[0] not in graph.features:
        return None
    source = graph.source(node.input[0])
    if node.op_type == "MatMulNBits":
        bias = _bias(graph, value, node.input[5] if len(node.input) > 5 else "")
        return Map(source, whole(quantised(graph, value)), bias)
    if node.input[1] in graph.features:
        return None
    gemm = node.op_type == "Gemm"
    if gemm and attribute(node, "transA", 0):
        raise graph.refuse(value, "features that are not transposed")
    stored = dense(graph, node.input[1], turned=not (gemm and attribute(node, "transB", 0)))
    if stored is None:
        raise graph.refuse(value, "features times a constant weight matrix of two axes")
    matrix = whole(stored).times(float(attribute(node, "alpha", 1.0)))
    bias = _bias(graph, value, node.input[2] if gemm and len(node.input) > 2 else "")
    beta = float(attribute(node, "beta", 1.0))
    return Map(source, matrix, bias if bias is None or beta == 1.0 else bias * np.float32(beta))


def _bias(graph: DecoderGraph, value: str, name: str) -> Array | None:
    if not name:
        return None
    if not graph.is_constant(name) or graph.value(name).size != graph.shape(value)[-1]:
        raise graph.refuse(value, f"a constant bias of {graph.shape(value)[-1]} values")
    return np.asarray(graph.value(name).reshape(-1), np.float32)


def normed(graph: DecoderGraph, value: str) -> Normed | None:
    """The norm over the last axis that ends at `value`, with factors after it; None if there is none."""
    value, factor = scaled(graph, value)
    if value not in graph.features:
        return None
    if graph.op(value) == "RMSNormalization":
        return _fused_rms(graph, value).times(factor)
    kind: NormKind = "rms"
    read = rms(graph, value) if graph.op(value) != "LayerNormalization" else None
    if read is None:
        kind, read = "layer", norm(graph, value)
    if read is None:
        return None
    source, vectors = read
    if not vectors.epsilon > 0:
        raise graph.refuse(value, "a normalisation with an epsilon")
    beta = vectors.beta if vectors.beta.any() else None
    return Normed(source, Norm(kind, decimal(vectors.epsilon)), vectors.gamma, beta).times(factor)


def _fused_rms(graph: DecoderGraph, value: str) -> Normed:
    node, shape = graph.producers[value], graph.shape(value)
    axis, gamma = int(attribute(node, "axis", -1)), node.input[1]
    if axis % len(shape) != len(shape) - 1 or not graph.is_constant(gamma) or graph.shape(gamma) != shape[-1:]:
        raise graph.refuse(value, "a normalisation over the last axis with a constant scale")
    kind = Norm("rms", decimal(float(attribute(node, "epsilon", 1e-5))))
    return Normed(graph.source(node.input[0]), kind, np.asarray(graph.value(gamma), np.float32))


def decimal(number: float) -> float:
    """The decimal that a float32 attribute was written as."""
    return float(f"{number:.6g}")


def same_place(graph: DecoderGraph, one: str, other: str) -> bool:
    """Whether two names stand for the same features."""
    return graph.source(one) == graph.source(other)
