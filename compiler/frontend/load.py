"""Read an ONNX file with suspicion: what leaves here is well-formed, complete, float32, and could be an encoder.

Everything a damaged or foreign file can do wrong is answered with a sentence, before any pattern is looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from onnx.inliner import inline_local_functions

from stic.compiler.frontend.precision import Precision, precision_of
from stic.runtime.errors import InputError, UnsupportedModelError

_WIDE = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)  # floats that become float32
_CNN = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "GlobalAveragePool"}
_RECURRENT = {"LSTM", "GRU", "RNN", "Loop", "Scan", "If"}
_DECODER = {"Trilu", "RotaryEmbedding", "GroupQueryAttention", "MultiHeadAttention"}
_QUANTIZED = {"QLinearMatMul", "MatMulInteger", "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"}


def describe(node: onnx.NodeProto) -> str:
    """Say which node this is, for an error message."""
    op = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return (
        f"node '{node.name}' (op {op})"
        if node.name
        else f"the node of output '{next(iter(node.output), '')}' (op {op})"
    )


def read_onnx(path: Path) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]], Precision]:
    """Read `path` with its external data, inline local functions, and turn every float type into float32.

    Returns the graph, without its weights, these by name, and the precision that the graph computed in before.

    Raises InputError for a file that is damaged or incomplete, UnsupportedModelError for a graph that is
    recognisably no encoder (names the node).
    """
    model = open_structure(path)
    _load_external(model, path)
    try:
        model = inline_local_functions(model) if model.functions else model
        _reject_foreign(model.graph, path)
        check_arity(model, path)
        precision = precision_of(model.graph)
        to_float32(model.graph)
    except (ValueError, TypeError, RuntimeError, IndexError, OverflowError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}") from error
    weights = _take_weights(model.graph, path)
    _reject_not_finite(weights, path)
    return model, weights, precision


def open_structure(path: Path) -> onnx.ModelProto:
    """Parse `path` without its external data. InputError if it is no ONNX file with a graph."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an ONNX model (or export one with `stic export`)")
    try:
        model = onnx.load(str(path), load_external_data=False, format="protobuf")
    except (DecodeError, ValueError, OSError, RuntimeError) as error:
        raise InputError(f"{path} is not an ONNX file, or is truncated: {first_line(error)}") from error
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path} is not an ONNX model: it holds no graph with nodes and outputs")
    return model


def prepared(
    structure: onnx.ModelProto, weights: Mapping[str, NDArray[Any]]
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]], Precision]:
    """A graph that stic wrote itself, as `read_onnx` returns one; float32 weights are not copied.

    It computes in float32, whatever its weights are stored in.
    """
    to_float32(structure.graph)
    widened = {
        name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in weights.items()
    }
    return structure, widened, Precision()


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            external_place(tensor, path)
    try:
        load_external_data_for_model(model, str(path.parent.resolve()))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path}: its weights file cannot be read: {first_line(error)}") from error


def external_place(tensor: onnx.TensorProto, path: Path) -> tuple[Path, int]:
    """The file that holds a weight of the model `path`, and the byte where it begins.

    InputError for a place outside the model's folder, and for a file that is missing or too short.
    """
    folder = path.parent.resolve()
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = (folder / location).resolve()
    if not location or folder not in file.parents:
        raise InputError(f"{path}: weight '{tensor.name}' claims to be in {location!r}, outside the model's folder")
    if not file.is_file():
        raise InputError(f"{path}: its weights file {location} is missing; put it beside the model")
    try:
        start, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
    except ValueError as error:
        raise InputError(f"{path}: weight '{tensor.name}' has a damaged offset or length") from error
    if start + length > file.stat().st_size:
        raise InputError(
            f"{path}: its weights file {location} is truncated ('{tensor.name}' ends at byte {start + length})"
        )
    return file, start


