"""`stic export` against torch: the file, run by onnxruntime, computes what transformers computes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from stic.compiler.export.families import FAMILIES, REASONS
from stic.compiler.export.huggingface import export_model
from stic.compiler.forward import outputs
from stic.compiler.frontend.onnx import load_model
from stic.runtime.errors import InputError

ort = pytest.importorskip("onnxruntime")


def run(path: Path, ids: Any, mask: Any, types: Any) -> list[Any]:
    session = ort.InferenceSession(str(path))
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})


def example(vocabulary: int, padding: int = 0) -> tuple[Any, Any, Any]:
    ids = np.random.default_rng(2).integers(2, vocabulary, (3, 9))
    mask, types = np.ones_like(ids), np.zeros_like(ids)
    mask[1, 6:] = 0
    ids[1, 6:] = padding
    types[:, 4:] = 1
    return ids, mask, types


def saved(folder: Path, architecture: str, dtype: str, **changes: Any) -> tuple[Path, Any]:
    """Save a random model of transformers; return its folder and the model in float32 with the saved weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    family = architecture.split("For")[0].removesuffix("Model")
    sizes = dict(
        vocab_size=60, hidden_size=20, num_hidden_layers=2, num_attention_heads=5, intermediate_size=33,
        max_position_embeddings=24, initializer_range=0.2,
    )  # fmt: skip
    if family == "DistilBert":
        sizes = dict(
            vocab_size=60, dim=20, n_layers=2, n_heads=5, hidden_dim=33, max_position_embeddings=24,
            initializer_range=0.2,
        )  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**sizes, **changes)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * (parameter.ndim == 1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder, model.float()


@pytest.mark.parametrize(
    ("architecture", "dtype", "changes"),
    [
        ("BertModel", "float32", {"hidden_act": "gelu_new"}),
        ("BertForSequenceClassification", "float16", {"num_labels": 3}),
        ("BertForSequenceClassification", "bfloat16", {"hidden_act": "relu"}),
        ("BertForMaskedLM", "float32", {}),
        ("DistilBertModel", "float16", {}),
        ("DistilBertForSequenceClassification", "float32", {}),
        ("RobertaModel", "float32", {"pad_token_id": 1}),
        ("RobertaForSequenceClassification", "float32", {"pad_token_id": 1}),
        ("XLMRobertaForSequenceClassification", "float32", {"pad_token_id": 1}),
        ("XLMRobertaModel", "float16", {"pad_token_id": 0}),
        ("CamembertModel", "float32", {"pad_token_id": 1}),
        ("CamembertForSequenceClassification", "float32", {"pad_token_id": 1, "num_labels": 3}),
        ("Data2VecTextForSequenceClassification", "float32", {"pad_token_id": 1, "num_labels": 2}),
        ("Data2VecTextModel", "bfloat16", {"pad_token_id": 1}),
        ("ElectraModel", "float32", {"embedding_size": 20}),
        ("ElectraForSequenceClassification", "float32", {"embedding_size": 20, "num_labels": 2}),
        ("ElectraForSequenceClassification", "float16", {"embedding_size": 20, "num_labels": 3, "hidden_act": "relu"}),
        ("ElectraForPreTraining", "float32", {"embedding_size": 20}),
        ("ErnieModel", "float32", {}),
        ("ErnieModel", "float16", {"use_task_id": True}),
        ("ErnieForSequenceClassification", "float32", {"use_task_id": True, "num_labels": 3}),
    ],
)
def test_agrees_with_torch(tmp_path: Path, architecture: str, dtype: str, changes: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    folder, model = saved(tmp_path / "hf", architecture, dtype, **changes)
    out = tmp_path / "onnx" / "tiny.onnx"
    export_model(folder, out)
    ids, mask, types = example(60, changes.get("pad_token_id", 0))
    feeds = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if architecture.startswith(("Bert", "Electra", "Ernie")):
        feeds["token_type_ids"] = torch.tensor(types)
    bare = architecture.endswith(("ForMaskedLM", "ForPreTraining"))
    encoder = model.base_model if bare else model
    with torch.no_grad():
        theirs = encoder(**feeds)[0].numpy()
    mine = run(out, ids, mask, types)[0]
    kept = mask.astype(bool) if mine.ndim == 3 else slice(None)
    assert mine.shape == theirs.shape
    assert np.abs(mine[kept] - theirs[kept]).max() < 1e-4
    read = load_model(out)
    if "pad_token_id" not in changes:  # the model counts positions through padding; real tokens are not affected
        assert np.abs(outputs(read, ids, mask, types)[kept] - mine[kept]).max() < 1e-4
    weights = [tensor for tensor in onnx.load(out).graph.initializer if tensor.name.endswith("weight")]
    summed = "use_task_id" in changes  # position rows with the task's on top, in float32
    stored = {tensor.data_type for tensor in weights if not (summed and "position" in tensor.name)}
    assert stored == {onnx.TensorProto.FLOAT16 if dtype == "float16" else onnx.TensorProto.FLOAT}


def test_sentence_encoder(minilm_dir: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "minilm.onnx"
    export_model(minilm_dir, out)
    assert (tmp_path / "tokenizer.json").read_bytes() == (minilm_dir / "tokenizer.json").read_bytes()
    ids, mask, types = example(30000)
    types[:] = 0
    encoder = transformers.AutoModel.from_pretrained(minilm_dir).eval()
    with torch.no_grad():
        hidden = encoder(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))[0].numpy()
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    mine = run(out, ids, mask, types)[0]
    model = load_model(out)
    assert np.abs(mine - expected).max() < 1e-4
    assert np.abs(outputs(model, ids, mask, types) - mine).max() < 1e-4
    assert model.head.pooling == "mean" and model.head.normalize and model.tokenizer == tmp_path / "tokenizer.json"


def test_elastic_classifier(models_dir: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "qnli.onnx"
    export_model(models_dir / "qnli", out)
    ids, mask, types = example(30000)
    encoder = transformers.AutoModelForSequenceClassification.from_pretrained(models_dir / "qnli", dtype=torch.float32)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    with torch.no_grad():
        expected = encoder.eval()(**{name: torch.tensor(value) for name, value in feeds.items()})[0].numpy()
    mine = run(out, ids, mask, types)[0]
    model = load_model(out)
    assert np.abs(mine - expected).max() < 1e-4
    assert np.abs(outputs(model, ids, mask, types) - mine).max() < 1e-4
    assert model.elastic
    assert json.loads((tmp_path / "config.json").read_text())["id2label"]["0"] == "entailment"


@pytest.mark.parametrize(("pooling", "output"), [("tokens", "last_hidden_state"), ("first", "sentence_embedding")])
def test_pooling_option(tiny_dir: Path, tmp_path: Path, pooling: str, output: str) -> None:
    export_model(tiny_dir, tmp_path / "m.onnx", pooling)
    assert onnx.load(tmp_path / "m.onnx").graph.output[0].name == output
    assert load_model(tmp_path / "m.onnx").head.pooling == pooling


def test_weights_beside_a_large_model(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_model(tiny_dir, tmp_path / "one" / "m.onnx")
    monkeypatch.setattr("stic.compiler.export.files._INLINE_LIMIT", 1000)
    export_model(tiny_dir, tmp_path / "two" / "m.onnx")
    assert (tmp_path / "two" / "m.onnx.data").stat().st_size > 100_000
    example_inputs = example(20)
    for a, b in zip(*(run(tmp_path / n / "m.onnx", *example_inputs) for n in ("one", "two")), strict=True):
        assert np.array_equal(a, b)
    assert len(load_model(tmp_path / "two" / "m.onnx").layers) == 2


def _drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")


def _config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
        (lambda f: (f / "config.json").write_text("[1"), "not readable JSON"),
        (lambda f: (f / "model.safetensors").unlink(), r"no model: expected config\.json with model\.safe"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x05\0"), "not a safetensors file"),
        (lambda f: _drop(f, "bert.encoder.layer.1.output.dense.bias"), r"no weight 'bert\.encoder\.layer\.1\.output"),
        (lambda f: _config(f, model_type="gpt2"), "'gpt2' is not supported: it is a decoder"),
        (lambda f: _config(f, model_type="albert"), "'albert' is not supported: its layers share one set of weights"),
        (lambda f: _config(f, model_type="deberta-v2"), "relative positions; bert, distilbert"),
        (lambda f: _config(f, model_type="modernbert"), r"\(pre-norm\), not after them, and .*rotary.*; bert"),
        (lambda f: _config(f, model_type="xlm-roberta-xl"), "normalise before"),
        (lambda f: _config(f, model_type="t5"), "an encoder and a decoder in one"),
        (lambda f: _config(f, model_type="tf-idf"), "model_type 'tf-idf' is not supported; bert, distilbert"),
        (lambda f: _config(f, model_type=["bert"]), r"model_type '\['bert'\]' is not supported; bert"),
        (lambda f: _config(f, model_type="electra", embedding_size=128), "embeddings are 128 wide and pass a linear"),
        (lambda f: _config(f, is_decoder=True), "no decoder"),
        (lambda f: _config(f, hidden_act="silu"), "activation 'silu' is not supported"),
        (lambda f: _config(f, intermediate_size=100), r"has shape \(128, 64\); config\.json says \(100, 64\)"),
        (lambda f: _config(f, num_attention_heads=7), "expected whole numbers that divide"),
        (lambda f: _config(f, architectures=["BertForQuestionAnswering"]), "'BertForQuestionAnswering' is not"),
        (lambda f: _config(f, layer_norm_eps="small"), "layer_norm_eps is 'small'; expected a number"),
    ],
)
def test_unusable_directories(tiny_classifier_dir: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    folder = shutil.copytree(tiny_classifier_dir, tmp_path / "hf")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        export_model(folder, tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("padding", "offset"), [(0, 1), (1, 2), (5, 6), (-1, None), (23, None), (5000, None)])
def test_positions_count_on_from_the_padding(tmp_path: Path, padding: int, offset: int | None) -> None:
    folder, _ = saved(tmp_path / "hf", "RobertaModel", "float32", pad_token_id=1)
    _config(folder, pad_token_id=padding)
    if offset is None:
        with pytest.raises(InputError, match=f"pad_token_id is {padding}, .* of the 60 tokens and below the 24 pos"):
            export_model(folder, tmp_path / "m.onnx")
        return
    export_model(folder, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    assert (model.embeddings.position_offset, model.max_length) == (offset, 24 - offset)


@pytest.mark.parametrize("kind", REASONS)
def test_families_are_named_as_transformers_names_them(kind: str) -> None:
    mapping = pytest.importorskip("transformers").models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    gone = {"nezha", "new"}  # a family that transformers has dropped; one whose code lies beside its weights
    assert kind not in FAMILIES and (kind in mapping or kind in gone | {"eurobert", "gte", "jina_embeddings_v3"})
    assert REASONS[kind].startswith(("it ", "its ")) and not REASONS[kind].endswith(".")


def test_truncated_weights(tiny_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_dir, tmp_path / "hf")
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"truncated|damaged"):
            export_model(folder, tmp_path / "m.onnx")


def test_nothing_half_written_remains(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"):
        export_model(tiny_dir, tmp_path / "out" / "m.onnx")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"config.json", "tokenizer.json"}


def test_unknown_pooling(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pooling 'max' is not known"):
        export_model(tiny_dir, tmp_path / "m.onnx", "max")
