"""Metadata of a GGUF file as a Hugging Face configuration, from which a family makes the architecture.

llama.cpp's converter writes what config.json says under names of its own, and leaves out what its code takes for
granted of an architecture: which layers have a window, the scale of scores, which gammas hold 1 + w (all do), and that
a model without `output.weight` is tied. What is taken for granted here is what llama.cpp's src/models does, unless
transformers, by which models are trained, does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Made
from stic.compiler.frontend.families.known import family_of
from stic.compiler.frontend.families.rotary import frequencies
from stic.compiler.frontend.gguf_file import GgufFile
from stic.compiler.frontend.gguf_metadata import Metadata
from stic.runtime.errors import UnsupportedModelError

Keys = dict[str, Any]
EMBEDDING, HEAD, ROTARY_DIVISORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
# Of an architecture, beside what is read: nothing that changes a token's computation.
_HARMLESS = (
    "vocab_size", "attention.value_length", "expert_used_count", "rope.scaling.finetuned", "tensor_data_layout",
    "use_parallel_residual", "rope.scaling.original_context_length",
)  # fmt: skip
_LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of those whose scores are scaled by hidden / heads (27B)


@dataclass(frozen=True)
class Arch:
    """What llama.cpp takes for granted of an architecture."""

    model_type: str  # of config.json
    more: Callable[[_Reader], Keys] = lambda _: {}  # keys beside the common ones
    interleaved: bool = False  # rotary pairs are neighbours: rows of queries and keys were permuted
    epsilon: str = "attention.layer_norm_rms_epsilon"


@dataclass(frozen=True)
class Said:
    """What a file says of its model."""

    name: str  # of its architecture
    arch: Arch
    made: Made


def read_config(file: GgufFile) -> Said:
    """Make the architecture, for now without the tokens that begin and end text.

    Raises UnsupportedModelError, by name, for an architecture that is not known and for a key that may change the
    computation and is not.
    """
    metadata = Metadata(file)
    name = metadata.text("general.architecture")
    kind = metadata.text("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(f"{file.path}: it holds a '{kind}', not a model; give the file of the model")
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path}: its architecture is '{name}'; {', '.join(ARCHITECTURES)} are supported"
        )
    if "split.count" in metadata and metadata.whole("split.count") > 1:
        raise UnsupportedModelError(
            f"{file.path}: it is one of {metadata.raw('split.count')} parts; join them with llama-gguf-split --merge"
        )
    reader = _Reader(file, metadata, name)
    arch = ARCHITECTURES[name]
    keys = reader.common(arch) | arch.more(reader)
    metadata.settle(f"{name}.", _HARMLESS)
    config = Config(keys, str(file.path))
    family = family_of(arch.model_type, config.where)
    made = family.make(config.with_defaults(family.defaults))
    return Said(name, arch, _divided(file, made, reader))


class _Reader:
    """The keys of one architecture, and sizes that are believed because the tensors have them."""

    def __init__(self, file: GgufFile, metadata: Metadata, name: str) -> None:
        self.file, self.metadata, self.name = file, metadata, name
        if EMBEDDING not in file or len(file.shape(EMBEDDING)) != 2:
            raise UnsupportedModelError(f"{file.path}: it has no matrix '{EMBEDDING}'; give the file of a whole model")
        self._widest = max(max(tensor.shape) for tensor in file.tensors.values())

    def key(self, key: str) -> str:
        return f"{self.name}.{key}"

    def __contains__(self, key: str) -> bool:
        return self.key(key) in self.metadata

    def size(self, key: str, default: int | None = None) -> int:
        """A size that some tensor has at least, so that a hostile one takes no memory."""
        return self.metadata.whole(self.key(key), default, self._widest)

    def number(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        return self.metadata.number(self.key(key), default, least)

    @property
    def layers(self) -> int:
        return self.metadata.whole(self.key("block_count"), most=len(self.file.tensors))

    @property
    def head_dim(self) -> int:
        heads, hidden = self.size("attention.head_count"), self.size("embedding_length")
        found = self.size("attention.key_length", max(hidden // heads, 1))
        if "attention.value_length" in self and self.size("attention.value_length") != found:
            raise self.metadata.refuse(self.key("attention.value_length"), f"expected that of keys, {found}")
        return found

    def common(self, arch: Arch) -> Keys:
        """The keys of nearly every architecture."""
        experts = self.metadata.raw(self.key("expert_count"))
        if experts is not None and (not isinstance(experts, int) or experts > 0):
            raise self.metadata.refuse(self.key("expert_count"), "mixtures of experts are not supported")
        if not self.metadata.flag(self.key("attention.causal"), True):
            raise self.metadata.refuse(self.key("attention.causal"), "only models that continue text are supported")
        rows, hidden = self.file.shape(EMBEDDING)
        if self.size("embedding_length") != hidden:
            raise self.metadata.refuse(self.key("embedding_length"), f"'{EMBEDDING}' has rows of {hidden}")
        heads = self.size("attention.head_count")
        epsilon = self.number(arch.epsilon)
        return {
            "model_type": arch.model_type,
            "hidden_size": hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("attention.head_count_kv", heads),
            "head_dim": self.head_dim,
            "intermediate_size": self.size("feed_forward_length"),
            "vocab_size": rows,
            "max_position_embeddings": self.metadata.whole(self.key("context_length")),
            "rms_norm_eps" if "rms" in arch.epsilon else "layer_norm_eps": epsilon,
            "tie_word_embeddings": HEAD not in self.file,
        } | self.rotary(arch)

    def rotary(self, arch: Arch) -> Keys:
        """How positions turn."""
        head_dim = self.head_dim
        features = self.size("rope.dimension_count", head_dim)
        if features > head_dim or (arch.interleaved and features != head_dim):
            raise self.metadata.refuse(self.key("rope.dimension_count"), f"a head has {head_dim} features")
        keys: Keys = {
            "rope_theta": self.number("rope.freq_base", 10_000.0, least=1.0),
            "partial_rotary_factor": (features + 0.5) / head_dim,  # times head_dim, rounded down: exactly so many
        }
        scaling = self.scaling(features // 2)
        if "original_max_position_embeddings" in scaling:  # which families look for outside, too
            keys["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
        return keys | ({"rope_scaling": scaling} if scaling else {})

    def scaling(self, pairs: int) -> Keys:
        """How positions were stretched, as `rope_scaling` says it."""
        kind = self.metadata.text(self.key("rope.scaling.type"), "none")
        legacy = "rope.scale_linear" in self
        original = self.key("rope.scaling.original_context_length")
        said: Keys = {}
        if any(name in self.file for name in FACTORS.values()):
            said = {key: self.divisors(name, pairs).tolist() for key, name in FACTORS.items()}
            said |= {"rope_type": "longrope", "original_max_position_embeddings": self.metadata.whole(original)}
            if "rope.scaling.attn_factor" in self:
                said["attention_factor"] = self.number("rope.scaling.attn_factor")
            if said["original_max_position_embeddings"] < 2:
                raise self.metadata.refuse(original, "expected 2 tokens or more")
        elif kind == "linear" or (kind == "none" and legacy):
            factor = self.number("rope.scale_linear" if legacy else "rope.scaling.factor")
            said = {"rope_type": "linear", "factor": factor}
        elif kind == "yarn":
            said = {"rope_type": "yarn", "factor": self.number("rope.scaling.factor")}
            said["original_max_position_embeddings"] = self.metadata.whole(original)
            for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
                said[key] = self.number(f"rope.scaling.yarn_{key}", default)
        elif kind not in ("none", "longrope"):
            raise self.metadata.refuse(self.key("rope.scaling.type"), "none, linear, yarn and longrope are supported")
        elif "rope.scaling.factor" in self and self.number("rope.scaling.factor") != 1.0:
            raise self.metadata.refuse(self.key("rope.scaling.factor"), "it is not said how positions are scaled")
        return said

    def divisors(self, name: str, pairs: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """A tensor that divides the frequency of each pair."""
        if name not in self.file or self.file.shape(name) != (pairs,):
            raise UnsupportedModelError(f"{self.file.path}: expected a tensor '{name}' of {pairs} numbers")
        found = self.file.rows(name, 0, pairs).astype(np.float64)
        if not (found > 0).all():
            raise UnsupportedModelError(f"{self.file.path}: '{name}' divides frequencies by what is not above 0")
        return found

    def windows(self, period: int, default: int | None = None) -> Keys:
        """Which layers have a window: all but every `period`-th, unless the file says which."""
        key, pattern = "attention.sliding_window", self.key("attention.sliding_window_pattern")
        if default is None and key not in self:
            return {"sliding_window": None, "layer_types": [_FULL] * self.layers}
        window = self.metadata.whole(self.key(key), default)
        said = self.metadata.raw(pattern)
        if isinstance(said, np.ndarray):
            slides = [bool(one) for one in self.metadata.numbers(pattern, self.layers)]
        else:
            period = self.metadata.whole(pattern, period)
            slides = [(layer + 1) % period != 0 for layer in range(self.layers)]
        return {"sliding_window": window, "layer_types": [_SLIDING if one else _FULL for one in slides]}


_FULL, _SLIDING = "full_attention", "sliding_attention"


def _divided(file: GgufFile, made: Made, reader: _Reader) -> Made:
    """`rope_freqs.weight` is how LLaMA 3 stretches positions: each frequency is divided by its own number."""
    if ROTARY_DIVISORS not in file:
        return made
    rotary, *others = made.architecture.rotaries or (None,)
    if rotary is None or others or rotary.long is not None:
        raise UnsupportedModelError(f"{file.path}: it has '{ROTARY_DIVISORS}', and no plain positions to divide")
    divisors = reader.divisors(ROTARY_DIVISORS, len(rotary.frequencies))
    theta = reader.number("rope.freq_base", 10_000.0)
    turned = replace(rotary, frequencies=frequencies(theta, rotary.features, divisors))
    return replace(made, architecture=replace(made.architecture, rotaries=(turned,)))


def _gemma_scale(reader: _Reader) -> Keys:
    """Scores are divided by the root of a head's features, and of the largest model by that of hidden / heads."""
    if "attention.scale" in reader:
        return {"query_pre_attn_scalar": reader.number("attention.scale") ** -2}
    large = reader.layers == _LARGE_GEMMA[reader.name]
    heads, hidden = reader.size("attention.head_count"), reader.size("embedding_length")
    return {"query_pre_attn_scalar": hidden // heads if large else reader.head_dim}


def _caps(reader: _Reader, **defaults: float | None) -> Keys:
    found: Keys = {}
    for key, default in defaults.items():
        found[key] = reader.number(key, default) if key in reader or default is not None else None
    return found


def _gemma2(reader: _Reader) -> Keys:
    caps = _caps(reader, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    return reader.windows(2, 4096) | caps | _gemma_scale(reader)


def _gemma3(reader: _Reader) -> Keys:
    local = {"rope_local_base_freq": reader.number("rope.freq_base_swa", 10_000.0, least=1.0)}
    return reader.windows(6) | _caps(reader, final_logit_softcapping=None) | _gemma_scale(reader) | local


def _phi3(reader: _Reader) -> Keys:
    """The window is 0 where there is none; llama.cpp does not apply one, transformers does."""
    key = reader.key("attention.sliding_window")
    found = reader.metadata.raw(key)
    return {"sliding_window": reader.metadata.whole(key) if found else None}


def _granite(reader: _Reader) -> Keys:
    finetuned = reader.key("rope.scaling.finetuned")
    if not reader.metadata.flag(finetuned, True):
        raise reader.metadata.refuse(finetuned, "granite without rotary positions is not supported")
    return {
        "embedding_multiplier": reader.number("embedding_scale"),
        "attention_multiplier": reader.number("attention.scale"),
        "residual_multiplier": reader.number("residual_scale"),
        "logits_scaling": reader.number("logit_scale"),
    }


def _stablelm(reader: _Reader) -> Keys:
    """Branches are parallel where the second has no norm of its own, whatever the file says."""
    return {
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in reader.file,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in reader.file,
    }


def _gpt2(reader: _Reader) -> Keys:
    return {
        "n_embd": reader.size("embedding_length"),
        "n_head": reader.size("attention.head_count"),
        "n_layer": reader.layers,
        "n_inner": reader.size("feed_forward_length"),
        "n_positions": reader.size("context_length"),
        "layer_norm_epsilon": reader.number("attention.layer_norm_epsilon"),
    }


_LAYER_NORM = "attention.layer_norm_epsilon"
ARCHITECTURES: Mapping[str, Arch] = {
    "llama": Arch("llama", interleaved=True),
    "qwen2": Arch("qwen2"),
    "qwen3": Arch("qwen3"),
    "smollm3": Arch("smollm3", interleaved=True),
    "gemma": Arch("gemma"),
    "gemma2": Arch("gemma2", _gemma2),
    "gemma3": Arch("gemma3_text", _gemma3),
    "phi3": Arch("phi3", _phi3),
    "granite": Arch("granite", _granite, interleaved=True),
    "olmo2": Arch("olmo2"),
    "stablelm": Arch("stablelm", _stablelm, epsilon=_LAYER_NORM),
    "gpt2": Arch("gpt2", _gpt2, epsilon=_LAYER_NORM),
}
