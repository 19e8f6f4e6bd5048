"""What the frontend says to files that it cannot take: a sentence that names the place, never a traceback."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stic.compiler.export.graph import GraphWriter
from stic.compiler.export.huggingface import export_model
from stic.compiler.frontend.onnx import load_model
from stic.runtime.errors import InputError, UnsupportedModelError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_classifier_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.onnx"
    export_model(tiny_classifier_dir, path)
    return path


def changed(good: Path, folder: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    model = onnx.load(good)
    change(model.graph)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def node_of(graph: onnx.GraphProto, op: str, number: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == op][number]


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "none.onnx")
    for content in (b"", b"hello, this is text\n" * 50, bytes(range(256)) * 8, b"\x00" * 300):
        (tmp_path / "foreign.onnx").write_bytes(content)
        with pytest.raises(InputError, match="not an ONNX"):
            load_model(tmp_path / "foreign.onnx")


def test_damaged_files_are_refused_with_a_sentence(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    rng = random.Random(4)
    path = tmp_path / "damaged.onnx"
    for size in [rng.randrange(len(whole)) for _ in range(12)]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            load_model(path)
    graph = whole.index(b"input_ids")  # nodes come first in the file, so that flips hit structure, not only weights
    for _ in range(40):
        flipped = bytearray(whole)
        for _ in range(3):
            flipped[rng.randrange(max(0, graph - 200), min(len(whole), graph + 6000))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(flipped))
        try:
            load_model(path)  # a flip in a name or in a weight's last bits may go unseen here
        except InputError as error:
            assert len(str(error)) > 20


def test_weights_file(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "outside.onnx"
    model = onnx.load(good)
    onnx.save_model(model, path, save_as_external_data=True, location="outside.data", size_threshold=64)
    assert len(load_model(path).layers) == 2
    data = tmp_path / "outside.data"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"outside\.data is truncated"):
        load_model(path)
    data.unlink()
    with pytest.raises(InputError, match=r"outside\.data is missing"):
        load_model(path)
    shutil.copy(path, tmp_path / "moved.onnx")
    moved = onnx.load(tmp_path / "moved.onnx", load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    onnx.save(moved, tmp_path / "moved.onnx")
    with pytest.raises(InputError, match="outside the model's folder"):
        load_model(tmp_path / "moved.onnx")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(good: Path, tmp_path: Path, bad: float) -> None:
    def spoil(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name == "encoder.layer.1.output.dense.weight")
        array = numpy_helper.to_array(tensor).copy()
        array[3, 5] = bad
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    with pytest.raises(UnsupportedModelError, match=r"'encoder\.layer\.1\.output\.dense\.weight' holds 1 values"):
        load_model(changed(good, tmp_path, spoil))


def test_convolutional_network(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["image", "kernel"], ["features"], name="stem", kernel_shape=[3, 3])
    kernel = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "kernel")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    out = helper.make_tensor_value_info("features", TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph([node], "cnn", [image], [out], [kernel])), tmp_path / "cnn.onnx")
    with pytest.raises(UnsupportedModelError, match=r"node 'stem' \(op Conv\).*expected a BERT-like text encoder"):
        load_model(tmp_path / "cnn.onnx")


def test_decoder_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=20, n_layer=1, n_head=2, use_cache=False)
    ids = torch.randint(0, 40, (2, 6))
    model = transformers.GPT2Model(config).eval()
    torch.onnx.export(model, (), str(tmp_path / "gpt.onnx"), kwargs={"input_ids": ids}, dynamo=True, verbose=False)
    with pytest.raises(UnsupportedModelError, match="decoders of this form are not supported"):
        load_model(tmp_path / "gpt.onnx")


def test_causal_mask_in_an_encoder(good: Path, tmp_path: Path) -> None:
    def make_causal(graph: onnx.GraphProto) -> None:
        softmax = node_of(graph, "Softmax", 1)
        triangle = np.triu(np.full((5, 5), -1e9, np.float32), 1)
        graph.initializer.append(numpy_helper.from_array(triangle, "triangle"))
        for value in graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 5
        at = list(graph.node).index(softmax)
        graph.node.insert(at, helper.make_node("Add", [softmax.input[0], "triangle"], ["causal"]))
        graph.node[at + 1].input[0] = "causal"

    with pytest.raises(UnsupportedModelError, match=r"op Softmax.*causal mask.*decoders of this form"):
        load_model(changed(good, tmp_path, make_causal))


def test_past_keys(good: Path, tmp_path: Path) -> None:
    past = helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, [1, 4, 3, 16])
    with pytest.raises(UnsupportedModelError, match="decoders of this form are not supported"):
        load_model(changed(good, tmp_path, lambda graph: graph.input.append(past)))


def _other_activation(graph: onnx.GraphProto) -> None:
    node_of(graph, "Erf").op_type = "Sigmoid"


def _position_bias(graph: onnx.GraphProto) -> None:
    softmax = node_of(graph, "Softmax")
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), "bias"))
    at = list(graph.node).index(softmax)
    graph.node.insert(at, helper.make_node("Add", [softmax.input[0], "bias"], ["biased"], name="relative"))
    graph.node[at + 1].input[0] = "biased"


def _no_norm(graph: onnx.GraphProto) -> None:
    node = node_of(graph, "LayerNormalization", 2)
    del node.input[1:], node.attribute[:]
    node.op_type = "Relu"


def _unknown_op(graph: onnx.GraphProto) -> None:
    node_of(graph, "Erf").op_type = "Wobble"


def _foreign_domain(graph: onnx.GraphProto) -> None:
    node_of(graph, "Erf").domain = "com.example"


def _wrong_shape(graph: onnx.GraphProto) -> None:
    tensor = next(t for t in graph.initializer if t.name == "encoder.layer.0.output.dense.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.ones((5, 7), np.float32), tensor.name))


def _hidden_factor(graph: onnx.GraphProto) -> None:
    """Scale one head's outputs: no encoder of ours does, and it must not slip through."""
    softmax = node_of(graph, "Softmax")
    context = next(node for node in graph.node if softmax.output[0] in node.input)
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32) * 2, "gain"))
    at = list(graph.node).index(context)
    graph.node.insert(at + 1, helper.make_node("Mul", [context.output[0], "gain"], ["scaled"], name="gain_node"))
    user = next(node for node in graph.node if context.output[0] in node.input and node.name != "gain_node")
    user.input[0] = "scaled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_activation, r"node '.+' \(op \w+\) cannot be taken; expected .*GELU"),
        (_position_bias, r"op Softmax.*expected attention scores with nothing added"),
        (_no_norm, r"node '.+' \(op \w+\) cannot be taken; expected"),
        (_unknown_op, r"node '.+' \(op Wobble\)"),
        (_foreign_domain, r"op com\.example\.Erf.*outside standard ONNX"),
        (_wrong_shape, r"op MatMul\) does not run on a small example"),
        (_hidden_factor, r"node 'gain_node' \(op Mul\) cannot be taken; expected"),
    ],
)
def test_unsupported_graphs_name_the_node(good: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(changed(good, tmp_path, change))


def test_no_token_input(tmp_path: Path) -> None:
    writer = GraphWriter()
    weight, bias = np.ones((4, 6), np.float32), np.ones(4, np.float32)
    value = writer.linear(writer.to_float("x"), "only", weight, bias)
    onnx.save(writer.model(("x",), {"y": (value, ("batch", 4))}), tmp_path / "mlp.onnx")
    with pytest.raises(UnsupportedModelError, match=r"word table.*op Gather"):
        load_model(tmp_path / "mlp.onnx")


def test_unknown_output_and_broken_wiring(good: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no output 'nothing'; its outputs are logits"):
        load_model(good, "nothing")

    def cut(graph: onnx.GraphProto) -> None:
        node_of(graph, "Softmax").input[0] = "nowhere"

    with pytest.raises(InputError, match=r"op Softmax\) reads 'nowhere'"):
        load_model(changed(good, tmp_path, cut))


def test_damaged_config(good: Path, tmp_path: Path) -> None:
    shutil.copy(good, tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not readable JSON"):
        load_model(tmp_path / "model.onnx")
