"""The data-flow graph of a model's output, and its run on small probe inputs.

Exporters write index arithmetic, masks and reshapes in countless forms; what they compute is always the same. So the
graph is run on small inputs with onnx's reference operators, every intermediate value is kept, and whatever is not on
the path of the features (shapes, positions, masks, transposed weights) is recognised by its value: constants are
folded by the same run. Only the path of the features, from the word table to the output, is matched by structure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from stic.compiler.frontend.load import describe
from stic.compiler.frontend.precision import Precision
from stic.runtime.errors import InputError, UnsupportedModelError

Values = dict[str, Any]  # value name -> array

NEUTRAL = {"Identity", "Cast", "CastLike", "Dropout"}
# Operators that move elements and compute nothing; their other inputs are shapes, axes and indices.
LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Split", "Expand", "GatherND"}
MAX_PROBE_BYTES = 1 << 28  # no value of an honest encoder on a few tokens, weights apart, comes near this


@dataclass(frozen=True, eq=False)
class Moved:
    """Where a value's elements come from: `value.flat[i] == factor * source.flat[index.flat[i]]`."""

    source: str
    index: NDArray[np.int64]  # in the value's shape
    factor: float


@dataclass(frozen=True, eq=False)
class Graph:
    """The part of a model that one output needs."""

    KIND: ClassVar[str] = "an encoder"  # for messages: what is read, and of which families
    FAMILIES: ClassVar[str] = "an encoder of the BERT family"

    flow: nx.DiGraph  # value -> value computed from it; through Shape nothing flows, so those edges are left out
    nodes: tuple[onnx.NodeProto, ...]  # each after those it depends on
    producers: dict[str, onnx.NodeProto]
    weights: Values
    inputs: tuple[onnx.ValueInfoProto, ...]
    output: str
    opsets: tuple[onnx.OperatorSetIdProto, ...]
    where: str  # the file, for messages
    precision: Precision
    features: set[str] = field(default_factory=set)  # values that depend on rows of the word table
    varying: set[str] = field(default_factory=set)  # values that depend on what an input holds
    probes: list[Values] = field(default_factory=list)  # every value, for each probe
    dominators: dict[str, str] = field(default_factory=dict)  # feature -> the last one that all paths to it go through
    norms: dict[str, Any] = field(default_factory=dict)  # what `frontend_norms.norm` found at a value

    def op(self, value: str) -> str:
        """Return the op that computes `value`, "" for inputs and weights."""
        node = self.producers.get(value)
        return node.op_type if node is not None else ""

    def value(self, name: str, probe: int = 0) -> NDArray[Any]:
        return np.asarray(self.probes[probe][name])

    def shape(self, name: str) -> tuple[int, ...]:
        return self.value(name).shape

    def is_constant(self, name: str) -> bool:
        return name != "" and name not in self.varying

    def scalar(self, name: str) -> float | None:
        """Return the one number that `name` always holds, or None."""
        if not self.is_constant(name) or self.value(name).size != 1:
            return None
        return float(self.value(name).reshape(()))

    def operands(self, value: str) -> tuple[list[str], list[str]]:
        """Return the inputs of the node of `value`: those that are features, and the others."""
        names = [name for name in self.producers[value].input if name]
        return [n for n in names if n in self.features], [n for n in names if n not in self.features]

    def refuse(self, value: str, expected: str) -> UnsupportedModelError:
        """Make the error for a graph that does not compute `expected` at `value`."""
        node = self.producers.get(value)
        place = describe(node) if node is not None else f"value '{value}'"
        return UnsupportedModelError(
            f"{self.where}: {place} cannot be taken; expected {expected} there (for {self.FAMILIES}, "
            "its Hugging Face directory can be given instead)"
        )

    def run_node(self, node: onnx.NodeProto, arrays: list[Any]) -> list[Any]:
        """Run one operator; UnsupportedModelError names the node if it cannot run."""
        if node.op_type == "GatherElements":  # the reference operator fails on data of one row
            return [_gather_elements(self, node, arrays)]
        inputs = [onnx.ValueInfoProto(name=name) for name in node.input if name]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        single = helper.make_model(helper.make_graph([node], "node", inputs, outputs), opset_imports=list(self.opsets))
        feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if name}
        try:
            _refuse_huge(node, arrays)
            with np.errstate(all="ignore"):
                return list(ReferenceEvaluator(single).run(None, feeds))
        except Exception as error:  # a damaged graph makes the reference operators raise anything
            text = str(error).strip().splitlines()
            raise UnsupportedModelError(
                f"{self.where}: {describe(node)} does not run on a small example; expected an operator of {self.KIND} "
                f"with matching shapes there ({text[0][:160] if text else type(error).__name__})"
            ) from error

    def run(self, feeds: Values) -> Values:
        """Compute every value of the graph from `feeds` (input name -> array)."""
        values: Values = {"": None, **self.weights, **feeds}
        for node in self.nodes:
            results = self.run_node(node, [values[name] for name in node.input])
            values.update(zip([name for name in node.output if name], results, strict=True))
        return values

    def source(self, value: str) -> str:
        """Step back over nodes that leave the features of every token as they are."""
        while value in self.features:
            node = self.producers[value]
            before = node.input[0]
            if node.op_type in NEUTRAL:
                value = before
            elif node.op_type in LAYOUT and before in self.features and self._keeps_tokens(node, before, value):
                value = before
            elif node.op_type == "Where" and self.op(node.input[0]) == "IsNaN":
                value = node.input[2]  # NaN -> 0 after a softmax over nothing
            else:
                break
        return value

    def _keeps_tokens(self, node: onnx.NodeProto, before: str, after: str) -> bool:
        old, new = self.shape(before), self.shape(after)
        if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            return old[-1:] == new[-1:]
        return old == new and node.op_type == "Expand"

    def moved(self, value: str) -> Moved:
        """Follow `value` back over layout operators and scalar factors, by moving element numbers through them."""
        steps: list[tuple[onnx.NodeProto, str]] = []
        factor = 1.0
        while value in self.features:
            node = self.producers[value]
            others = [self.scalar(name) for name in node.input[1:]]
            if node.op_type in NEUTRAL:
                value = node.input[0]
            elif node.op_type in LAYOUT and node.input[0] in self.features:
                steps.append((node, value))
                value = node.input[0]
            elif node.op_type == "Mul" and (first := self.scalar(node.input[0])) is not None:
                factor, value = factor * first, node.input[1]
            elif node.op_type in ("Mul", "Div") and others[0]:
                factor = factor * others[0] if node.op_type == "Mul" else factor / others[0]
                value = node.input[0]
            else:
                break
        index = np.arange(self.value(value).size, dtype=np.int64).reshape(self.shape(value))
        for node, result in reversed(steps):
            rest = [self.probes[0][name] for name in node.input[1:]]
            index = self.run_node(node, [index, *rest])[list(node.output).index(result)]
        return Moved(value, index, factor)


