"""Gemma 2 (arXiv 2408.00118): Gemma with norms of branches, caps of scores and logits, every other layer a window."""

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
from stic.compiler.frontend.families.gemma import DEFAULTS as GEMMA
from stic.compiler.frontend.families.gemma import OFFSET, embedding
from stic.compiler.frontend.families.llama import biased, layers, rms, stems
from stic.compiler.frontend.families.rotary import rotary
from stic.compiler.frontend.families.windows import windows
from stic.runtime.architecture import Architecture, Attention, FeedForward, Norms, Rotary

DEFAULTS = {
    **GEMMA, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}  # fmt: skip


def assemble(
    config: Config, size: Sizes, attention: Sequence[Attention], rotaries: tuple[Rotary, ...], context: int
) -> Made:
    """The rest around attention blocks, which Gemma 2 and 3 share."""
    norm = rms(config)
    activation = config.choice("hidden_activation", ACTIVATIONS)
    feed_forward = FeedForward(size.neurons, activation, True, Norms(input=norm, branch=norm))
    blocks = layers(attention, feed_forward)
    cap = cap_of(config, "final_logit_softcapping")
    made = decoder(config, size, blocks, norm, rotaries, embedding(size), cap, context)
    return Made(made, factors(made, [config.number("query_pre_attn_scalar") ** -0.5] * size.layers))


def cap_of(config: Config, key: str) -> float | None:
    """What tanh holds scores or logits within; None: nothing does."""
    return None if config.raw(key, None) is None else config.number(key)


def _make(config: Config) -> Made:
    size = sizes(config)
    turns, context = rotary(config, size.head_dim)
    norms, cap = Norms(input=rms(config), branch=rms(config)), cap_of(config, "attn_logit_softcapping")
    attention = [
        Attention(size.heads, size.key_heads, size.head_dim, norms, rotary=0, window=window, softcap=cap)
        for window in windows(config, size.layers, lambda layer: layer % 2 == 0)
    ]
    return assemble(config, size, attention, (turns,), context)


def names(config: Config, _: Architecture) -> Names:
    """Names of Gemma with four norms a layer."""
    plain, layer = stems(biased(config), OFFSET), "model.layers.{}."
    return Names(
        {**plain.attention, "branch": Stem(f"{layer}post_attention_layernorm", offset=OFFSET)},
        {
            **plain.feed_forward,
            "input": Stem(f"{layer}pre_feedforward_layernorm", offset=OFFSET),
            "branch": Stem(f"{layer}post_feedforward_layernorm", offset=OFFSET),
        },
        plain.outer,
    )


GEMMA2 = Family(
    types=("gemma2",),
    make=_make,
    names=names,
    prefix="model.",
    defaults={**DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ignored=("hidden_act", "sliding_window_size"),
)
