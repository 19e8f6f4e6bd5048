"""GPT-2 (Radford et al., 2019): layer norms, learned positions, no gate; weights are stored (in, out)."""

from __future__ import annotations

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
)
from stic.compiler.frontend.families.llama import layers
from stic.runtime.architecture import Architecture, Attention, Embedding, FeedForward, Norm, Norms


def _make(config: Config) -> Made:
    hidden, heads, count = config.whole("n_embd"), config.whole("n_head"), config.whole("n_layer")
    if hidden % heads:
        raise config.refuse("n_head", f"expected a divisor of n_embd {hidden}")
    neurons, context = config.whole("n_inner", 4 * hidden), config.whole("n_positions")
    size = Sizes(hidden, count, heads, heads, hidden // heads, neurons, config.whole("vocab_size"), context)
    norm = Norm("layer", config.number("layer_norm_epsilon"))
    activation = config.choice("activation_function", ACTIVATIONS)
    feed_forward = FeedForward(neurons, activation, False, Norms(input=norm))
    blocks = layers([Attention(heads, heads, size.head_dim, Norms(input=norm))] * count, feed_forward)
    made = decoder(config, size, blocks, norm, embedding=Embedding(positions=context))
    scale = size.head_dim**-0.5 if config.flag("scale_attn_weights") else 1.0
    deeper = config.flag("scale_attn_by_inverse_layer_idx")
    return Made(made, factors(made, [scale / (layer + 1 if deeper else 1) for layer in range(count)]))


def _names(config: Config, _: Architecture) -> Names:
    hidden, layer = config.whole("n_embd"), "transformer.h.{}."

    def turned(name: str, rows: tuple[int, int] | None = None) -> Stem:
        return Stem(f"{layer}{name}", bias=True, rows=rows, transposed=True)

    return Names(
        {
            "input": Stem(f"{layer}ln_1", bias=True),
            "query": turned("attn.c_attn", (0, hidden)),
            "key": turned("attn.c_attn", (hidden, hidden)),
            "value": turned("attn.c_attn", (2 * hidden, hidden)),
            "output": turned("attn.c_proj"),
        },
        {"input": Stem(f"{layer}ln_2", bias=True), "up": turned("mlp.c_fc"), "down": turned("mlp.c_proj")},
        {
            "embedding": Stem("transformer.wte"),
            "position": Stem("transformer.wpe"),
            "input": Stem("transformer.ln_f", bias=True),
            "head": Stem("lm_head"),
        },
    )


GPT2 = Family(
    types=("gpt2",),
    make=_make,
    names=_names,
    prefix="transformer.",
    defaults={
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
        "tie_word_embeddings": True, "bos_token_id": 50256, "eos_token_id": 50256,
    },
    ignored=("n_ctx", "reorder_and_upcast_attn"),  # the second is an order of sums
    buffers=(".attn.bias", ".attn.masked_bias"),
)  # fmt: skip
