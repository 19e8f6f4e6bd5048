"""Small random decoders as Hugging Face directories, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, HEADS, KEY_HEADS, HEAD_DIM, NEURONS, LAYERS, VOCABULARY, CONTEXT = 16, 4, 2, 4, 24, 2, 40, 32
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "torch_dtype": "float32",
}
Tensors = dict[str, np.ndarray]


def llama_tensors(seed: int = 3) -> Tensors:
    """Weights of CONFIG, untied."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + random.normal(0, 0.2, HIDDEN)).astype(np.float32)

    found = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN), "lm_head.weight": matrix(VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        found |= {
            f"{name}input_layernorm.weight": norm(),
            f"{name}self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN),
            f"{name}self_attn.k_proj.weight": matrix(KEY_HEADS * HEAD_DIM, HIDDEN),
            f"{name}self_attn.v_proj.weight": matrix(KEY_HEADS * HEAD_DIM, HIDDEN),
            f"{name}self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
            f"{name}post_attention_layernorm.weight": norm(),
            f"{name}mlp.gate_proj.weight": matrix(NEURONS, HIDDEN),
            f"{name}mlp.up_proj.weight": matrix(NEURONS, HIDDEN),
            f"{name}mlp.down_proj.weight": matrix(HIDDEN, NEURONS),
        }
    return found | {"model.norm.weight": norm()}


def write(folder: Path, tensors: Tensors | None = None, **changes: Any) -> Path:
    """A directory; `changes` go into its config.json, and those that are None take a key out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(llama_tensors() if tensors is None else tensors, folder / "model.safetensors")
    keys = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(keys))
    return folder


def write_json(path: Path, content: object) -> None:
    """A JSON file."""
    path.write_text(json.dumps(content))