def build_graph(model: onnx.ModelProto, weights: Values, precision: Precision, output: str | None, where: str) -> Graph:
    """Keep what the output needs (`output` by name; None: the first) of a graph whose weights stand beside it.

    `precision` is that of the file. InputError if the graph is inconsistent.
    """
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    names = [value.name for value in model.graph.output]
    if output is not None and output not in names:
        raise InputError(f"{where}: it has no output '{output}'; its outputs are {', '.join(names)}")
    producers: dict[str, onnx.NodeProto] = {}
    needs = nx.DiGraph()
    for node in model.graph.node:
        for name in node.input:
            if name and name not in producers and name not in weights and name not in inputs:
                raise InputError(f"{where}: {describe(node)} reads '{name}', which nothing before it computes")
        for result in filter(None, node.output):
            if result in producers or result in weights or result in inputs:
                raise InputError(f"{where}: {describe(node)} computes '{result}' a second time")
            producers[result] = node
            needs.add_edges_from((name, result) for name in node.input if name)
            needs.add_node(result)
    chosen = output if output is not None else names[0]
    if chosen not in producers:
        raise InputError(f"{where}: no node computes its output '{chosen}'")
    kept = nx.ancestors(needs, chosen) | {chosen}
    flow = nx.DiGraph(needs.subgraph(kept))
    for value in kept & producers.keys():
        silent = {"Shape": slice(0, None), "Size": slice(0, None), "CastLike": slice(1, None)}
        for name in producers[value].input[silent.get(producers[value].op_type, slice(0, 0))]:
            if flow.has_edge(name, value):  # only the size or type of `name` is read, not what it holds
                flow.remove_edge(name, value)
    nodes = tuple(_canonical(node for node in model.graph.node if kept.intersection(node.output)))
    return Graph(
        flow, nodes, {name: node for node in nodes for name in node.output}, weights,
        tuple(value for name, value in inputs.items() if name in kept), chosen, tuple(model.opset_import),
        where, precision,
    )  # fmt: skip


def _canonical(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Make operator domains canonical: "ai.onnx" is another spelling of ""."""
    for node in nodes:
        node.domain = "" if node.domain == "ai.onnx" else node.domain
        yield node


def _gather_elements(graph: Graph, node: onnx.NodeProto, arrays: list[Any]) -> NDArray[Any]:
    data, index = np.asarray(arrays[0]), np.asarray(arrays[1])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    try:
        part = tuple(slice(None) if i == axis % data.ndim else slice(n) for i, n in enumerate(index.shape))
        return np.take_along_axis(data[part], index, axis)
    except (IndexError, ValueError) as error:
        raise graph.refuse(node.output[0], "indices that fit the data") from error


def _refuse_huge(node: onnx.NodeProto, arrays: list[Any]) -> None:
    """Stop a damaged or hostile shape before numpy tries to allocate it."""
    elements = 0.0
    if node.op_type in ("ConstantOfShape", "Expand", "Reshape"):
        elements = float(np.prod(np.abs(np.asarray(arrays[-1], np.float64))))
    elif node.op_type == "Tile":
        elements = float(np.prod(np.asarray(arrays[1], np.float64)) * np.size(arrays[0]))
    elif node.op_type == "Range":
        start, limit, delta = (float(np.reshape(a, ())) for a in arrays)
        elements = abs((limit - start) / delta) if delta else 0.0
    if elements * 4 > max(MAX_PROBE_BYTES, 4 * max((np.size(a) for a in arrays), default=0)):
        raise ValueError(f"it would make a value of {elements:.0f} elements")
