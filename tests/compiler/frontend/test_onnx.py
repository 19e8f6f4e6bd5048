"""The frontend against onnxruntime: what it reads from a file computes what the file computes.

torch and transformers are oracles that write the graphs; tests that need them skip without them.
"""

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stic.compiler.export.graph import GraphWriter
from stic.compiler.export.huggingface import export_model
from stic.compiler.forward import outputs
from stic.compiler.frontend.onnx import load_model
from stic.compiler.model import Model

ort = pytest.importorskip("onnxruntime")

SIZES: dict[str, Any] = dict(
    vocab_size=50, hidden_size=40, num_hidden_layers=2, num_attention_heads=5, intermediate_size=27,
    max_position_embeddings=24, initializer_range=0.2,
)  # fmt: skip
ODD = SIZES | dict(hidden_size=320, intermediate_size=1000, initializer_range=0.05)
NAMES = ["input_ids", "attention_mask", "token_type_ids"]
TOLERANCE = 1e-4


def agreement(path: Path, model: Model, output: str | None = None) -> float:
    """Return the largest difference between onnxruntime on `path` and the numpy forward of `model`."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options)
    inputs = session.get_inputs()
    shape = [d if isinstance(d, int) else free for d, free in zip(inputs[0].shape, (3, 9), strict=True)]
    rng = np.random.default_rng(7)
    ids = rng.integers(2, len(model.embeddings.word), shape)
    mask, types = np.ones(shape, np.int64), np.zeros(shape, np.int64)
    if len(inputs) > 1:
        mask[-1, -3:] = 0
    if len(inputs) > 2:
        types[:, 3:] = 1
    feeds = {i.name: array for i, array in zip(inputs, (ids, mask, types), strict=False)}
    theirs = session.run([output] if output else None, feeds)[0]
    mine = outputs(model, ids, mask, types)
    assert theirs.shape == mine.shape
    kept = mask.astype(bool) if model.head.pooling == "tokens" else slice(None)
    return float(np.abs(theirs[kept] - mine[kept]).max())


def torch_model(kind: str, sizes: dict[str, Any]) -> Any:
    """Make a random encoder of transformers, biases and norms random too."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    family, _, task = kind.partition("-")
    if family == "DistilBert":
        config = transformers.DistilBertConfig(
            vocab_size=sizes["vocab_size"], dim=sizes["hidden_size"], n_layers=2, n_heads=5,
            hidden_dim=sizes["intermediate_size"], max_position_embeddings=24, initializer_range=0.2,
        )  # fmt: skip
    else:
        config = getattr(transformers, f"{family}Config")(
            **sizes, **({"pad_token_id": 1} if family == "Roberta" else {})
        )
    model = getattr(transformers, family + (task or "Model"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def export(model: Any, path: Path, dynamo: bool, fixed: bool = False, inputs: int = 3, **options: Any) -> Path:
    """Export through torch, with dynamic or fixed axes."""
    torch = pytest.importorskip("torch")
    ids = torch.randint(2, 50, (1, 8) if fixed else (2, 7))
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    names = NAMES[:inputs]
    feeds = dict(zip(names, (ids, mask, torch.zeros_like(ids)), strict=False))
    if dynamo and not fixed:
        axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=22)}
        options["dynamic_shapes"] = {name: axes for name in names}
    elif not fixed:
        options["dynamic_axes"] = {name: {0: "batch", 1: "tokens"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (), str(path), kwargs=feeds, input_names=names, dynamo=dynamo, verbose=False, **options
        )
    return path


def sentence_model() -> Any:
    """A BERT with masked mean pooling and L2 norm, written as sentence-transformers writes it."""
    torch = pytest.importorskip("torch")

    module: Any = torch.nn.Module

    class Sentence(module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch_model("Bert", SIZES)

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
            kept = attention_mask.unsqueeze(-1).expand(hidden.size()).float()
            mean = torch.sum(hidden * kept, 1) / torch.clamp(kept.sum(1), min=1e-9)
            return torch.nn.functional.normalize(mean, p=2, dim=1)

    return Sentence().eval()


@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "fixed"])
@pytest.mark.parametrize(
    ("kind", "inputs", "pooling", "activations"),
    [
        ("Bert-ForSequenceClassification", 3, "first", ["tanh", "none"]),
        ("Bert-ForTokenClassification", 3, "tokens", ["none"]),
        ("DistilBert", 2, "tokens", []),
        ("DistilBert-ForSequenceClassification", 2, "first", ["relu", "none"]),
        ("Roberta-ForSequenceClassification", 2, "first", ["tanh", "none"]),
    ],
)
def test_classic_exporter(
    tmp_path: Path, kind: str, inputs: int, pooling: str, activations: list[str], fixed: bool
) -> None:
    path = export(torch_model(kind, SIZES), tmp_path / "tiny.onnx", False, fixed, inputs)
    model = load_model(path)
    assert agreement(path, model) < TOLERANCE
    assert (model.name, model.hidden, model.heads, model.ffn, len(model.layers)) == ("tiny", 40, 5, 27, 2)
    assert model.head.pooling == pooling
    assert [dense.activation for dense in model.head.dense] == activations
    assert model.embeddings.position_offset == (2 if kind.startswith("Roberta") else 0)
    assert model.activation == "gelu" and abs(model.attention_scale - 8**-0.5) < 1e-6


