"""Graphs in float16 and bfloat16: constants rounded to 16 bits are what they stand for, in those files alone."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stic.compiler.export.graph import GraphWriter
from stic.compiler.export.huggingface import export_model
from stic.compiler.forward import outputs
from stic.compiler.frontend.load import read_onnx
from stic.compiler.frontend.onnx import load_model
from stic.runtime.errors import UnsupportedModelError

HIDDEN, FFN, HEADS, POSITIONS, VOCABULARY = 12, 20, 3, 16, 30
KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def encoder(path: Path, activation: str = "gelu") -> Path:
    """Write a random float32 encoder of one layer."""
    rng = np.random.default_rng(3)

    def array(*shape: int) -> Any:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    w = GraphWriter()
    places = w.rows("place", array(POSITIONS, HIDDEN), w.positions("ids", None))
    x = w.add("Add", w.rows("word", array(VOCABULARY, HIDDEN), "ids"), places)
    x = w.norm(x, "n0", array(HIDDEN), array(HIDDEN), 1e-5)
    q, k, v = (w.linear(x, name, array(HIDDEN, HIDDEN), array(HIDDEN)) for name in ("q", "k", "v"))
    merged = w.attention(q, k, v, w.mask_bias("mask"), HEADS, HIDDEN // HEADS)
    y = w.add("Add", x, w.linear(merged, "out", array(HIDDEN, HIDDEN), array(HIDDEN)))
    y = w.norm(y, "n1", array(HIDDEN), array(HIDDEN), 1e-5)
    z = w.linear(y, "up", array(FFN, HIDDEN), array(FFN))
    if activation == "quick_gelu":
        z = w.add("Mul", z, w.add("Sigmoid", w.add("Mul", z, w.number(1.702))))
    else:
        z = w.activation(z, activation)
    z = w.add("Add", w.linear(z, "down", array(HIDDEN, FFN), array(HIDDEN)), y)
    z = w.norm(z, "n2", array(HIDDEN), array(HIDDEN), 1e-5)
    onnx.save(w.model(("ids", "mask"), {"states": (z, ("batch", "sequence", HIDDEN))}), path)
    return path


def narrowed(path: Path, kind: int) -> Path:
    """Turn every float of the file, constants and casts too, into another type; what cannot be told is cut to fit."""
    model = onnx.load(path)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            array = np.maximum(array, np.float32(-65504 if kind == TensorProto.FLOAT16 else -3.38e38))
            tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    model.graph.output[0].type.tensor_type.elem_type = kind
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_constants_of_sixteen_bits(tmp_path: Path, kind: str, activation: str) -> None:
    whole = load_model(encoder(tmp_path / "whole.onnx", activation))
    narrow = load_model(narrowed(encoder(tmp_path / "narrow.onnx", activation), KINDS[kind]))
    assert narrow.activation == whole.activation == activation
    ids = np.arange(2, 16).reshape(2, 7)
    expected = outputs(whole, ids)
    error = np.abs(outputs(narrow, ids) - expected).max() / np.abs(expected).max()
    assert error < (0.02 if kind == "float16" else 0.1)  # the weights themselves lost 13 or 16 bits


@pytest.mark.parametrize("kind", KINDS)
def test_another_activation_is_refused_at_any_precision(tmp_path: Path, kind: str) -> None:
    path = narrowed(encoder(tmp_path / "quick.onnx", "quick_gelu"), KINDS[kind])
    with pytest.raises(UnsupportedModelError, match=r"op Mul\) cannot be taken; expected GELU"):
        load_model(path)


def test_float32_files_stay_strict(tmp_path: Path) -> None:
    model = onnx.load(encoder(tmp_path / "strict.onnx"))
    for tensor in model.graph.initializer:
        if tensor.dims == [] and abs(numpy_helper.to_array(tensor) - np.sqrt(2)) < 1e-6:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(np.float16(np.sqrt(2))), tensor.name))
    onnx.save(model, tmp_path / "strict.onnx")
    with pytest.raises(UnsupportedModelError, match="expected GELU"):
        load_model(tmp_path / "strict.onnx")


def test_precision_is_that_of_arithmetic_and_not_of_storage(tmp_path: Path, tiny_dir: Path) -> None:
    export_model(tiny_dir, tmp_path / "stored.onnx", "tokens")
    assert read_onnx(tmp_path / "stored.onnx")[2].bits == 24
    w = GraphWriter()  # float16 weights that are cast before use
    rows = w.rows("word", np.ones((4, 6), np.float16), "ids")
    value = w.linear(rows, "map", np.ones((6, 6), np.float16), np.ones(6, np.float16))
    onnx.save(w.model(("ids",), {"y": (value, ("batch", "sequence", 6))}), tmp_path / "cast.onnx")
    assert read_onnx(tmp_path / "cast.onnx")[2].bits == 24
    for kind, bits in ((TensorProto.FLOAT16, 11), (TensorProto.BFLOAT16, 8)):
        assert read_onnx(narrowed(encoder(tmp_path / "narrow.onnx"), kind))[2].bits == bits
