"""Layer norms, recognised by what they compute: gamma * (x - mean) / sqrt(variance + epsilon) + beta, last axis.

Exporters spell a layer norm in many ways: x * s + (b - mean * s), Rsqrt as Pow or Reciprocal, a variance as a mean of
squares less a squared mean. So no order of operators is looked for. Every path from the embeddings to a norm's output
goes through its input, which makes the input a dominator of the output in the graph of features; the nodes between the
two are run on rows made for it, gamma, beta and epsilon are solved from the answers, and a norm it is if those three
then predict the answers to random rows too, at magnitudes where epsilon counts and where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from stic.compiler.frontend.graph import Graph
from stic.compiler.model import Norm

_NODES = 32  # more than any spelling of a layer norm takes
_NORMALISERS = ("LayerNormalization", "MeanVarianceNormalization")
_MAGNITUDES = 10.0 ** np.arange(2, -10, -1)  # of rows; an epsilon shows where it is about the variance
_FAR = 1e4  # magnitude of rows at which no epsilon counts

Doubles = NDArray[np.float64]


def norm(graph: Graph, value: str) -> tuple[str, Norm] | None:
    """Read the layer normalisation that ends in `value`; return (its input, norm), or None if none ends there."""
    value = graph.source(value)
    if value not in graph.features:
        return None
    if value not in graph.norms:
        read = _fused if graph.op(value) == "LayerNormalization" else _composed
        graph.norms[value] = read(graph, value)
    found: tuple[str, Norm] = graph.norms[value]
    return found


def _fused(graph: Graph, value: str) -> tuple[str, Norm]:
    node, size = graph.producers[value], graph.shape(value)[-1]
    options: dict[str, Any] = {a.name: a.f if a.name == "epsilon" else a.i for a in node.attribute}
    if options.get("axis", -1) not in (-1, len(graph.shape(value)) - 1):
        raise graph.refuse(value, "a layer normalisation over the last axis")
    vectors = [_vector(graph, name, size) for name in node.input[1:] if name]
    if any(vector is None for vector in vectors):
        raise graph.refuse(value, "a layer normalisation with constant scale and shift")
    gamma, beta = vectors if len(vectors) == 2 else (vectors[0], np.zeros(size, np.float32))
    return graph.source(node.input[0]), Norm(gamma, beta, float(options.get("epsilon", 1e-5)))


def _vector(graph: Graph, name: str, size: int) -> Any:
    if not graph.is_constant(name) or graph.value(name).size not in (1, size):
        return None
    return np.broadcast_to(graph.value(name).reshape(-1), (size,)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Between:
    """The function from the value `start` to the value `end`."""

    graph: Graph
    start: str
    end: str
    nodes: tuple[onnx.NodeProto, ...]  # each after those it depends on
    constants: tuple[str, ...]  # values that they read besides

    @cached_property
    def _program(self) -> ReferenceEvaluator:
        names = [onnx.ValueInfoProto(name=name) for name in (self.start, *self.constants)]
        body = helper.make_graph(list(self.nodes), "between", names, [onnx.ValueInfoProto(name=self.end)])
        return ReferenceEvaluator(helper.make_model(body, opset_imports=list(self.graph.opsets)))

    def __call__(self, rows: Doubles) -> Doubles:
        """Return what `end` holds, as rows, where `start` holds `rows` (n, size), n being what the probe has."""
        feeds = {name: self.graph.value(name) for name in self.constants}
        feeds[self.start] = rows.reshape(self.graph.shape(self.start)).astype(np.float32)
        try:
            with np.errstate(all="ignore"):
                results = list(self._program.run(None, feeds))
            return np.asarray(results[0], np.float64).reshape(rows.shape)
        except Exception:  # the reference operators raise anything; what cannot run on rows is no norm of them
            return np.full(rows.shape, np.nan)


def rms(graph: Graph, value: str) -> tuple[str, Norm] | None:
    """Read the root-mean-square normalisation (arXiv 1910.07467) that ends in `value`, as `norm` does; beta is zero."""
    value = graph.source(value)
    return _composed(graph, value, centred=False) if value in graph.features else None


def _composed(graph: Graph, value: str, centred: bool = True) -> tuple[str, Norm] | None:
    """Try the dominators of `value`, the nearest first, as the input of a norm that ends there."""
    shape = graph.shape(value)
    start = value
    while len(shape) > 1 and shape[-1] > 1 and (start := graph.dominators.get(start, "")):
        function = between(graph, start, value)
        if function is None:
            return None
        rows = graph.value(start).size > shape[-1] and graph.shape(start) == shape  # two of them are needed below
        if rows and any(_reduces(graph, node, shape) for node in function.nodes):
            found = _solve(graph, function, centred)
            if found is not None:
                return graph.source(start), found
    return None


def between(graph: Graph, start: str, end: str, varying: bool = False) -> Between | None:
    """Collect the nodes between two values; None if too many, or (unless `varying`) if they read what an input has."""
    inside, waiting, constants = {end}, [end], set()
    while waiting:
        for name in filter(None, graph.producers[waiting.pop()].input):
            if name not in graph.features:
                if not varying and not graph.is_constant(name):
                    return None
                constants.add(name)
            elif name != start and name not in inside:
                inside.add(name)
                waiting.append(name)
        if len(inside) > _NODES:
            return None
    nodes = tuple(node for node in graph.nodes if inside.intersection(node.output))
    return Between(graph, start, end, nodes, tuple(sorted(constants)))


def _reduces(graph: Graph, node: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    return node.op_type in _NORMALISERS or graph.shape(node.output[0]) == (*shape[:-1], 1)


def _solve(graph: Graph, function: Between, centred: bool) -> Norm | None:
    """Return the norm that `function` is, or None if it is none."""
    size = graph.shape(function.start)[-1]
    count = graph.value(function.start).size // size
    random = np.random.default_rng(11)
    unit = np.where(np.arange(size) % 2, -1.0, 1.0) * random.uniform(0.5, 1.5, size)  # every feature counts
    unit -= unit.mean()
    unit /= unit.std()
    signs = np.where(np.arange(count) % 2, -1.0, 1.0)[:, None]

    def answers(magnitude: float) -> tuple[Doubles, Doubles]:
        """Return what is odd in the row (n, size), and what is even."""
        plus, minus = function(signs * unit * magnitude)[:2]
        return (plus - minus) / 2, (plus + minus) / 2

    with np.errstate(all="ignore"):
        odd, beta = answers(_FAR)
        gamma = odd / unit
        ratios = np.array([np.vdot(answers(m)[0], odd) / np.vdot(odd, odd) for m in _MAGNITUDES])
        place = int(np.argmin(np.abs(ratios - 0.7)))
        epsilon = _MAGNITUDES[place] ** 2 * (1 / ratios[place] ** 2 - 1) if ratios[-1] < 0.999 else 0.0
    if not (np.isfinite(gamma).all() and np.isfinite(beta).all() and np.isfinite(epsilon) and gamma.any()):
        return None
    vectors, scalars = _written(graph, function, size)
    found = Norm(_nearest(gamma, vectors), _nearest(beta, vectors), _decimal(max(epsilon, 0.0), scalars))
    scales = (1.0, 1e3, *(_MAGNITUDES[place] * np.array([0.2, 1.0, 5.0]) if found.epsilon else ()))
    tests = (scale * random.normal(0.3, 1, (count, size)) for scale in scales)
    return found if all(_predicts(graph, function, found, rows, centred) for rows in tests) else None


def _predicts(graph: Graph, function: Between, norm: Norm, rows: Doubles, centred: bool) -> bool:
    plain = rows - rows.mean(axis=-1, keepdims=True) if centred else rows
    square = np.square(plain).mean(axis=-1, keepdims=True)
    expected = norm.gamma * plain / np.sqrt(square + norm.epsilon) + norm.beta
    error = np.abs(function(rows) - expected).max()
    return bool(error <= graph.precision.norm * np.abs(expected).max())


def _written(graph: Graph, function: Between, size: int) -> tuple[list[Any], list[float]]:
    """Return the vectors and the numbers that the nodes of `function` are given, which it is likely made of."""
    arrays = [graph.value(name).reshape(-1) for name in function.constants]
    floats = [array for array in arrays if np.issubdtype(array.dtype, np.floating)]
    numbers = [float(array[0]) for array in floats if array.size == 1]
    numbers += [a.f for node in function.nodes for a in node.attribute if a.name == "epsilon"]
    return [np.zeros(size), np.ones(size), *(array for array in floats if array.size == size)], numbers


def _nearest(measured: Doubles, vectors: list[Any]) -> NDArray[np.float32]:
    """Return the written vector that `measured` is but for rounding, or else itself."""
    errors = [np.abs(measured - vector).max() for vector in vectors]
    best = int(np.argmin(errors))
    close = errors[best] <= 2e-5 * max(1e-3, np.abs(vectors[best]).max())
    return np.asarray(vectors[best] if close else measured, np.float32)


def _decimal(measured: float, numbers: list[float]) -> float:
    """Return the written number that `measured` is but for rounding, or else two digits of it, as people write."""
    close = [n for n in numbers if n > 0 and abs(measured - n) <= 1e-2 * n]
    return min(close, key=lambda n: abs(measured - n)) if close else float(f"{measured:.1e}")


def dominators(graph: Graph, start: str) -> dict[str, str]:
    """Return, for each feature but `start`, the last value before it that every path from `start` goes through."""
    found = nx.immediate_dominators(graph.flow.subgraph(graph.features), start)
    return {value: before for value, before in found.items() if value != start and before is not None}
