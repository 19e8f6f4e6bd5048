"""Classifiers of every family and any number of labels, biases not zero, one label (a cross-encoder) included."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stic.compiler.export.huggingface import export_model
from stic.compiler.forward import outputs
from stic.compiler.frontend.onnx import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FAMILIES = ("Bert", "DistilBert", "Roberta", "XLMRoberta")
TOLERANCE = 1e-4


def classifier(family: str, labels: int) -> Any:
    """Make a random classifier, every bias and norm random too."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = dict(vocab_size=50, max_position_embeddings=24, initializer_range=0.2, num_labels=labels)
    if family == "DistilBert":
        sizes |= dict(dim=20, n_layers=1, n_heads=5, hidden_dim=12)
    else:
        sizes |= dict(hidden_size=20, num_hidden_layers=1, num_attention_heads=5, intermediate_size=12)
    config = getattr(transformers, f"{family}Config")(**sizes, pad_token_id=0 if "Bert" in family else 1)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(ids), attention_mask=torch.ones(ids.shape, dtype=torch.long)).logits.numpy()


def apart(path: Path) -> Path:
    """Write every Gemm as MatMul and Add."""
    model = onnx.load(path)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gemm":
            nodes.append(node)
            continue
        x, weight, bias = node.input
        name = node.output[0]
        nodes.append(onnx.helper.make_node("Transpose", [weight], [f"{name}_weight"], perm=[1, 0]))
        nodes.append(onnx.helper.make_node("MatMul", [x, f"{name}_weight"], [f"{name}_product"]))
        nodes.append(onnx.helper.make_node("Add", [f"{name}_product", bias], [name]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_export_writes_is_read(tmp_path: Path, family: str, labels: int) -> None:
    source = classifier(family, labels)
    source.save_pretrained(tmp_path / "source")
    export_model(tmp_path / "source", tmp_path / "model.onnx")
    model = load_model(tmp_path / "model.onnx")
    ids = np.arange(5, 19).reshape(2, 7)
    np.testing.assert_allclose(outputs(model, ids), logits(source, ids), atol=TOLERANCE)


@pytest.mark.parametrize("spelling", ["gemm", "matmul"])
@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_torch_writes_is_read(tmp_path: Path, family: str, labels: int, spelling: str) -> None:
    source, path = classifier(family, labels), tmp_path / "model.onnx"
    ids = torch.arange(5, 19).reshape(2, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(source, (ids, torch.ones_like(ids)), str(path), input_names=["ids", "mask"], dynamo=False)
    assert "Gemm" in {node.op_type for node in onnx.load(path).graph.node}
    model = load_model(path if spelling == "gemm" else apart(path))
    np.testing.assert_allclose(outputs(model, ids.numpy()), logits(source, ids.numpy()), atol=TOLERANCE)


@pytest.mark.parametrize("op", ["Tanh", "Relu"])
def test_one_logit_with_an_activation(tmp_path: Path, op: str) -> None:
    source, path = classifier("Bert", 1), tmp_path / "model.onnx"
    source.save_pretrained(tmp_path / "source")
    export_model(tmp_path / "source", path)
    model = onnx.load(path)
    last = model.graph.node[-1]
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node(op, [last.input[0]], ["bent"]))
    model.graph.node[-1].input[0] = "bent"
    onnx.save(model, path)
    ids = np.arange(5, 19).reshape(2, 7)
    expected = logits(source, ids)
    expected = np.tanh(expected) if op == "Tanh" else np.maximum(expected, 0)
    read = load_model(path)
    assert read.head.dense[-1].activation == op.lower()
    np.testing.assert_allclose(outputs(read, ids), expected, atol=TOLERANCE)
