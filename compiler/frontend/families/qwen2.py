"""Qwen 2 and 2.5 (arXiv 2407.10671): LLaMA with biases of queries, keys and values that no key tells of."""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, Sizes, decoder, factors, sizes
from stic.compiler.frontend.families.llama import gated, layers, rms, stems
from stic.compiler.frontend.families.rotary import rotary
from stic.compiler.frontend.families.windows import windows
from stic.runtime.architecture import Architecture, Attention, HeadNorm, Norm, Norms

DEFAULTS = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip


def qwen_windows(config: Config, size: Sizes) -> list[int | None]:
    """Layers from max_window_layers on have the window, but only if use_sliding_window says so."""
    used, first = config.flag("use_sliding_window"), config.whole("max_window_layers", 0, least=0)
    found = windows(config, size.layers, lambda layer: used and layer >= first)
    if not used and any(found):
        raise config.refuse("layer_types", "but use_sliding_window is false: mend one of them")
    return found


def make(config: Config, head_norm: HeadNorm | None = None) -> Made:
    """The architecture, with or without a norm of each query and key."""
    size = sizes(config)
    turns, context = rotary(config, size.head_dim)
    norm, norms = rms(config), Norms(input=rms(config))
    kind: Norm | None = None if head_norm is None else norm
    attention = [
        Attention(size.heads, size.key_heads, size.head_dim, norms, head_norm, kind, rotary=0, window=window)
        for window in qwen_windows(config, size)
    ]
    made = decoder(config, size, layers(attention, gated(config, size, norms)), norm, (turns,), context=context)
    return Made(made, factors(made))


def _names(_: Config, __: Architecture) -> Names:
    return stems(("query", "key", "value"))


QWEN2 = Family(types=("qwen2",), make=make, names=_names, prefix="model.", defaults=DEFAULTS)
