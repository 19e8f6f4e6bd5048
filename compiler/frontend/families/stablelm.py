"""StableLM (arXiv 2402.17834): layer norms, a part of each head that turns, and where told so parallel branches."""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, Stem, decoder, factors, sizes
from stic.compiler.frontend.families.llama import gated, layers, stems
from stic.compiler.frontend.families.rotary import rotary
from stic.runtime.architecture import Architecture, Attention, FeedForward, Norm, Norms


def _make(config: Config) -> Made:
    size = sizes(config)
    turns, context = rotary(config, size.head_dim)
    norm = Norm("layer", config.number("layer_norm_eps"))
    norms, kind = Norms(input=norm), norm if config.flag("qk_layernorm") else None
    attention = Attention(
        size.heads, size.key_heads, size.head_dim, norms, "head" if kind else None, kind, rotary=0
    )  # fmt: skip
    plain = gated(config, size, norms)
    parallel = config.flag("use_parallel_residual")
    feed_forward = FeedForward(plain.neurons, plain.activation, True, norms, parallel=parallel)
    made = decoder(config, size, layers([attention] * size.layers, feed_forward), norm, (turns,), context=context)
    return Made(made, factors(made))


def _names(config: Config, _: Architecture) -> Names:
    size, layer = sizes(config), "model.layers.{}."
    plain = stems(("query", "key", "value") if config.flag("use_qkv_bias") else ())
    first, second, last = (Stem(name, bias=True) for name in (
        f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm"
    ))  # fmt: skip
    heads = {
        f"{role}_norm": Stem(f"{layer}self_attn.{name}_layernorm.norms.{{}}", each=count)
        for role, name, count in (("query", "q", size.heads), ("key", "k", size.key_heads))
    }
    shared = config.flag("use_parallel_residual")  # both branches read one norm
    return Names(
        {**plain.attention, **heads, "input": first},
        {**plain.feed_forward, "input": first if shared else second},
        {**plain.outer, "input": last},
    )


STABLELM = Family(
    types=("stablelm",),
    make=_make,
    names=_names,
    prefix="model.",
    defaults={
        "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
        "bos_token_id": 0, "eos_token_id": 0,
    },
)  # fmt: skip