def _reject_foreign(graph: onnx.GraphProto, path: Path) -> None:
    for node in graph.node:
        if node.op_type in _DECODER or (node.op_type == "Attention" and len(node.input) > 4 and node.input[4]):
            raise UnsupportedModelError(
                f"{path}: {describe(node)} belongs to a decoder; decoders of this form are not supported"
            )
        if node.op_type in _CNN:
            raise UnsupportedModelError(
                f"{path}: {describe(node)} belongs to a convolutional network; expected a BERT-like text encoder"
            )
        if node.op_type in _RECURRENT:
            raise UnsupportedModelError(
                f"{path}: {describe(node)} is recurrence or control flow; expected a BERT-like text encoder"
            )
        if node.op_type in _QUANTIZED:
            raise UnsupportedModelError(
                f"{path}: {describe(node)} belongs to a quantised model; expected float weights: give the model from "
                "before it was quantised, or its Hugging Face directory"
            )
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedModelError(
                f"{path}: {describe(node)} is outside standard ONNX; expected an export without fused operators: "
                "optimise it no further than onnxruntime's level basic, or give its Hugging Face directory"
            )
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        shape = value.type.tensor_type.shape.dim
        if value.name not in weights and (value.name.startswith("past_") or len(shape) >= 4):
            raise UnsupportedModelError(
                f"{path}: input '{value.name}' ({len(shape)} axes) is no token input; expected token ids and a mask"
                " (an input of past keys belongs to a decoder; decoders of this form are not supported)"
            )


def check_arity(model: onnx.ModelProto, path: Path) -> None:
    """Refuse operators that this ONNX does not know, and nodes with too few inputs or outputs for theirs."""
    version = max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=1)
    for node in model.graph.node:
        try:
            schema = onnx.defs.get_schema(node.op_type, min(version, onnx.defs.onnx_opset_version()), "")
        except onnx.defs.SchemaError as error:
            raise UnsupportedModelError(
                f"{path}: {describe(node)} is not known; expected an operator of standard ONNX, opset {version}"
            ) from error
        if not (schema.min_input <= len(node.input) <= schema.max_input and node.output and node.output[0]):
            raise InputError(
                f"{path}: {describe(node)} has {len(node.input)} inputs and {len(node.output)} outputs; "
                f"expected {schema.min_input} to {schema.max_input} inputs and an output"
            )


def to_float32(graph: onnx.GraphProto) -> None:
    """Turn every float type of a graph's weights, constants and casts into float32."""
    for tensor in graph.initializer:
        _tensor_to_float32(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _tensor_to_float32(attribute.t)
            elif attribute.name in ("to", "dtype", "softmax_precision", "stash_type") and attribute.i in _WIDE:
                attribute.i = TensorProto.FLOAT


def _tensor_to_float32(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _WIDE:
        array = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):  # the least double stands for minus infinity in masks
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))


def _take_weights(graph: onnx.GraphProto, path: Path) -> dict[str, NDArray[Any]]:
    """Take the weights out of the graph, which is left without."""
    weights = {}
    for tensor in graph.initializer:
        try:
            weights[tensor.name] = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, RuntimeError, IndexError, OverflowError) as error:
            raise InputError(f"{path}: weight '{tensor.name}' is damaged: {first_line(error)}") from error
    graph.ClearField("initializer")
    return weights


def _reject_not_finite(weights: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Refuse NaN anywhere and Inf in anything larger than a scalar (a lone -Inf is how masks are written)."""
    for name, array in weights.items():
        if not np.issubdtype(array.dtype, np.floating) or np.isfinite(array).all():
            continue
        bad = int(np.count_nonzero(~np.isfinite(array)))
        if np.isnan(array).any() or array.size > 1:
            raise UnsupportedModelError(
                f"{path}: weight '{name}' holds {bad} values that are NaN or infinite; export the model again"
            )


def first_line(error: Exception) -> str:
    """The first line of an error's text, cut to what fits a sentence."""
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
