"""The data-flow graph of a decoder's logits, with every value that does not need its weights.

Masks, positions and shapes are recognised by their value, as in encoders (`graph.py`), at any number of tokens and with
constants replaced. The features themselves have shapes only: zeros stand for them, and for large weights, so that a
model of gigabytes is read without a product of its matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from stic.compiler.forward import gelu, gelu_tanh
from stic.compiler.frontend.decoder_graph_file import MICROSOFT
from stic.compiler.frontend.graph import Graph, Values
from stic.compiler.frontend.norms import dominators
from stic.runtime.errors import UnsupportedModelError

BATCH, TOKENS = 2, 7  # of the probe; a file may fix the batch
LARGE = 1 << 16  # elements of a weight for which zeros stand
PRODUCTS = ("MatMul", "Gemm", "MatMulNBits")
_NORMS = ("LayerNormalization", "RMSNormalization")
_PLACED = {"Gather", "RotaryEmbedding"}  # operators that take rows by position
_COUNTING = {  # operators after which a mask of tokens may be positions, and positions may be a mask
    "CumSum", "ReduceSum", "Shape", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Where", "Not",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class DecoderGraph(Graph):
    """The part of a decoder that its logits need; probe 0 is a prompt without past."""

    KIND: ClassVar[str] = "a decoder"
    FAMILIES: ClassVar[str] = "a decoder-only transformer"

    word: str = ""  # value: the rows of the embedding that the token ids name
    roles: dict[str, str] = field(default_factory=dict)  # input -> ids, mask, positions or past
    large: set[str] = field(default_factory=set)  # constants for which zeros stand in the probe
    windows: dict[Any, int | None] = field(default_factory=dict)  # what masks were found to be, by their values

    def value(self, name: str, probe: int = 0) -> NDArray[Any]:
        """See `Graph.value`; a large constant is computed when it is asked for."""
        return self.fold(name) if name in self.large else super().value(name, probe)

    def shape(self, name: str) -> tuple[int, ...]:
        return np.shape(self.probes[0][name])

    def fold(self, name: str) -> NDArray[Any]:
        """Compute a constant from weights, as float32 if it holds floats."""
        if name in self.weights:
            return _single(self.weights[name])
        node = self.producers[name]
        results = self.run_node(node, [self.fold(one) if one else None for one in node.input])
        return np.asarray(results[list(node.output).index(name)])

    def run_node(self, node: onnx.NodeProto, arrays: list[Any]) -> list[Any]:
        if node.op_type == "Gelu":  # files older than the operator have it as a fused one
            kind = attribute(node, "approximate", b"none")
            return [(gelu_tanh if kind == b"tanh" else gelu)(np.array(arrays[0], np.float32))]
        return super().run_node(node, arrays)

    @cached_property
    def _needs(self) -> nx.DiGraph:
        """Value -> value that is computed from it, or from its shape."""
        graph = nx.DiGraph()
        for node in self.nodes:
            graph.add_edges_from((name, out) for name in node.input if name for out in node.output if out)
        return graph

    def compute(
        self,
        wanted: Iterable[str],
        batch: int,
        tokens: int,
        replaced: Mapping[str, NDArray[Any]] | None = None,
        past: int = 0,
    ) -> Values:
        """Compute values for a prompt of so many tokens after `past` others, and whatever they need.

        `replaced` values stay as given.
        """
        wanted, given = set(wanted), dict(replaced or {})
        needed = wanted.union(*(nx.ancestors(self._needs, name) for name in wanted if name in self._needs))
        values: Values = {"": None, **{name: self._stored(name) for name in needed if name in self.weights}}
        values.update({v.name: self._fed(v, batch, tokens, past) for v in self.inputs})
        values.update(given)
        for node in self.nodes:
            if not needed.intersection(node.output) or all(name in given for name in node.output if name):
                continue
            results = self._results(node, [values[name] for name in node.input])
            for name, result in zip(node.output, results, strict=False):
                if name and name not in given:
                    values[name] = _zeros(result) if name in self.features or name in self.large else result
        return values

    def _stored(self, name: str) -> Any:
        return _zeros(self.weights[name]) if name in self.large else _single(self.weights[name])

    def _fed(self, value: onnx.ValueInfoProto, batch: int, tokens: int, past: int) -> NDArray[Any]:
        role, kind = self.roles[value.name], value.type.tensor_type.elem_type
        if role == "past":
            dims = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            return np.zeros((batch, dims[1], past, dims[3]), np.float32)
        numbers = np.ones(past + tokens if role == "mask" else tokens, np.int64)
        if role == "positions":
            numbers = past + np.arange(tokens, dtype=np.int64)
        floats = kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        return np.broadcast_to(numbers, (batch, len(numbers))).astype(
            np.float32 if floats else helper.tensor_dtype_to_np_dtype(kind)
        )

    def _results(self, node: onnx.NodeProto, arrays: list[Any]) -> list[Any]:
        """Run a node; of those that multiply or normalise features, only the shape."""
        shapes = _shapes(node, [np.shape(a) if a is not None else () for a in arrays], self._is_shape_only(node))
        return self.run_node(node, arrays) if shapes is None else [np.broadcast_to(np.float32(0), s) for s in shapes]

    def _is_shape_only(self, node: onnx.NodeProto) -> bool:
        return node.domain == MICROSOFT or any(n in self.features or n in self.large for n in node.input if n)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, or `default` where it has none of that name."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _single(array: NDArray[Any]) -> NDArray[Any]:
    """Floats as float32; anything else as it is."""
    wide = array.dtype != np.float32 and (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16")
    return np.asarray(array.astype(np.float32) if wide else array)


def _zeros(array: Any) -> NDArray[Any]:
    """Zeros in an array's shape that take no memory."""
    kind = np.asarray(array).dtype
    plain = np.float32 if np.issubdtype(kind, np.floating) or kind.name == "bfloat16" else kind
    return np.broadcast_to(np.zeros((), plain), np.shape(array))


