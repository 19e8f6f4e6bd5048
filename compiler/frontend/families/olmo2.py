"""OLMo 2 (arXiv 2501.00656): LLaMA with norms of branches in place of norms of inputs, and of all queries and keys.

The norm of queries goes over all heads together, so a part of the heads would have another one.
"""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, Stem, decoder, factors, sizes
from stic.compiler.frontend.families.llama import biased, gated, layers, rms, stems
from stic.compiler.frontend.families.qwen3 import head_normed
from stic.compiler.frontend.families.rotary import rotary
from stic.runtime.architecture import Architecture, Attention, Norms


def _make(config: Config) -> Made:
    size = sizes(config)
    turns, context = rotary(config, size.head_dim)
    norm, norms = rms(config), Norms(branch=rms(config))
    attention = Attention(size.heads, size.key_heads, size.head_dim, norms, "whole", norm, rotary=0)
    blocks = layers([attention] * size.layers, gated(config, size, norms))
    made = decoder(config, size, blocks, norm, (turns,), context=context)
    return Made(made, factors(made))


def _names(config: Config, _: Architecture) -> Names:
    plain, layer = head_normed(stems(biased(config))), "model.layers.{}."
    return Names(
        {**plain.attention, "branch": Stem(f"{layer}post_attention_layernorm")},
        {**plain.feed_forward, "branch": Stem(f"{layer}post_feedforward_layernorm")},
        plain.outer,
    )


OLMO2 = Family(
    types=("olmo2",),
    make=_make,
    names=_names,
    prefix="model.",
    defaults={
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "rope_theta": 10000.0, "eos_token_id": 50279,
    },
)  # fmt: skip