@pytest.mark.parametrize(
    ("kind", "inputs", "fixed", "options"),
    [
        ("Bert-ForSequenceClassification", 3, False, {}),
        ("Bert-ForSequenceClassification", 3, True, {"optimize": False}),
        ("Bert-ForSequenceClassification", 3, False, {"opset_version": 23}),  # the fused Attention operator
        ("DistilBert", 2, False, {}),
        ("Roberta-ForSequenceClassification", 2, False, {"external_data": True}),
    ],
)
def test_dynamo_exporter(tmp_path: Path, kind: str, inputs: int, fixed: bool, options: dict[str, Any]) -> None:
    pytest.importorskip("onnxscript")
    path = export(torch_model(kind, SIZES), tmp_path / "tiny.onnx", True, fixed, inputs, **options)
    assert agreement(path, load_model(path)) < TOLERANCE


@pytest.mark.parametrize("opset", [12, 14])
def test_decomposed_norms(tmp_path: Path, opset: int) -> None:
    sizes = ODD | {"attn_implementation": "eager"} | {"hidden_act": "gelu_new" if opset == 14 else "relu"}
    path = export(
        torch_model("Bert-ForSequenceClassification", sizes), tmp_path / "odd.onnx", False, opset_version=opset
    )
    assert "LayerNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    model = load_model(path)
    assert agreement(path, model) < TOLERANCE
    assert (model.hidden, model.heads, model.head_dim, model.ffn) == (320, 5, 64, 1000)
    assert model.activation == ("gelu_tanh" if opset == 14 else "relu")
    assert model.layers[0].ffn_norm.epsilon == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize("dynamo", [False, True], ids=["classic", "dynamo"])
def test_mean_pooling(tmp_path: Path, dynamo: bool) -> None:
    path = export(sentence_model(), tmp_path / "sentence.onnx", dynamo)
    model = load_model(path)
    assert model.head.pooling == "mean" and model.head.normalize and not model.head.dense
    assert agreement(path, model) < TOLERANCE


