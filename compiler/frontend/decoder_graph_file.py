"""Read a decoder's ONNX file with suspicion: a graph in few spellings, and weights that stay in their files.

Exporters' dialects become one here: onnxruntime-genai's fused norms are spelled as sums and norms, the concatenation of
past keys, of which a prompt has none, is left out, and of a merged decoder (`use_cache_branch`) the branch that reads
past keys is taken. Weights that lie beside the file are mapped, not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx.inliner import inline_local_functions

from stic.compiler.frontend.load import check_arity, describe, external_place, first_line, open_structure, to_float32
from stic.compiler.frontend.precision import Precision, precision_of
from stic.runtime.errors import InputError, UnsupportedModelError

MICROSOFT = "com.microsoft"
FUSED = {"GroupQueryAttention", "RotaryEmbedding", "MatMulNBits", "GatherBlockQuantized"}  # of MICROSOFT, as they are
_SKIPPED = {"SkipSimplifiedLayerNormalization": "RMSNormalization", "SkipLayerNormalization": "LayerNormalization"}
_NORMS = {"SimplifiedLayerNormalization": "RMSNormalization", "LayerNormalization": "LayerNormalization"}
_CONTROL = {"LSTM", "GRU", "RNN", "Loop", "Scan", "If"}
_QUANTIZED = {"QLinearMatMul", "MatMulInteger", "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"}
_PACKED = (TensorProto.INT4, TensorProto.UINT4)  # two values a byte, which a map of the file cannot show

Weights = dict[str, NDArray[Any]]


def is_decoder_graph(path: Path) -> bool:
    """Whether an ONNX file is a decoder of text, by its structure alone: no weights that lie beside it are read.

    It is one if it keeps keys and values (inputs of 4 axes, or the operator that has a cache inside), or if it gives
    numbers for every token and hides later tokens by a triangle. Raises InputError for what is no ONNX file.
    """
    graph = open_structure(path).graph
    names = {tensor.name for tensor in graph.initializer}
    axes = [len(value.type.tensor_type.shape.dim) for value in graph.input if value.name not in names]
    operators = {node.op_type for node in graph.node}
    if 4 in axes or "GroupQueryAttention" in operators:
        return True
    per_token = any(len(value.type.tensor_type.shape.dim) == 3 for value in graph.output)
    return per_token and "Trilu" in operators


def read_decoder_graph(path: Path) -> tuple[onnx.ModelProto, Weights, Precision]:
    """Read `path`: the graph without its weights, these by name as they are stored, and the precision it computes in.

    Raises InputError for a file that is damaged or incomplete, UnsupportedModelError (naming the node or the input) for
    a graph that is recognisably no decoder of text.
    """
    model = open_structure(path)
    try:
        model = inline_local_functions(model) if model.functions else model
        _take_branch(model.graph, path)
        weights = _weights(model.graph, path)
        precision = precision_of(model.graph)
        model.graph.ClearField("initializer")
        to_float32(model.graph)
        _refuse_inputs(model.graph, weights, path)
        nodes = list(_canonical(model.graph, _past(model.graph), path))
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)
        _refuse_operators(model, path)
    except (ValueError, TypeError, RuntimeError, IndexError, OverflowError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}") from error
    return model, weights, precision


def _weights(graph: onnx.GraphProto, path: Path) -> Weights:
    """Every weight as it is stored; what lies beside the file as a map of it."""
    weights: Weights = {}
    for tensor in graph.initializer:
        try:
            stored = _mapped(tensor, path) if uses_external_data(tensor) else numpy_helper.to_array(tensor)
        except (ValueError, TypeError, RuntimeError, IndexError, OverflowError, OSError) as error:
            raise InputError(f"{path}: weight '{tensor.name}' is damaged: {first_line(error)}") from error
        weights[tensor.name] = stored
    return weights


def _mapped(tensor: onnx.TensorProto, path: Path) -> NDArray[Any]:
    file, start = external_place(tensor, path)
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if tensor.data_type in _PACKED or start % kind.itemsize or not all(tensor.dims):
        load_external_data_for_tensor(tensor, str(path.parent.resolve()))
        return numpy_helper.to_array(tensor)
    if start + int(np.prod(tensor.dims)) * kind.itemsize > file.stat().st_size:
        raise InputError(f"{path}: its weights file {file.name} is truncated ('{tensor.name}' is not whole)")
    return np.memmap(file, kind, "r", start, tuple(tensor.dims))


def _take_branch(graph: onnx.GraphProto, path: Path) -> None:
    """Replace the If of a merged decoder, whose condition is an input, by its branch that reads past keys."""
    names = {value.name for value in graph.input}
    merged = [node for node in graph.node if node.op_type == "If" and node.input[0] in names]
    if not merged:
        return
    past = _past(graph)
    reading = []
    for attribute in merged[0].attribute:
        read = {name for node in attribute.g.node for name in node.input}
        if past & read:
            reading.append(attribute.g)
    if len(merged) > 1 or len(reading) != 1:
        raise UnsupportedModelError(
            f"{path}: {describe(merged[0])} chooses between two graphs, and not for past keys; export the model again"
            " without --legacy, as one graph"
        )
    branch, switch = reading[0], merged[0].input[0]
    renamed = {inner.name: outer for inner, outer in zip(branch.output, merged[0].output, strict=True)}
    for node in branch.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    at = list(graph.node).index(merged[0])
    nodes = [*graph.node[:at], *branch.node, *graph.node[at + 1 :]]
    initializers = list(branch.initializer)
    kept = [value for value in graph.input if value.name != switch]
    for field, values in (("node", nodes), ("input", kept)):
        values = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    graph.initializer.extend(initializers)


def _past(graph: onnx.GraphProto) -> set[str]:
    """Inputs of past keys and values, (batch, key heads, past tokens, head_dim)."""
    weights = {tensor.name for tensor in graph.initializer}
    return {v.name for v in graph.input if v.name not in weights and len(v.type.tensor_type.shape.dim) == 4}


def _refuse_inputs(graph: onnx.GraphProto, weights: Weights, path: Path) -> None:
    for value in graph.input:
        kind, dims = value.type.tensor_type.elem_type, value.type.tensor_type.shape.dim
        if value.name in weights or len(dims) == 4:
            continue
        if len(dims) == 3 and kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16):
            raise UnsupportedModelError(
                f"{path}: input '{value.name}' holds hidden states (3 axes); expected token ids: the decoder of an"
                " encoder-decoder, and a model that is given embeddings, are not supported"
            )
        if len(dims) != 2:
            raise UnsupportedModelError(
                f"{path}: input '{value.name}' has {len(dims)} axes; expected token ids, a mask and positions of 2, and"
                " past keys and values of 4"
            )


def _canonical(graph: onnx.GraphProto, past: set[str], path: Path) -> Iterator[onnx.NodeProto]:
    """The nodes in the spelling that the reader knows."""
    constants = {node.output[0]: a.t for node in graph.node for a in node.attribute if a.name == "value"}
    empty = {name for name, tensor in constants.items() if 0 in tensor.dims}
    for node in graph.node:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.domain == MICROSOFT and node.op_type in _SKIPPED:
            yield from _sum_and_norm(node, options)
        elif node.op_type in _NORMS and node.domain in ("", "ai.onnx", MICROSOFT):
            epsilon, axis = options.get("epsilon", 1e-5), options.get("axis", -1)
            yield helper.make_node(
                _NORMS[node.op_type], node.input, node.output[:1], node.name, epsilon=epsilon, axis=axis
            )
        elif node.domain == MICROSOFT and node.op_type in ("FastGelu", "Gelu") and len(node.input) == 1:
            kind = "tanh" if node.op_type == "FastGelu" else "none"
            yield helper.make_node("Gelu", node.input, node.output, node.name, approximate=kind)
        elif (handed := _handed_on(node, empty)) is not None:
            past = past | set(node.output if handed in past else ())
            yield helper.make_node("Identity", [handed], node.output, node.name)
        elif node.op_type == "Concat" and past.intersection(node.input):
            if len(node.input) != 2 or node.input[0] not in past or options.get("axis") not in (2, -2):
                raise UnsupportedModelError(
                    f"{path}: {describe(node)} joins past keys to others; expected past tokens first, on axis 2"
                )
            yield helper.make_node("Identity", node.input[1:], node.output, node.name)
        elif past.intersection(node.input) and node.op_type in ("Attention", "GroupQueryAttention"):
            node.input[:] = ["" if name in past else name for name in node.input]
            yield node
        else:
            yield node


def _handed_on(node: onnx.NodeProto, empty: set[str]) -> str | None:
    """What a node hands on as it is: alone, or joined to nothing, as new caches are."""
    names = [name for name in node.input if name not in empty]
    return names[0] if node.op_type in ("Identity", "Concat") and len(names) == 1 else None


def _sum_and_norm(node: onnx.NodeProto, options: dict[str, Any]) -> Iterator[onnx.NodeProto]:
    """A node that adds to the residual stream, and normalises the sum, which is its output 3."""
    plain = node.op_type == "SkipSimplifiedLayerNormalization"
    vectors, at = list(node.input[2:]), 1 if plain else 2  # gamma (and beta), then the bias of what is added
    total = node.output[3] if len(node.output) > 3 and node.output[3] else f"{node.output[0]}/sum"
    added = node.input[1]
    if len(vectors) > at and vectors[at]:
        yield helper.make_node("Add", [added, vectors[at]], [f"{total}/biased"], f"{node.name}/bias")
        added = f"{total}/biased"
    yield helper.make_node("Add", [node.input[0], added], [total], f"{node.name}/sum")
    yield helper.make_node(
        _SKIPPED[node.op_type], [total, *vectors[:at]], [node.output[0]], node.name,
        epsilon=options.get("epsilon", 1e-5), axis=-1,
    )  # fmt: skip


def _chooses_constants(node: onnx.NodeProto) -> bool:
    """Whether a node is an If between constants: tables of rotary positions for short and for long texts."""
    graphs = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return node.op_type == "If" and all(inner.op_type == "Constant" for graph in graphs for inner in graph.node)


def _refuse_operators(model: onnx.ModelProto, path: Path) -> None:
    for node in model.graph.node:
        if node.op_type in _CONTROL and not _chooses_constants(node):
            raise UnsupportedModelError(
                f"{path}: {describe(node)} is recurrence or control flow; expected a transformer's decoder as one graph"
            )
        if node.op_type in _QUANTIZED:
            raise UnsupportedModelError(
                f"{path}: {describe(node)} belongs to a quantised model; of these MatMulNBits and GatherBlockQuantized"
                " are read: give the model from before it was quantised"
            )
        if node.domain not in ("", "ai.onnx") and not (node.domain == MICROSOFT and node.op_type in FUSED):
            raise UnsupportedModelError(
                f"{path}: {describe(node)} is outside standard ONNX and not known; export the model without optimising"
                " it, or give its Hugging Face directory"
            )
    standard = onnx.ModelProto()
    standard.opset_import.extend(model.opset_import)
    known = [node for node in model.graph.node if node.domain != MICROSOFT and node.op_type not in _NORMS.values()]
    standard.graph.node.extend(known)
    check_arity(standard, path)
