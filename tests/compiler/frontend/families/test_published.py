"""Configurations as they are published: every key of them is known, and they mean what their models are."""

from typing import Any

import pytest

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.known import family_of
from stic.runtime.architecture import Architecture, Attention, FeedForward
from stic.runtime.errors import SticError

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "transformers_version": "4.42.3",
    "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
QWEN2_7B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
GEMMA2_9B = {
    "_name_or_path": "google/gemma-2-9b", "architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 16,
    "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
    "torch_dtype": "bfloat16", "transformers_version": "4.45.2", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA3_12B = {  # its text_config, as short as it is published
    "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "hidden_size": 3840,
    "intermediate_size": 15360, "model_type": "gemma3_text", "num_attention_heads": 16, "num_hidden_layers": 48,
    "num_key_value_heads": 8, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
}  # fmt: skip
PHI3_MINI = {
    "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
    "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
    "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "sliding_window": 2047, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2", "use_cache": True, "vocab_size": 32064,
}  # fmt: skip
OPT_125M = {
    "activation_dropout": 0.0, "activation_function": "relu", "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": True, "dropout": 0.1, "eos_token_id": 2,
    "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
    "model_type": "opt", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "prefix": "</s>",
    "torch_dtype": "float16", "use_cache": True, "vocab_size": 50272, "word_embed_proj_dim": 768,
}  # fmt: skip
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    # hidden, heads, key heads, head_dim, window of the first layer or 0, neurons, context
    "SmolLM2-135M": (SMOLLM2, (576, 9, 3, 64, 0, 1536, 8192)),
    "Qwen2-7B": (QWEN2_7B, (3584, 28, 4, 128, 0, 18944, 32768)),
    "gemma-2-9b": (GEMMA2_9B, (3584, 16, 8, 256, 4096, 14336, 8192)),
    "gemma-3-12b": (GEMMA3_12B, (3840, 16, 8, 256, 1024, 15360, 131072)),
    "Phi-3-mini-4k": (PHI3_MINI, (3072, 32, 32, 96, 2047, 8192, 4096)),
    "opt-125m": (OPT_125M, (768, 12, 12, 64, 0, 3072, 2048)),
}


def architecture(keys: dict[str, Any]) -> Architecture:
    """As the reader of directories makes it, without weights."""
    family = family_of(keys["model_type"], "config.json")
    config = Config(keys, "config.json", family.defaults)
    made = family.make(config)
    family.names(config, made.architecture)
    config.raw("eos_token_id", None)
    config.settle(family.ignored)
    return made.architecture


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_taken(name):
    keys, wanted = PUBLISHED[name]
    found = architecture(keys)
    attention, feed_forward = found.blocks[:2]
    assert isinstance(attention, Attention) and isinstance(feed_forward, FeedForward)
    sizes = (found.hidden, attention.heads, attention.key_heads, attention.head_dim, attention.window or 0)
    assert (*sizes, feed_forward.neurons, found.context) == wanted
    assert found.head.tied == (name not in ("Qwen2-7B", "Phi-3-mini-4k"))


def test_scaled_positions_of_gemma_3_hold_where_everything_is_seen():
    full, local = architecture(GEMMA3_12B).rotaries
    assert full.frequencies[0] == 1 / 8 and local.frequencies[0] == 1 and len(full.frequencies) == 128


ODD: list[Any] = [None, -1, 0, 1, 3, 2**40, 0.5, -0.0, 1e308, 1e-300, float("inf"), float("nan"), True]
ODD += ["x", "", [], [1], ["x"], {}, {"a": 1}]
ODD += [{"rope_type": kind, "factor": 1e-9} for kind in ("linear", "dynamic", "yarn", "longrope", "llama3", "", 3)]
ODD += [{"full_attention": {"rope_theta": 0}}, {"full_attention": None, "sliding_attention": 3}]
MORE = ("rope_parameters", "layer_types", "partial_rotary_factor", "original_max_position_embeddings")


@pytest.mark.parametrize("name", PUBLISHED)
def test_whatever_a_key_says_is_taken_or_refused_by_a_sentence(name):
    keys, _ = PUBLISHED[name]
    for key in (*keys, *MORE):
        for value in ODD:
            if key in ("hidden_size", "num_attention_heads", "head_dim") and isinstance(value, int) and value > 3:
                continue  # would be computed, at that size
            try:
                architecture({**keys, key: value})
            except SticError as error:
                assert "\n" not in str(error)
