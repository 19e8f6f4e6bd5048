"""Gemma (arXiv 2403.08295): LLaMA with wide heads, norms that multiply by 1 + w, an embedding times sqrt(hidden)."""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import (
    ACTIVATIONS,
    Family,
    Made,
    Names,
    Sizes,
    decoder,
    factors,
    sizes,
)
from stic.compiler.frontend.families.llama import biased, layers, rms, stems
from stic.compiler.frontend.families.rotary import rotary
from stic.runtime.architecture import Architecture, Attention, Embedding, FeedForward, Norms

OFFSET = 1.0  # of every gamma, as files hold it
DEFAULTS = {
    "vocab_size": 256000, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "rope_theta": 10000.0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


def embedding(size: Sizes) -> Embedding:
    """Rows times the root of their length."""
    return Embedding(multiplier=float(size.hidden) ** 0.5)


def _make(config: Config) -> Made:
    size = sizes(config)
    turns, context = rotary(config, size.head_dim)
    norms = Norms(input=rms(config))
    attention = Attention(size.heads, size.key_heads, size.head_dim, norms, rotary=0)
    # The first release says "gelu" in hidden_act and computes the other form; hidden_activation overrides it.
    old = config.choice("hidden_act", {**ACTIVATIONS, "gelu": "gelu_tanh"})
    activation = old if "hidden_activation" not in config else config.choice("hidden_activation", ACTIVATIONS)
    config.raw("hidden_activation", None)
    feed_forward = FeedForward(size.neurons, activation, True, norms)
    blocks = layers([attention] * size.layers, feed_forward)
    made = decoder(config, size, blocks, rms(config), (turns,), embedding(size), context=context)
    return Made(made, factors(made))


def _names(config: Config, _: Architecture) -> Names:
    return stems(biased(config), OFFSET)


GEMMA = Family(
    types=("gemma",),
    make=_make,
    names=_names,
    prefix="model.",
    defaults={
        **DEFAULTS, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh",
    },
)  # fmt: skip
