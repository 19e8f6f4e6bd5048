"""SmolLM 3: LLaMA in which every fourth layer has no positions (NoPE, arXiv 2501.18795)."""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, decoder, factors, sizes
from stic.compiler.frontend.families.llama import biased, gated, layers, rms, stems
from stic.compiler.frontend.families.rotary import rotary
from stic.compiler.frontend.families.windows import windows
from stic.runtime.architecture import Architecture, Attention, Norms


def _turns(config: Config, count: int) -> list[bool]:
    """Whether a layer's queries and keys turn: no_rope_layers has 1 where they do, whatever it is called."""
    interval = config.whole("no_rope_layer_interval")
    said = config.listed("no_rope_layers", count)
    return [bool((layer + 1) % interval) for layer in range(count)] if said is None else [bool(one) for one in said]


def _make(config: Config) -> Made:
    size = sizes(config)
    rotation, context = rotary(config, size.head_dim)
    turns = _turns(config, size.layers)
    slides = config.flag("use_sliding_window") and config.raw("sliding_window", None) is not None
    norms = Norms(input=rms(config))
    attention = [
        Attention(size.heads, size.key_heads, size.head_dim, norms, rotary=0 if turn else None, window=window)
        for turn, window in zip(
            turns, windows(config, size.layers, lambda layer: slides and not turns[layer]), strict=True
        )
    ]
    blocks = layers(attention, gated(config, size, norms))
    made = decoder(config, size, blocks, rms(config), (rotation,), context=context)
    return Made(made, factors(made))


def _names(config: Config, _: Architecture) -> Names:
    return stems(biased(config))


SMOLLM3 = Family(
    types=("smollm3",),
    make=_make,
    names=_names,
    prefix="model.",
    defaults={
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 2000000.0, "use_sliding_window": False,
        "no_rope_layer_interval": 4, "bos_token_id": 128000, "eos_token_id": 128001,
    },
    ignored=("max_window_layers",),
)  # fmt: skip
