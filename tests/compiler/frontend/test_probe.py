"""Whatever a run may vary (token types, padding in a text) is answered as the graph answers it, inputs or no inputs."""

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
from stic.runtime.errors import UnsupportedModelError

ort = pytest.importorskip("onnxruntime")

VOCABULARY, POSITIONS, HIDDEN = 40, 24, 20
NAMES = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 1e-4


def encoder(family: str, **options: Any) -> Any:
    """Make a random encoder of transformers, biases and norms random too."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(3)
    sizes: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=5, intermediate_size=12,
        max_position_embeddings=POSITIONS, initializer_range=0.4, pad_token_id=1, type_vocab_size=2,
    )  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**sizes | options)
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "position_embeddings" in name:  # the padding's position row too
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def named(model: Any, names: tuple[str, ...]) -> Any:
    """Make a module that takes the inputs `names` in order and returns the hidden states of `model`."""
    torch = pytest.importorskip("torch")
    module: Any = torch.nn.Module

    class Named(module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            return self.model(**dict(zip(names, given, strict=True)))[0]

    return Named().eval()


def export(model: Any, path: Path, names: tuple[str, ...], dynamo: bool = False, fixed: bool = False) -> Path:
    torch = pytest.importorskip("torch")
    if dynamo:
        pytest.importorskip("onnxscript")
    ids = torch.arange(5, 19).reshape(2, 7)
    feeds = dict(zip(NAMES, (ids, torch.ones_like(ids), torch.zeros_like(ids)), strict=True))
    given = tuple(feeds[name] for name in names)
    options: dict[str, Any] = {}
    if dynamo and not fixed:
        axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        options["dynamic_shapes"] = ((axes,) * len(names),)
    elif not fixed:
        options["dynamic_axes"] = {name: {0: "batch", 1: "tokens"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            named(model, names), given, str(path), input_names=list(names), dynamo=dynamo, verbose=False, **options
        )
    return path


def graphs_answer(path: Path, ids: Any, types: Any) -> Any:
    """Return the first output of onnxruntime for every token kept; inputs that the graph lacks are left out."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    session = ort.InferenceSession(str(path), settings)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})[0]


IDS = np.arange(5, 19).reshape(2, 7)
SECOND = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])  # what a tokenizer gives for pairs
LITERAL = np.array([[5, 6, 1, 7, 8, 1, 9], [1, 1, 10, 11, 12, 13, 1]])  # padding inside, first and last


@pytest.mark.parametrize("dynamo", [False, True], ids=["classic", "dynamo"])
@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_token_types(tmp_path: Path, inputs: int, fixed: bool, dynamo: bool) -> None:
    path = export(encoder("Bert"), tmp_path / "model.onnx", NAMES[:inputs], dynamo, fixed)
    model = load_model(path)
    types = model.embeddings.token_type
    assert (types is not None and len(types) == 2) if inputs == 3 else (types is None or len(types) == 1)
    expected = graphs_answer(path, IDS, SECOND)
    np.testing.assert_allclose(outputs(model, IDS, None, SECOND), expected, atol=TOLERANCE)


def test_more_than_two_token_types(tmp_path: Path) -> None:
    path = export(encoder("Bert", type_vocab_size=4), tmp_path / "model.onnx", NAMES)
    types = np.arange(14).reshape(2, 7) % 4
    np.testing.assert_allclose(
        outputs(load_model(path), IDS, None, types), graphs_answer(path, IDS, types), atol=TOLERANCE
    )


@pytest.mark.parametrize("exporter", ["stic", "classic", "dynamo"])
@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "Camembert"])
def test_padding_in_a_text(tmp_path: Path, family: str, exporter: str) -> None:
    source, path = encoder(family, type_vocab_size=1), tmp_path / "model.onnx"
    if exporter == "stic":
        if family == "Camembert":
            pytest.skip("`stic export` knows the other two by name")
        source.save_pretrained(tmp_path / "source")
        export_model(tmp_path / "source", path)
    else:
        export(source, path, NAMES[:2], exporter == "dynamo")
    model = load_model(path)
    assert model.embeddings.padding == 1 and model.embeddings.position_offset == 2
    for ids in (IDS, LITERAL):
        np.testing.assert_allclose(outputs(model, ids), graphs_answer(path, ids, None), atol=TOLERANCE)


