"""Tiny encoders with random weights, in the format of Hugging Face directories."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

WORDS = "a the movie film cat dog man woman is was not very good bad great awful plays sings runs here there".split()
HIDDEN, HEADS, FFN, LAYERS, POSITIONS = 64, 4, 128, 2, 64


def _tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def _tensors(vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return random.normal(0.0, scale, shape).astype(np.float32)

    def linear(name: str, out: int, inner: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": normal(out, inner, scale=inner**-0.5), f"{name}.bias": normal(out, scale=0.1)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": 1 + normal(HIDDEN, scale=0.1), f"{name}.bias": normal(HIDDEN, scale=0.1)}

    tensors = {
        "embeddings.word_embeddings.weight": normal(vocabulary, HIDDEN, scale=0.5),
        "embeddings.position_embeddings.weight": normal(POSITIONS, HIDDEN, scale=0.2),
        "embeddings.token_type_embeddings.weight": normal(2, HIDDEN, scale=0.2),
        **norm("embeddings.LayerNorm"),
    }
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            tensors |= linear(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        tensors |= linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        tensors |= norm(f"{layer}.attention.output.LayerNorm")
        tensors |= linear(f"{layer}.intermediate.dense", FFN, HIDDEN)
        tensors |= linear(f"{layer}.output.dense", HIDDEN, FFN)
        tensors |= norm(f"{layer}.output.LayerNorm")
    return tensors | linear("pooler.dense", HIDDEN, HIDDEN)


def _write(folder: Path, classifier: bool) -> Path:
    from safetensors.numpy import save_file

    vocabulary = _tokenizer(folder)
    tensors = _tensors(vocabulary, seed=7)
    if classifier:
        random = np.random.default_rng(8)
        tensors = {f"bert.{name}": value for name, value in tensors.items()}
        tensors["classifier.weight"] = random.normal(0, HIDDEN**-0.5, (2, HIDDEN)).astype(np.float32)
        tensors["classifier.bias"] = np.zeros(2, np.float32)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    labels = {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
    config = {
        "architectures": ["BertForSequenceClassification" if classifier else "BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
        **(labels if classifier else {}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if not classifier:  # what sentence-transformers writes for mean pooling and a unit vector
        modules = ("", "1_Pooling", "2_Normalize")
        kinds = ("Transformer", "Pooling", "Normalize")
        listing = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(zip(modules, kinds, strict=True))
        ]
        (folder / "modules.json").write_text(json.dumps(listing, indent=1))
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder: 2 layers, hidden 64, 4 heads, mean pooling, unit vectors."""
    return _write(tmp_path_factory.mktemp("tiny"), classifier=False)


@pytest.fixture(scope="session")
def tiny_classifier_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the same geometry: pooler and two labels, `negative` and `positive`."""
    return _write(tmp_path_factory.mktemp("tiny_classifier"), classifier=True)


Stic = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stic(capsys: pytest.CaptureFixture[str]) -> Stic:
    """Runs `stic` in this process with the arguments given; returns (exit status, stdout, stderr)."""
    from stic.compiler.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
