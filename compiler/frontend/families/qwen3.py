"""Qwen 3 (arXiv 2505.09388): Qwen 2 without its biases, with a norm of each query and key before they turn."""

from __future__ import annotations

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, Stem
from stic.compiler.frontend.families.llama import biased, stems
from stic.compiler.frontend.families.qwen2 import DEFAULTS, make
from stic.runtime.architecture import Architecture


def _make(config: Config) -> Made:
    return make(config, head_norm="head")


def _names(config: Config, _: Architecture) -> Names:
    return head_normed(stems(biased(config)))


def head_normed(names: Names, offset: float = 0.0) -> Names:
    """Names with those of the norms of queries and keys."""
    norms = {
        f"{role}_norm": Stem(f"model.layers.{{}}.self_attn.{name}_norm", offset=offset)
        for role, name in (("query", "q"), ("key", "k"))
    }
    return Names({**names.attention, **norms}, names.feed_forward, names.outer)


QWEN3 = Family(types=("qwen3",), make=_make, names=_names, prefix="model.", defaults={**DEFAULTS, "head_dim": 128})
