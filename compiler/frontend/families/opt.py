"""OPT (arXiv 2205.01068): layer norms, learned positions from row 2 on, ReLU without a gate.

OPT-350M normalises after each branch, has no last norm, and an embedding narrower than its layers, which a matrix
widens and another one narrows before the head: folded, embedding and head are two tables.
"""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import (
    ACTIVATIONS,
    Family,
    Made,
    Names,
    Recipe,
    Sizes,
    Stem,
    decoder,
    factors,
)
from stic.compiler.frontend.families.llama import layers
from stic.runtime.architecture import Architecture, Attention, Embedding, FeedForward, Norm, Norms

_SKIPPED = 2  # rows of the table of positions before that of the first token
_MATRICES = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj"))


def _make(config: Config) -> Made:
    hidden, heads, count = (
        config.whole(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )  # fmt: skip
    if hidden % heads:
        raise config.refuse("num_attention_heads", f"expected a divisor of hidden_size {hidden}")
    config.only("layer_norm_elementwise_affine", True)
    neurons, context = config.whole("ffn_dim"), config.whole("max_position_embeddings")
    size = Sizes(hidden, count, heads, heads, hidden // heads, neurons, config.whole("vocab_size"), context)
    norm, before = Norm("layer", 1e-5), config.flag("do_layer_norm_before")
    norms = Norms(input=norm) if before else Norms(post=norm)
    feed_forward = FeedForward(neurons, config.choice("activation_function", ACTIVATIONS), False, norms)
    blocks = layers([Attention(heads, heads, size.head_dim, norms)] * count, feed_forward)
    removed = config.flag("_remove_final_layer_norm")
    last = norm if before and not removed else None
    made = decoder(config, size, blocks, last, embedding=Embedding(positions=context))
    return Made(made, factors(made))


def _names(config: Config, architecture: Architecture) -> Names:
    bias, layer, outer = config.flag("enable_bias"), "model.decoder.layers.{}.", "model.decoder."
    place = "input" if config.flag("do_layer_norm_before") else "post"
    narrow = config.whole("word_embed_proj_dim", architecture.hidden) != architecture.hidden
    widen = Recipe((f"{outer}project_in.weight",)) if narrow else None
    narrower = Recipe((f"{outer}project_out.weight",), transposed=True) if narrow else None
    return Names(
        {
            place: Stem(f"{layer}self_attn_layer_norm", bias=True),
            **{role: Stem(f"{layer}self_attn.{name}", bias) for role, name in _MATRICES},
        },
        {
            place: Stem(f"{layer}final_layer_norm", bias=True),
            "up": Stem(f"{layer}fc1", bias),
            "down": Stem(f"{layer}fc2", bias),
        },
        {
            "embedding": Stem(f"{outer}embed_tokens", through=widen),
            "position": Stem(f"{outer}embed_positions", rows=(_SKIPPED, architecture.context)),
            "input": Stem(f"{outer}final_layer_norm", bias=True),
            "head": Stem("lm_head", through=narrower),
        },
    )


OPT = Family(
    types=("opt",),
    make=_make,
    names=_names,
    prefix="model.",
    defaults={
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
        "max_position_embeddings": 2048, "do_layer_norm_before": True, "num_attention_heads": 12,
        "activation_function": "relu", "enable_bias": True, "tie_word_embeddings": True, "bos_token_id": 2,
        "eos_token_id": 2,
    },
)  # fmt: skip
