"""Decoders as onnxruntime-genai's builder writes them: what is read computes what onnxruntime computes."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

pytest.importorskip("onnxruntime")

from stic.compiler.frontend import decoder_graph_check, decoder_graph_values
from stic.compiler.frontend.decoder_graph import load_decoder
from stic.compiler.frontend.decoder_graph_weights import Dense, GraphWeights, Matrix
from tests.compiler.frontend.builder_graph import CONTEXT, HIDDEN, SIZE, VOCABULARY, built

APART = {"packed": False}
OUTSIDE = {"packed": False, "rotary_inside": False}


@pytest.fixture
def gap(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the gate found, of every decoder that is read."""
    found: list[float] = []
    real = decoder_graph_check.difference

    def noted(*arguments):
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(decoder_graph_check, "difference", noted)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {}, APART, {"interleaved": True}, {"pairs": 8}, OUTSIDE, {**OUTSIDE, "interleaved": True},
        {**OUTSIDE, "pairs": 8}, {**OUTSIDE, "pairs": 8, "interleaved": True}, {**APART, "norm": "outside"},
        {**APART, "norm": "inside"}, {"norm": "inside"}, {**APART, "norm": "inside", "interleaved": True},
        {"window": 8}, {"softcap": 5.0}, {"scale": 0.4}, {"multiplier": 3.5}, {"bits": 4},
        {"bits": 4, "zeros": True}, {"bits": 8}, {"quantised_embedding": True}, {"long": 40}, {"external": True},
    ],
    ids=str,
)  # fmt: skip
def test_builder(options: dict, tmp_path: Path, gap: list[float]) -> None:
    decoder = load_decoder(built(tmp_path, **options))
    assert gap[0] < 1e-4
    blocks = decoder.architecture.blocks
    assert [type(block).__name__ for block in blocks] == ["Attention", "FeedForward"] * 2 + ["Vocabulary"]
    assert blocks[0].window == (options["window"] if "window" in options else None)
    assert blocks[0].softcap == (options["softcap"] if "softcap" in options else None)
    assert blocks[0].head_norm == ("head" if "norm" in options else None)
    assert decoder.architecture.rotaries[0].features == 2 * options.get("pairs", SIZE // 2)
    assert decoder.architecture.embedding.multiplier == options.get("multiplier", 1.0)
    assert (decoder.architecture.context, decoder.architecture.bos, decoder.architecture.stops) == (CONTEXT, 1, (2, 5))


def test_float16_weights_are_read_as_float32(tmp_path: Path, gap: list[float]) -> None:
    decoder = load_decoder(built(tmp_path, kind=TensorProto.FLOAT16))
    assert gap[0] < 8e-3  # the graph itself computes in float16
    assert decoder.weights.rows("head", 3, 5).dtype == np.float32


def test_large_weights_are_not_read_for_the_structure(
    tmp_path: Path, gap: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_graph_values, "LARGE", 1000)
    decoder = load_decoder(built(tmp_path, external=True))
    assert gap[0] < 1e-4
    assert isinstance(decoder.weights, GraphWeights)
    embedding = decoder.weights.held[None, "embedding"]
    assert isinstance(embedding, Matrix) and isinstance(embedding.stored, Dense)
    assert isinstance(embedding.stored.array, np.memmap)
    assert decoder.weights.rows("embedding", 90, 6).shape == (VOCABULARY - 90, HIDDEN)


def test_rotary_tables_for_long_texts(tmp_path: Path) -> None:
    rotary = load_decoder(built(tmp_path, long=40)).architecture.rotaries[0]
    assert rotary.switch == 40 and rotary.long is not None
    assert np.allclose(rotary.long.frequencies, np.array(rotary.frequencies) / 3, rtol=1e-5)
    assert rotary.magnitude == 1.0 and rotary.long.magnitude == pytest.approx(1.25)


def test_frequencies_are_exact_however_small(tmp_path: Path) -> None:
    found = load_decoder(built(tmp_path)).architecture.rotaries[0].frequencies
    assert np.allclose(found, 10000.0 ** -(np.arange(SIZE // 2) / (SIZE // 2)), rtol=1e-6, atol=0)


def test_configurations_beside_the_file_are_united(tmp_path: Path) -> None:
    path = built(tmp_path)
    config = {"model_type": "qwen2", "max_position_embeddings": 48, "eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 2]}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    decoder = load_decoder(path)
    assert decoder.architecture.family == "qwen2"
    assert decoder.architecture.context == 48
    assert decoder.architecture.stops == (2, 5, 7, 9)
    assert decoder.text.template == "{{ messages }}"
