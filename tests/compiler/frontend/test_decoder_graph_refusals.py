"""ONNX files that are no decoder, or not whole, are refused by a sentence that names the place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

from stic.compiler.frontend.decoder_graph import load_decoder
from stic.runtime.errors import InputError, SticError, UnsupportedModelError
from tests.compiler.frontend.builder_graph import HEADS, KEYS, BuilderGraph, built, saved

Change = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, end: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.name.endswith(end))


def changed(folder: Path, change: Change, **options) -> Path:
    model = BuilderGraph(**options).model()
    change(model)
    return saved(model, folder)


def unknown_activation(model: onnx.ModelProto) -> None:
    node(model, "layers.1/mlp/act_fn/Sigmoid").op_type = "Softplus"


def unknown_operator(model: onnx.ModelProto) -> None:
    node(model, "layers.1/attn/GroupQueryAttention").op_type = "SparseAttention"


def bias_of_scores(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, HEADS, 7, 7), np.float32), "bias"))
    node(model, "layers.0/attn/GroupQueryAttention").input[10] = "bias"


def missing_weight(model: onnx.ModelProto) -> None:
    kept = [one for one in model.graph.initializer if "down_proj" not in one.name]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)


def not_a_number(model: onnx.ModelProto) -> None:
    for one in model.graph.initializer:
        if "down_proj" in one.name:
            array = numpy_helper.to_array(one).copy()
            array[3, 4] = np.nan
            one.CopyFrom(numpy_helper.from_array(array, one.name))


def hidden_states(model: onnx.ModelProto) -> None:
    dims = ["batch", "encoder_tokens", 64]
    model.graph.input.append(helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, dims))


def fixed_length(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16


def cache_of_nothing(model: onnx.ModelProto) -> None:
    dims = ["batch", KEYS, "past", 32]
    for part in ("key", "value"):
        name = f"past_key_values.2.{part}"
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))


def other_blocks(model: onnx.ModelProto) -> None:
    for attribute in node(model, "o_proj/MatMul").attribute:
        if attribute.name == "block_size":
            attribute.i = 16


def seen_from_behind(model: onnx.ModelProto) -> None:
    """Attention of an encoder: ONNX's operator, in which every token attends to every other."""
    for one in [one for one in model.graph.node if one.op_type == "GroupQueryAttention"]:
        made = helper.make_node(
            "Attention", one.input[:3], one.output[:1], one.name, q_num_heads=HEADS, kv_num_heads=KEYS
        )
        one.CopyFrom(made)
    kept = [value for value in model.graph.input if not value.name.startswith("past")]
    model.graph.ClearField("input")
    model.graph.input.extend(kept)
    del model.graph.output[1:]
    model.opset_import[0].version = 23


@pytest.mark.parametrize(
    ("change", "options", "kind", "said"),
    [
        (unknown_activation, {}, UnsupportedModelError, "layers.1/mlp/Mul' .op Mul. cannot be taken; expected GELU"),
        (unknown_operator, {}, UnsupportedModelError, "com.microsoft.SparseAttention. is outside standard ONNX"),
        (bias_of_scores, {}, UnsupportedModelError, "layers.0/attn/GroupQueryAttention.*attention without bias"),
        (missing_weight, {}, InputError, "down_proj/MatMul.* reads .*, which nothing before it computes"),
        (not_a_number, {}, UnsupportedModelError, "NaN or infinite; export the model again"),
        (hidden_states, {}, UnsupportedModelError, "'encoder_hidden_states' holds hidden states"),
        (fixed_length, {}, UnsupportedModelError, "export the model with dynamic axes"),
        (cache_of_nothing, {}, UnsupportedModelError, "6 inputs of past keys and values, but its logits need 2 layers"),
        (other_blocks, {"bits": 4}, UnsupportedModelError, "o_proj/MatMul.*expected codes and scales of blocks of 16"),
        (seen_from_behind, {"packed": False}, UnsupportedModelError, "attend to tokens after them"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_refusals(change: Change, options: dict, kind: type[SticError], said: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=said):
        load_decoder(changed(tmp_path, change, **options))


@pytest.mark.parametrize(("kept", "said"), [(None, "weights file model.onnx.data is missing"), (100, "is truncated")])
def test_weights_beside_the_file_must_be_whole(kept: int | None, said: str, tmp_path: Path) -> None:
    path = built(tmp_path, external=True)
    data = tmp_path / "model.onnx.data"
    content = data.read_bytes()
    data.unlink()
    if kept is not None:
        data.write_bytes(content[:kept])
    with pytest.raises(InputError, match=said):
        load_decoder(path)


def test_a_context_must_be_known(tmp_path: Path) -> None:
    path = built(tmp_path)
    (tmp_path / "genai_config.json").unlink()
    with pytest.raises(InputError, match="nothing says how long a text the model was made for"):
        load_decoder(path)


def test_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x00not a model")
    with pytest.raises(InputError, match="is not an ONNX"):
        load_decoder(path)


def merged(model: onnx.ModelProto, reads_past: bool) -> None:
    """Put the nodes into an If on `use_cache_branch`, as legacy exports have it."""
    outputs = [helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None) for value in model.graph.output]
    branches = []
    for with_past in (reads_past, False):
        nodes = [onnx.NodeProto.FromString(one.SerializeToString()) for one in model.graph.node]
        for one in nodes:
            if not with_past and one.op_type == "GroupQueryAttention":
                one.input[3:5] = ["", ""]
        renamed = [f"{value.name}/inner" for value in outputs]
        for one in nodes:
            for field in (one.input, one.output):
                field[:] = [f"{name}/inner" if f"{name}/inner" in renamed else name for name in field]
        inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in renamed]
        branches.append(helper.make_graph(nodes, "branch", [], inner))
    chosen = helper.make_node(
        "If", ["use_cache_branch"], [value.name for value in outputs], "optimum::if",
        then_branch=branches[0], else_branch=branches[1],
    )  # fmt: skip
    model.graph.ClearField("node")
    model.graph.node.append(chosen)
    model.graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))


def test_of_a_merged_decoder_the_branch_with_past_keys_is_read(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda model: merged(model, True))
    assert len(load_decoder(path).architecture.blocks) == 5


def test_a_choice_between_other_graphs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'optimum::if' \(op If\) chooses between two graphs"):
        load_decoder(changed(tmp_path, lambda model: merged(model, False)))