@pytest.mark.parametrize("family", ["Bert", "Electra"])
def test_padding_is_a_word_like_others_where_positions_count_it(tmp_path: Path, family: str) -> None:
    options = {"embedding_size": HIDDEN} if family == "Electra" else {}
    path = export(encoder(family, **options), tmp_path / "model.onnx", NAMES)
    model = load_model(path)
    assert model.embeddings.padding is None
    types = np.zeros_like(LITERAL)
    np.testing.assert_allclose(outputs(model, LITERAL), graphs_answer(path, LITERAL, types), atol=TOLERANCE)


def written(path: Path, mask: str, positions: str = "plain") -> Path:
    """Write an encoder of one layer whose mask is an "input" or made from "ids", and positions likewise."""
    rng = np.random.default_rng(5)

    def array(*shape: int) -> Any:
        return rng.normal(0, 0.4, shape).astype(np.float32)

    w = GraphWriter()
    places = w.positions("input_ids", 0 if positions == "counted" else None)
    if positions == "from mask":
        places = w.add("Sub", w.add("CumSum", "attention_mask", w.constant(1)), w.constant(1))
    rows = w.add("Add", w.rows("word", array(30, HIDDEN), "input_ids"), w.rows("place", array(16, HIDDEN), places))
    x = w.norm(rows, "n0", array(HIDDEN), array(HIDDEN), 1e-6)
    used = "attention_mask"
    if mask == "ids":
        used = w.add("Cast", w.add("Not", w.add("Equal", "input_ids", w.constant(0))), to=onnx.TensorProto.INT64)
    q, k, v = (w.linear(x, name, array(HIDDEN, HIDDEN), array(HIDDEN)) for name in ("q", "k", "v"))
    merged = w.attention(q, k, v, w.mask_bias(used), 5, 4)
    y = w.add("Add", x, w.linear(merged, "o", array(HIDDEN, HIDDEN), array(HIDDEN)))
    y = w.norm(y, "n1", array(HIDDEN), array(HIDDEN), 1e-6)
    z = w.activation(w.linear(y, "up", array(9, HIDDEN), array(9)), "gelu")
    z = w.add("Add", w.linear(z, "down", array(HIDDEN, 9), array(HIDDEN)), y)
    z = w.norm(z, "n2", array(HIDDEN), array(HIDDEN), 1e-6)
    inputs = NAMES[:2] if mask == "input" else NAMES[:1]
    onnx.save(w.model(inputs, {"states": (z, ("batch", "sequence", HIDDEN))}), path)
    return path


@pytest.mark.parametrize(("positions", "padding"), [("plain", None), ("counted", 0), ("from mask", None)])
def test_positions_of_every_kind(tmp_path: Path, positions: str, padding: int | None) -> None:
    path = written(tmp_path / "model.onnx", "input", positions)
    model = load_model(path)
    assert model.embeddings.padding == padding
    for ids in (IDS, np.where(IDS % 3 == 0, 0, IDS)):
        np.testing.assert_allclose(outputs(model, ids), graphs_answer(path, ids, None), atol=TOLERANCE)


@pytest.mark.parametrize("positions", ["plain", "counted"])
@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (1, 3), (2, 4)])
def test_short_fixed_lengths(tmp_path: Path, shape: tuple[int, int], positions: str) -> None:
    path = written(tmp_path / "model.onnx", "input", positions)
    file = onnx.load(path)
    for value in file.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
    onnx.save(file, path)
    ids = np.arange(5, 5 + shape[0] * shape[1]).reshape(shape)
    np.testing.assert_allclose(outputs(load_model(path), ids), graphs_answer(path, ids, None), atol=TOLERANCE)


def test_a_mask_made_from_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"hides token 0 where a text holds it.*attention_mask as an input"):
        load_model(written(tmp_path / "model.onnx", "ids"))


def test_relative_positions_are_refused_by_name(tmp_path: Path) -> None:
    path = export(encoder("MPNet"), tmp_path / "model.onnx", NAMES[:2])
    with pytest.raises(UnsupportedModelError, match="relative positions, as MPNet's"):
        load_model(path)