def test_half_precision(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    half = torch_model("Bert-ForSequenceClassification", SIZES).half()
    path = export(half, tmp_path / "half.onnx", True)
    model = load_model(path)
    assert model.layers[0].query.weight.dtype == np.float32
    # The file computes in float16, whose steps are 1e-3 at 1; the model computes in float32.
    assert agreement(path, model) < 2e-2


def test_outputs_are_chosen_by_name(tmp_path: Path, tiny_dir: Path) -> None:
    path = tmp_path / "two.onnx"
    export_model(tiny_dir, path, "tokens")
    assert load_model(path).head.pooling == "tokens"
    pooled = load_model(path, "pooler_output")
    assert pooled.head.pooling == "first" and pooled.head.dense[0].activation == "tanh"
    assert agreement(path, pooled, "pooler_output") < TOLERANCE


def rename(path: Path, target: Path) -> None:
    """Give every value, node, weight and input a random name."""
    model = onnx.load(path)
    rng = random.Random(1)
    names: dict[str, str] = {"": ""}

    def fresh(name: str) -> str:
        return names.setdefault(name, f"{rng.getrandbits(64):x}")

    for node in model.graph.node:
        node.name = f"{rng.getrandbits(64):x}"
        node.input[:], node.output[:] = [fresh(n) for n in node.input], [fresh(n) for n in node.output]
    for items in (model.graph.initializer, model.graph.input, model.graph.output, model.graph.value_info):
        for item in items:
            item.name = fresh(item.name)
    onnx.save(model, target)


def test_names_do_not_matter(tmp_path: Path, tiny_dir: Path) -> None:
    export_model(tiny_dir, tmp_path / "named.onnx")
    rename(tmp_path / "named.onnx", tmp_path / "renamed.onnx")
    assert agreement(tmp_path / "renamed.onnx", load_model(tmp_path / "renamed.onnx")) < TOLERANCE


@pytest.mark.parametrize("interleaved", [False, True], ids=["blocks", "interleaved"])
def test_queries_keys_and_values_in_one_product(tmp_path: Path, interleaved: bool) -> None:
    rng = np.random.default_rng(5)
    heads, size, hidden, ffn = 3, 4, 12, 10

    def array(*shape: int) -> Any:
        return rng.normal(0, 0.4, shape).astype(np.float32)

    w = GraphWriter()
    x = w.add(
        "Add", w.rows("word", array(30, hidden), "ids"), w.rows("place", array(16, hidden), w.positions("ids", None))
    )
    x = w.norm(x, "first", array(hidden), array(hidden), 1e-6)
    joint = w.linear(x, "joint", array(3 * hidden, hidden), array(3 * hidden))
    if interleaved:  # head by head: its queries, keys, values
        split = w.add("Reshape", joint, w.constant([0, 0, heads, 3 * size]))
        parts = split_in_three(w, split)
        parts = [w.add("Reshape", part, w.constant([0, 0, hidden])) for part in parts]
    else:
        parts = split_in_three(w, joint)
    merged = w.attention(parts[0], parts[1], parts[2], w.mask_bias("mask"), heads, size)
    y = w.add("Add", x, w.linear(merged, "out", array(hidden, hidden), array(hidden)))
    y = w.norm(y, "second", array(hidden), array(hidden), 1e-6)
    z = w.activation(w.linear(y, "up", array(ffn, hidden), array(ffn)), "gelu")
    z = w.norm(
        w.add("Add", w.linear(z, "down", array(hidden, ffn), array(hidden)), y),
        "third",
        array(hidden),
        array(hidden),
        1e-6,
    )
    path = tmp_path / "fused.onnx"
    onnx.save(w.model(("ids", "mask"), {"states": (z, ("batch", "sequence", hidden))}), path)
    model = load_model(path)
    assert model.heads == heads and model.embeddings.token_type is None
    assert agreement(path, model) < TOLERANCE


def split_in_three(w: GraphWriter, value: str) -> list[str]:
    names = [f"{value}_{i}" for i in range(3)]
    w.nodes.append(onnx.helper.make_node("Split", [value], names, axis=-1))
    return names


def test_elastic_classifier(models_dir: Path) -> None:
    path = models_dir / "sst2" / "model.onnx"
    model = load_model(path)
    assert agreement(path, model) < TOLERANCE
    assert model.elastic and model.tokenizer == path.parent / "tokenizer.json"
    assert (model.name, model.hidden, model.heads, model.ffn, len(model.layers)) == ("sst2", 384, 12, 1536, 6)
    assert model.max_length == 512