def _shapes(node: onnx.NodeProto, given: list[tuple[int, ...]], features: bool) -> list[tuple[int, ...]] | None:
    """Shapes of what a node on features makes, where running it would cost a product; None: it is run."""
    op = node.op_type
    first = given[0] if given else ()
    if not features:
        return None
    if op == "MatMul" and len(first) > 1 and len(given[1]) > 1:
        if first[-1] != given[1][-2]:
            return None  # which says what is wrong
        return [(*np.broadcast_shapes(first[:-2], given[1][:-2]), first[-2], given[1][-1])]
    if op == "Gemm" and len(first) == 2:
        turned, columns = attribute(node, "transA", 0), attribute(node, "transB", 0)
        return [(first[1] if turned else first[0], given[1][0] if columns else given[1][1])]
    if op == "MatMulNBits":
        return [(*first[:-1], int(attribute(node, "N", 0)))]
    if op == "GatherBlockQuantized":
        return [(*given[1], first[-1] * 8 // int(attribute(node, "bits", 4)))]
    if op == "Gather" and len(given[1]) and attribute(node, "axis", 0) == 0 and len(first) == 2:
        return [(*given[1], first[1])]
    if op in _NORMS or op == "RotaryEmbedding":
        return [first]
    if op == "GroupQueryAttention":
        heads, keys = int(attribute(node, "num_heads", 1)), int(attribute(node, "kv_num_heads", 1))
        size = first[-1] // heads if node.input[1] else first[-1] // (heads + 2 * keys)
        cache = (first[0], keys, first[1], size)
        return [(*first[:-1], heads * size), cache, cache]
    if op == "Attention":
        wide = given[2][-1] if len(first) == 4 else given[2][-1] // max(1, int(attribute(node, "kv_num_heads", 1)))
        heads = 1 if len(first) == 4 else int(attribute(node, "q_num_heads", 1))
        return [(*first[:-1], heads * wide), given[1], given[2], ()]
    return None


def build_decoder_graph(graph: Graph) -> DecoderGraph:
    """Find what the inputs mean by data flow, and fill features, varying and the probe.

    Raises UnsupportedModelError for a graph without an embedding, or with an input of unknown meaning.
    """
    found = DecoderGraph(**{f.name: getattr(graph, f.name) for f in fields(Graph)})
    _find_large(found)
    word, ids = _lookup(found)
    object.__setattr__(found, "word", word)
    for value in found.inputs:
        found.varying.update(nx.descendants(found.flow, value.name) | {value.name})
    found.roles.update({value.name: _role(found, value, ids) for value in found.inputs})
    for role in ("mask", "positions"):
        names = [name for name, one in found.roles.items() if one == role]
        if len(names) > 1:
            raise UnsupportedModelError(
                f"{found.where}: inputs {', '.join(map(repr, names))} remain beside the token ids '{ids}'; expected one"
                f" input of the {role} of tokens"
            )
    found.features.update(nx.descendants(found.flow, word) | {word})
    found.dominators.update(dominators(found, word))
    found.probes.append(found.compute([found.output], *_sizes(found, ids)))
    return found


def _find_large(graph: DecoderGraph) -> None:
    """Mark large weights, and what is made of them without any input."""
    graph.large.update(name for name, array in graph.weights.items() if array.size > LARGE)
    fed = {value.name for value in graph.inputs}
    varying = set().union(*(nx.descendants(graph.flow, name) for name in fed)) | fed
    for node in graph.nodes:
        if graph.large.intersection(node.input) and not varying.intersection(node.output):
            graph.large.update(node.output)


def _lookup(graph: DecoderGraph) -> tuple[str, str]:
    """The value that holds the embedding's rows of the token ids, and the input of the ids."""
    fed = {v.name: v.type.tensor_type.elem_type for v in graph.inputs}
    lookups = []
    for node in graph.nodes:
        if node.op_type not in ("Gather", "GatherBlockQuantized") or len(node.input) < 2:
            continue
        index = node.input[1]
        while index not in fed and graph.op(index) in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            index = graph.producers[index].input[0]
        table = node.input[0]
        while table not in graph.weights and graph.op(table) in ("Cast", "Identity", "Transpose", "Reshape"):
            table = graph.producers[table].input[0]
        if index in fed and table in graph.weights and graph.weights[table].ndim in (2, 3):
            lookups.append((max(graph.weights[table].shape), node.output[0], index))
    if not lookups:
        raise UnsupportedModelError(
            f"{graph.where}: no node gathers rows of a table by a token input; expected a decoder's embedding"
        )
    return max(lookups)[1:]


def _role(graph: DecoderGraph, value: onnx.ValueInfoProto, ids: str) -> str:
    """What an input is: token ids, past keys or values, positions (they reach a table or a rotation), or a mask.

    Positions are followed through nodes that read nothing else that varies: a mask that is counted is none.
    """
    if value.name == ids:
        return "ids"
    if len(value.type.tensor_type.shape.dim) == 4:
        return "past"
    seen, waiting = {value.name}, [value.name]
    while waiting:
        name = waiting.pop()
        for node in graph.nodes:
            if name not in node.input or node.op_type in _COUNTING:
                continue
            if node.op_type in _PLACED and name in node.input[1:]:
                return "positions"
            if any(one != name and one in graph.varying for one in node.input):
                continue
            if node.op_type in ("Cos", "Sin"):
                return "positions"
            waiting.extend(out for out in node.output if out not in seen)
            seen.update(node.output)
    return "mask"


def _sizes(graph: DecoderGraph, ids: str) -> tuple[int, int]:
    """Batch and tokens of the probe: the batch as the file fixes it or small."""
    fixed: list[set[int]] = [set(), set()]
    for value in graph.inputs:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if graph.roles[value.name] == "past" and dims[2] > 0:
            raise UnsupportedModelError(
                f"{graph.where}: input '{value.name}' holds {dims[2]} past tokens, always; expected any number of them:"
                " export the model with dynamic axes"
            )
        axes = (0, 1) if value.name == ids else (0,)
        for axis in axes:
            fixed[axis].update({dims[axis]} - {0})
    if len(fixed[0]) > 1 or fixed[1]:
        raise UnsupportedModelError(
            f"{graph.where}: its inputs have fixed sizes, batches of {sorted(fixed[0])} and {sorted(fixed[1])} tokens;"
            " expected prompts of any length: export the model with dynamic axes"
        )
    return next(iter(fixed[0]), BATCH), TOKENS
