"""Small GGUF files: of a Hugging Face model, as llama.cpp's converter would write it, and from keys and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

ARCHITECTURES = {"gemma3_text": "gemma3"}  # of model_type; the others are called as it is
PERMUTED = ("llama", "granite", "smollm3")
CONTROL, USER, BYTE = 3, 4, 6


def write(path: Path, arch: str, keys: dict[str, Any], tensors: dict[str, Any], kind: Kind = Kind.F32) -> Path:
    """Write a file; `keys` without a dot in front are of the architecture. Matrices get the type, if they fit it."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        name = key if key.split(".")[0] in ("general", "tokenizer", "split") else f"{arch}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    for name, array in tensors.items():
        fits = array.ndim > 1 and array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        used = kind if fits else Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(array, np.float32), used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert(folder: Path, path: Path, kind: Kind = Kind.F32, **changes: Any) -> Path:
    """Write the model of a Hugging Face directory; `changes` are keys to set, or to leave out (None)."""
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    arch = ARCHITECTURES.get(family, family)
    stored = dict(load_file(folder / "model.safetensors"))
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    keys, extra = _keys(config, rope)
    keys |= changes
    tensors = _tensors(config, family, arch, stored) | extra
    return write(path, arch, {key: value for key, value in keys.items() if value is not None}, tensors, kind)


def _keys(config: dict[str, Any], rope: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata, and tensors that say how positions turn."""
    old = config["model_type"] == "gpt2"
    hidden, heads = config["n_embd" if old else "hidden_size"], config["n_head" if old else "num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    keys: dict[str, Any] = {
        "block_count": config["n_layer" if old else "num_hidden_layers"],
        "context_length": config["n_positions" if old else "max_position_embeddings"],
        "embedding_length": hidden,
        "feed_forward_length": (config.get("n_inner") or 4 * hidden) if old else config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": heads if old else config["num_key_value_heads"],
        "vocab_size": config["vocab_size"],
        "general.type": "model",
    }
    for key, name in (
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attention.layer_norm_epsilon", "layer_norm_eps"),
        ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("embedding_scale", "embedding_multiplier"),
        ("attention.scale", "attention_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
        ("use_parallel_residual", "use_parallel_residual"),
    ):
        if config.get(name) is not None:
            keys[key] = config[name]
    if config["model_type"].startswith("gemma") or config.get("head_dim"):
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if config["model_type"] in ("gemma2", "gemma3_text", "phi3"):
        keys["attention.sliding_window"] = config.get("sliding_window") or 0
    if not rope:
        return keys, {}
    features = int(rope.get("partial_rotary_factor", 1.0) * head_dim)
    keys |= {"rope.freq_base": float(rope["rope_theta"]), "rope.dimension_count": features}
    local = (config["rope_parameters"].get("sliding_attention") or {}).get("rope_theta")
    if local is not None:
        keys["rope.freq_base_swa"] = float(local)
    kind, extra = rope["rope_type"], {}
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if kind == "longrope":
        original = config.get("original_max_position_embeddings") or rope["original_max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = original
        for name in ("short", "long"):
            extra[f"rope_factors_{name}.weight"] = np.array(rope[f"{name}_factor"], np.float32)
        if original == 64:  # newer files have what older ones leave to whoever reads them
            stretched = np.log(keys["context_length"] / original) / np.log(original)
            keys["rope.scaling.attn_factor"] = float(np.sqrt(1 + stretched))
        if "attention_factor" in rope:
            keys["rope.scaling.attn_factor"] = rope["attention_factor"]
    if kind == "llama3":
        extra["rope_freqs.weight"] = llama3_divisors(rope, features)
    return keys, extra


def llama3_divisors(rope: dict[str, Any], features: int) -> np.ndarray:
    """As llama.cpp's converter computes them."""
    found = []
    for pair in range(0, features, 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (pair / features)
        original, low, high = (
            rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        if wave < original / high:
            found.append(1.0)
        elif wave > original / low:
            found.append(rope["factor"])
        else:
            smooth = (original / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, np.float32)


def _tensors(config: dict[str, Any], family: str, arch: str, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors under llama.cpp's names, permuted, shifted, turned and stacked as its converter does."""
    layers = config.get("num_hidden_layers") or config["n_layer"]
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, layers)
    found: dict[str, np.ndarray] = {}
    for name, array in stored.items():
        if family in PERMUTED and name.endswith(("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            pairs = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        if family.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        if family == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            array = array.T
        if "_layernorm.norms." in name:
            name, row = name.removesuffix(".weight").rsplit(".norms.", 1)
            mapped = names.get_name(name) + ".weight"
            count = config["num_attention_heads" if "q_layernorm" in name else "num_key_value_heads"]
            found.setdefault(mapped, np.zeros((count, len(array)), np.float32))[int(row)] = array
            continue
        mapped = names.get_name(name, (".weight", ".bias"))
        assert mapped is not None, name
        found[mapped] = array
    return found


def tokens(count: int) -> dict[str, Any]:
    """A byte-level tokenizer of so many tokens, with a merge."""
    letters = [chr(33 + number) for number in range(94)] + [chr(256 + number) for number in range(count)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", '!"', *letters][:count],
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [1] * (count - 3),
        "tokenizer.ggml.merges": ['! "'],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def sentence_pieces(words: tuple[str, ...] = ("▁h", "el", "lo", "▁hel", "▁hello"), **keys: Any) -> dict[str, Any]:
    """A SentencePiece tokenizer: control tokens, all bytes, letters, and words with falling scores."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz<>/|"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [2, CONTROL, CONTROL] + [BYTE] * 256 + [1] * (len(names) - 259),
        "tokenizer.ggml.scores": [0.0] * 259 + [-1e6] * len(letters) + [-float(n) for n in range(len(words))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | keys


def random_model(path: Path, arch: str, vocabulary: int, keys: dict[str, Any]) -> Path:
    """A model of two layers of random weights, without torch."""
    hidden, neurons, heads, key_heads = 32, 64, 4, 2
    chance = np.random.default_rng(0)
    sizes = {
        "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_output": (hidden, hidden),
        "attn_k": (key_heads * 8, hidden), "attn_v": (key_heads * 8, hidden), "ffn_gate": (neurons, hidden),
        "ffn_up": (neurons, hidden), "ffn_down": (hidden, neurons),
    }  # fmt: skip
    if arch == "gemma2":
        sizes |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
    tensors = {
        f"blk.{layer}.{name}.weight": chance.standard_normal(s) for layer in range(2) for name, s in sizes.items()
    }
    if arch == "qwen2":
        rows = {"attn_q": hidden, "attn_k": key_heads * 8, "attn_v": key_heads * 8}
        tensors |= {
            f"blk.{layer}.{name}.bias": chance.standard_normal(n) for layer in range(2) for name, n in rows.items()
        }
    tensors |= {
        "token_embd.weight": chance.standard_normal((vocabulary, hidden)),
        "output_norm.weight": np.ones(hidden),
    }
    common = {
        "block_count": 2, "context_length": 128, "embedding_length": hidden, "feed_forward_length": neurons,
        "attention.head_count": heads, "attention.head_count_kv": key_heads,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500.0,
    }  # fmt: skip
    return write(path, arch, common | keys, tensors, Kind.Q8_0)
