"""LLaMA 2 and 3, TinyLlama, SmolLM2 (arXiv 2302.13971): what the other families are changes of."""

from __future__ import annotations

from collections.abc import Sequence

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import (
    ACTIVATIONS,
    Family,
    Made,
    Names,
    Sizes,
    Stem,
    decoder,
    factors,
    sizes,
)
from stic.compiler.frontend.families.rotary import rotary
from stic.runtime.architecture import Architecture, Attention, Block, FeedForward, Norm, Norms

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")
DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def rms(config: Config) -> Norm:
    """The norm of nearly every family."""
    return Norm("rms", config.number("rms_norm_eps"))


def gated(config: Config, size: Sizes, norms: Norms) -> FeedForward:
    """A gated feed-forward block, with the activation of `hidden_act`."""
    return FeedForward(size.neurons, config.choice("hidden_act", ACTIVATIONS), True, norms)


def layers(attention: Sequence[Attention], feed_forward: FeedForward) -> list[Block]:
    """Layers of an attention block and a feed-forward block, which is the same in all of them."""
    return [block for one in attention for block in (one, feed_forward)]


def stems(biased: Sequence[str] = (), offset: float = 0.0) -> Names:
    """Names of LLaMA, which most families keep; `biased`: matrices that have biases; `offset`: of every gamma."""
    layer = "model.layers.{}."
    attention = zip(("query", "key", "value", "output"), MATRICES, strict=True)
    return Names(
        {
            "input": Stem(f"{layer}input_layernorm", offset=offset),
            **{role: Stem(f"{layer}self_attn.{name}", role in biased) for role, name in attention},
        },
        {
            "input": Stem(f"{layer}post_attention_layernorm", offset=offset),
            **{role: Stem(f"{layer}mlp.{role}_proj", role in biased) for role in ("gate", "up", "down")},
        },
        {"embedding": Stem("model.embed_tokens"), "input": Stem("model.norm", offset=offset), "head": Stem("lm_head")},
    )


def biased(config: Config) -> list[str]:
    """Matrices with biases, by the keys of LLaMA."""
    found = ["query", "key", "value", "output"] if config.flag("attention_bias") else []
    return found + (["gate", "up", "down"] if config.flag("mlp_bias") else [])


def _make(config: Config) -> Made:
    size = sizes(config)
    turns, context = rotary(config, size.head_dim)
    norms = Norms(input=rms(config))
    attention = Attention(size.heads, size.key_heads, size.head_dim, norms, rotary=0)
    blocks = layers([attention] * size.layers, gated(config, size, norms))
    made = decoder(config, size, blocks, rms(config), (turns,), context=context)
    return Made(made, factors(made))


def _names(config: Config, _: Architecture) -> Names:
    return stems(biased(config))


LLAMA = Family(types=("llama",), make=_make, names=_names, prefix="model.", defaults=DEFAULTS)
