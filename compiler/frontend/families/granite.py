"""Granite 3: LLaMA with constants that multiply the embedding, scores, branches and logits.

All four have defaults of 1 in transformers; a file without one is refused, for no model was trained so.
"""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, decoder, factors, sizes
from stic.compiler.frontend.families.llama import DEFAULTS, biased, gated, layers, rms, stems
from stic.compiler.frontend.families.rotary import rotary
from stic.runtime.architecture import Architecture, Attention, Embedding, Norms


def _make(config: Config) -> Made:
    size = sizes(config)
    turns, context = rotary(config, size.head_dim)
    norms = Norms(input=rms(config))
    attention = Attention(size.heads, size.key_heads, size.head_dim, norms, rotary=0)
    blocks = layers([attention] * size.layers, gated(config, size, norms))
    embedding = Embedding(multiplier=config.number("embedding_multiplier"))
    made = decoder(config, size, blocks, rms(config), (turns,), embedding, context=context)
    scores = [config.number("attention_multiplier")] * size.layers
    residual, logits = config.number("residual_multiplier"), 1.0 / config.number("logits_scaling")
    return Made(made, factors(made, scores, residual, logits))


def _names(config: Config, _: Architecture) -> Names:
    return stems(biased(config))


GRANITE = Family(types=("granite",), make=_make, names=_names, prefix="model.", defaults=DEFAULTS)
