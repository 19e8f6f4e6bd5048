"""Gemma 3's text model (arXiv 2503.19786): Gemma 2 with norms of queries and keys, and a base of positions for windows.

Five of six layers have a window; scaled positions hold for the sixth, which sees everything.
"""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, sizes
from stic.compiler.frontend.families.gemma import OFFSET
from stic.compiler.frontend.families.gemma2 import DEFAULTS, assemble, names
from stic.compiler.frontend.families.llama import rms
from stic.compiler.frontend.families.qwen3 import head_normed
from stic.compiler.frontend.families.rotary import rotary
from stic.compiler.frontend.families.windows import windows
from stic.runtime.architecture import Architecture, Attention, Norms

_FULL, _LOCAL = "full_attention", "sliding_attention"


def _make(config: Config) -> Made:
    size = sizes(config)
    (full, context), (local, _) = (rotary(config, size.head_dim, kind) for kind in (_FULL, _LOCAL))
    config.only("attn_logit_softcapping")  # transformers reads it and does not apply it
    norm = rms(config)
    period = config.whole("sliding_window_pattern")
    attention = [
        Attention(
            size.heads, size.key_heads, size.head_dim, Norms(input=norm, branch=norm), "head", norm,
            rotary=0 if window is None else 1, window=window,
        )
        for window in windows(config, size.layers, lambda layer: (layer + 1) % period != 0)
    ]  # fmt: skip
    return assemble(config, size, attention, (full, local), context)


def _names(config: Config, architecture: Architecture) -> Names:
    return head_normed(names(config, architecture), OFFSET)


GEMMA3 = Family(
    types=("gemma3_text",),
    make=_make,
    names=_names,
    prefix="model.",
    spellings=(  # of models that see images too: transformers 4, then 5
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", "model.language_model."),
    ),
    defaults={
        **DEFAULTS, "vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6,
    },
    ignored=("hidden_act", "_sliding_window_pattern"),
    apart=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
)  # fmt: skip
