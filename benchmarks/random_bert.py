"""Encoders of BERT's kind with random weights, of sizes for which no trained model is at hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from stic.compiler.importance.examples import built_in_examples

POSITIONS = 512


@dataclass(frozen=True)
class Size:
    """What a BERT's cost follows from."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocabulary: int = 8192


def write_bert(size: Size, folder: Path, seed: int = 0) -> None:
    """Write a Hugging Face directory: float32 weights as BERT initialises them, and a tokenizer of whole words.

    The tokenizer knows the words of the sentences that stic carries, some hundreds; all others are [UNK].
    """
    folder.mkdir(parents=True)
    save_file(_tensors(size, np.random.default_rng(seed)), folder / "model.safetensors")
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "num_attention_heads": size.heads,
        "intermediate_size": size.ffn,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = sorted({word for text, _ in built_in_examples().texts for word in text.split()})
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(("[UNK]", *words))}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def _tensors(size: Size, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    hidden, ffn = size.hidden, size.ffn

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)

    tensors = {
        "embeddings.word_embeddings.weight": normal(size.vocabulary, hidden),
        "embeddings.position_embeddings.weight": normal(POSITIONS, hidden),
        "embeddings.token_type_embeddings.weight": normal(2, hidden),
    }
    linears, norms = {"pooler.dense": (hidden, hidden)}, ["embeddings.LayerNorm"]
    for number in range(size.layers):
        at = f"encoder.layer.{number}"
        linears |= {f"{at}.attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        linears |= {f"{at}.attention.output.dense": (hidden, hidden)}
        linears |= {f"{at}.intermediate.dense": (ffn, hidden), f"{at}.output.dense": (hidden, ffn)}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name, shape in linears.items():
        tensors |= {f"{name}.weight": normal(*shape), f"{name}.bias": np.zeros(shape[0], np.float32)}
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(hidden, np.float32), f"{name}.bias": np.zeros(hidden, np.float32)}
    return tensors
