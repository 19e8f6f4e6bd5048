"""Small random decoders of every family, made and computed by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stic.compiler.decoder.forward import Cache, logits
from stic.compiler.decoder.model import Decoder

VOCABULARY, TOKENS = 101, 64
CHUNKS = ((0, 1), (1, 17), (17, 40), (40, TOKENS))
_ROPE = {"rope_theta": 500.0, "rope_type": "default"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500.0,
}  # fmt: skip
_SHORT, _LONG = [1.0, 1.3, 2.0], [2.0, 5.0, 9.0]
LONGROPE = {"rope_type": "longrope", "short_factor": _SHORT, "long_factor": _LONG, "rope_theta": 500.0}
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_parameters": _ROPE,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_PHI: dict[str, Any] = {**_BASE, "original_max_position_embeddings": 128, "tie_word_embeddings": False}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 36, "n_head": 6, "n_layer": 2, "n_positions": 128, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 36, "num_attention_heads": 6, "num_hidden_layers": 2, "ffn_dim": 52,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GRANITE = {
    "embedding_multiplier": 12.0, "attention_multiplier": 0.3, "residual_multiplier": 0.22, "logits_scaling": 8.0,
}  # fmt: skip
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

# What it is -> (model_type, what differs from the base)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-one-key-head-and-biases": (
        "llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-odd-sizes": (
        "llama",
        {
            "hidden_size": 35, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 10,
            "intermediate_size": 51,
        },
    ),
    "llama-wide-heads": ("llama", {"head_dim": 20}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}}),
    "llama-dynamic-beyond": (
        "llama",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0},
        },
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-yarn-mscale": ("llama", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}}),
    "llama-yarn-attention-factor": (
        "llama", {"rope_parameters": {**YARN, "attention_factor": 1.2, "beta_fast": 8.0, "beta_slow": 2.0}},
    ),
    "llama-yarn-untruncated": ("llama", {"rope_parameters": {**YARN, "truncate": False}}),
    "mistral-window": ("mistral", {"sliding_window": 9}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen2-window-not-used": ("qwen2", {"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 0}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-windows": (
        "qwen3", {"head_dim": 8, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "smollm3-list": ("smollm3", {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 9}),
    "gemma": ("gemma", {"head_dim": 12}),
    "gemma2": ("gemma2", {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 9}),
    "gemma2-all-slide": (
        "gemma2", {"head_dim": 12, "sliding_window": 9, "layer_types": ["sliding_attention", "sliding_attention"]},
    ),
    "gemma3_text": (
        "gemma3_text",
        {"head_dim": 12, "sliding_window": 9, "num_hidden_layers": 7, "rope_parameters": _GEMMA3_ROPE},
    ),
    "gemma3_text-cap": (
        "gemma3_text",
        {
            "head_dim": 12, "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": _GEMMA3_ROPE, "final_logit_softcapping": 4.0,
        },
    ),
    "phi3": ("phi3", {**_PHI, "sliding_window": 9}),
    "phi3-longrope-short": (
        "phi3", {**_PHI, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    ),
    "phi3-longrope-long": (
        "phi3", {**_PHI, "original_max_position_embeddings": 32, "rope_parameters": LONGROPE},
    ),
    "phi3-partial": (
        "phi3",
        {
            **_PHI, "hidden_size": 48, "original_max_position_embeddings": 32, "tie_word_embeddings": True,
            "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75, "attention_factor": 1.3},
        },
    ),
    "granite": ("granite", _GRANITE),
    "granite-biases": ("granite", {**_GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "stablelm": (
        "stablelm", {"hidden_size": 48, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.25}},
    ),
    "stablelm-parallel": (
        "stablelm",
        {
            "hidden_size": 48, "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5},
        },
    ),
    "stablelm-one-key-head": ("stablelm", {"hidden_size": 48, "num_key_value_heads": 1, "qk_layernorm": True}),
    "gpt2": ("gpt2", _GPT2),
    "gpt2-deeper": (
        "gpt2",
        {**_GPT2, "n_inner": 31, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
    ),
    "gpt2-unscaled": ("gpt2", {**_GPT2, "scale_attn_weights": False, "activation_function": "gelu"}),
    "opt": ("opt", _OPT),
    "opt-350m": ("opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    "opt-no-biases": ("opt", {**_OPT, "enable_bias": False, "tie_word_embeddings": False}),
    "opt-no-last-norm": ("opt", {**_OPT, "_remove_final_layer_norm": True}),
}  # fmt: skip


def build(case: str, **changes: Any) -> Any:
    """A model of a case, in float32, with weights that leave nothing near its usual value."""
    kind, keys = CASES[case]
    base = {} if kind in ("gpt2", "opt", "phi3") else _BASE
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, **{**base, **keys, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.2 * parameter.shape[-1] ** -0.5)
    return model


def save(model: Any, folder: Path, version: int = 5) -> Path:
    """Save a model; `version` 4 spells its configuration as transformers 4 did."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    keys = json.loads(path.read_text())
    if version == 4:
        path.write_text(json.dumps(_old(keys)))
    return folder


def _old(keys: dict[str, Any]) -> dict[str, Any]:
    keys = dict(keys)
    keys["torch_dtype"] = keys.pop("dtype", "float32")
    rope = keys.pop("rope_parameters", None)
    if keys["model_type"] == "gemma3_text":
        keys.pop("layer_types")
        keys["sliding_window_pattern"] = keys.pop("_sliding_window_pattern", 6)
        full, keys["rope_local_base_freq"] = rope["full_attention"], rope["sliding_attention"]["rope_theta"]
        rope = dict(full)
    elif keys["model_type"] in ("gemma2", "qwen2", "qwen3", "smollm3"):
        keys.pop("layer_types", None)
    if rope is not None:
        keys["rope_theta"] = rope.pop("rope_theta")
        share = rope.pop("partial_rotary_factor", None)
        if share is not None:
            keys["partial_rotary_factor"] = share
        kind = rope.pop("rope_type")
        keys["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return keys


def tokens(seed: int = 0) -> np.ndarray:
    """Two texts."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, (2, TOKENS))


def expected(model: Any, ids: np.ndarray) -> np.ndarray:
    """What transformers computes."""
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()


def gap(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest logit."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def in_chunks(decoder: Decoder, ids: np.ndarray) -> np.ndarray:
    """Logits computed a few tokens at a time, over a cache for the whole text."""
    cache = Cache(decoder.architecture, len(ids), ids.shape[1])
    return np.concatenate([logits(decoder, ids[:, first:end], cache) for first, end in CHUNKS], axis=1)
