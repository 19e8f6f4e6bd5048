"""Phi 3 and Phi 4 mini (arXiv 2404.14219): Mistral with fused projections and, for long contexts, LongRoPE."""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, Stem, sizes
from stic.compiler.frontend.families.llama import stems
from stic.compiler.frontend.families.mistral import make
from stic.runtime.architecture import Architecture


def _make(config: Config) -> Made:
    for key in ("full_attn_mod", "interpolate_factor"):  # of Phi 4 mini, which computes nothing with them
        config.only(key, 1)
    return make(config)


def _names(config: Config, _: Architecture) -> Names:
    size, plain, layer = sizes(config), stems(), "model.layers.{}."
    wide, narrow = size.heads * size.head_dim, size.key_heads * size.head_dim
    fused, both = f"{layer}self_attn.qkv_proj", f"{layer}mlp.gate_up_proj"
    return Names(
        {
            **plain.attention,
            "query": Stem(fused, rows=(0, wide)),
            "key": Stem(fused, rows=(wide, narrow)),
            "value": Stem(fused, rows=(wide + narrow, narrow)),
        },
        {
            **plain.feed_forward,
            "gate": Stem(both, rows=(0, size.neurons)),
            "up": Stem(both, rows=(size.neurons, size.neurons)),
        },
        plain.outer,
    )


PHI3 = Family(
    types=("phi3",),
    make=_make,
    names=_names,
    prefix="model.",
    defaults={
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 32000,
    },
)  # fmt: skip
