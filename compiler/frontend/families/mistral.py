"""Mistral (arXiv 2310.06825): LLaMA with a window over all layers, where one is told."""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, decoder, factors, sizes
from stic.compiler.frontend.families.llama import gated, layers, rms, stems
from stic.compiler.frontend.families.rotary import rotary
from stic.runtime.architecture import Architecture, Attention, Norms


def make(config: Config) -> Made:
    """The architecture; without sliding_window, every layer sees everything."""
    size = sizes(config)
    turns, context = rotary(config, size.head_dim)
    norms = Norms(input=rms(config))
    window = None if config.raw("sliding_window", None) is None else config.whole("sliding_window")
    attention = Attention(size.heads, size.key_heads, size.head_dim, norms, rotary=0, window=window)
    blocks = layers([attention] * size.layers, gated(config, size, norms))
    made = decoder(config, size, blocks, rms(config), (turns,), context=context)
    return Made(made, factors(made))


def _names(_: Config, __: Architecture) -> Names:
    return stems()


MISTRAL = Family(
    types=("mistral",),
    make=make,
    names=_names,
    prefix="model.",
    defaults={
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, "sliding_window": 4096,
        "bos_token_id": 1, "eos_token_id": 2,
    },
)  # fmt: skip
