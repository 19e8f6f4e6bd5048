"""Rotary positions as configurations spell them: frequencies and a magnitude, whatever the scaling is called.

Scalings extend a model to longer contexts than it was trained for:

    linear    frequencies / factor (kaiokendev, 2023)
    dynamic   another base beyond the original context ("NTK-aware"), there by length, here by a session's context
    llama3    low frequencies / factor, high ones kept, a ramp between them (arXiv 2407.21783)
    yarn      the same with a ramp over pairs, and a magnitude (arXiv 2309.00071)
    longrope  a divisor for each pair, one list for contexts within the original, another beyond (arXiv 2402.13753)

transformers 4 says `rope_theta` and `rope_scaling`, with `type` in old files; transformers 5 says `rope_parameters`,
one object or one for each kind of layer. The arithmetic is that of transformers' modeling_rope_utils.py, in double.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.families.config import Config, sensible
from stic.runtime.architecture import Rotary
from stic.runtime.errors import UnsupportedModelError

Doubles = NDArray[np.float64]
_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
        "original_max_position_embeddings",
    },
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor", "original_max_position_embeddings"},
}  # fmt: skip
_ALIASES = {"su": "longrope"}  # as the first Phi-3 spelled it
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def frequencies(theta: float, features: int, divisors: Doubles | float = 1.0) -> tuple[float, ...]:
    """Return theta ** (-2 i / features) / divisors for each pair i of `features` features, float32 values."""
    pairs = np.arange(0, features, 2, dtype=np.float64)
    return _rounded(1.0 / (np.asarray(divisors, np.float64) * theta ** (pairs / features)))


def rotary(config: Config, head_dim: int, kind: str | None = None) -> tuple[Rotary, int]:
    """Return the rotary positions of a configuration, and the longest context that they were made for.

    `kind` names the layers ("full_attention", "sliding_attention") where the configuration has several. Raises
    UnsupportedModelError for a scaling that is not known, and for a key of one that is not.
    """
    said = _parameters(config, kind)
    name = _name(said)
    if name not in _KEYS:
        raise UnsupportedModelError(
            f"{config.where}: its rotary positions are scaled by {name!r}; {', '.join(_KEYS)} are supported"
        )
    for key, value in said.items():
        if key not in _KEYS[name] | _COMMON and value is not None:
            raise UnsupportedModelError(
                f"{config.where}: its rotary positions say '{key}', which is not known for {name!r} and may change the"
                " computation: take the key out if the model works without it"
            )
    context = config.whole("max_position_embeddings")
    numbers = _Numbers(config.where, name, {**said, "max_position_embeddings": context})
    features = int(head_dim * numbers.get("partial_rotary_factor", 1.0))
    if not 2 <= features <= head_dim or features % 2:
        raise UnsupportedModelError(f"{config.where}: {features} of {head_dim} features of a head cannot turn in pairs")
    theta = numbers.get("rope_theta", 10_000.0)
    if theta <= 1:
        raise numbers.refused("rope_theta", "expected a base above 1")
    return _SCALINGS[name](numbers, theta, features)


class _Numbers:
    """The keys of one scaling."""

    def __init__(self, where: str, name: str, said: Mapping[str, Any]) -> None:
        self._where, self._name, self._said = where, name, said

    def get(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._said.get(key)
        value = default if value is None else value
        if value is None or not sensible(value):
            raise self.refused(key, f"{self._name} needs a number above 0 there")
        return float(value)

    def refused(self, key: str, why: str) -> UnsupportedModelError:
        """An error that names a key and its value."""
        return UnsupportedModelError(f"{self._where}: {key} of rotary positions is {self._said.get(key)!r}; {why}")

    def __contains__(self, key: str) -> bool:
        return self._said.get(key) is not None

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._said.get(key)
        return default if value is None else bool(value)

    def listed(self, key: str, count: int) -> Doubles:
        """A positive number for each of `count` pairs."""
        value = self._said.get(key)
        fits = isinstance(value, list) and all(map(sensible, value))
        if not fits or value is None or len(value) != count:
            raise UnsupportedModelError(
                f"{self._where}: {key} of rotary positions is not a list of {count} numbers above 0, one for each pair"
            )
        return np.array(value, np.float64)

    @property
    def context(self) -> int:
        return int(self.get("max_position_embeddings"))

    @property
    def original(self) -> float:
        """The context before it was extended."""
        found = self.get("original_max_position_embeddings", self.context)
        if found <= 1:
            raise self.refused("original_max_position_embeddings", "expected more than one token")
        return found


def _parameters(config: Config, kind: str | None) -> dict[str, Any]:
    """The object that speaks of layers of a kind, with the base and the share of features that turns in it."""
    new, old = config.raw("rope_parameters", None), config.raw("rope_scaling", None)
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise config.refuse(key, "expected an object")
    local = kind == "sliding_attention"
    if kind is not None and new is not None:
        if not all(isinstance(value, dict | None) for value in new.values()):
            raise config.refuse("rope_parameters", "expected an object for each kind of layer")
        found = dict(new.get(kind) or {})
    else:  # version 4 scales those layers only that see everything
        found = {} if local else dict(old or new or {})
    others = {
        "rope_theta": config.raw("rope_local_base_freq" if local else "rope_theta", None),
        "partial_rotary_factor": config.raw("partial_rotary_factor", None),
    }
    found = {**others, **{key: value for key, value in found.items() if value is not None}}
    outer = config.raw("original_max_position_embeddings", None)  # transformers prefers it to what the object says
    if outer is not None and "original_max_position_embeddings" in _KEYS.get(_name(found), ()):
        found["original_max_position_embeddings"] = outer
    return found


def _name(said: Mapping[str, Any]) -> str:
    name = str(said.get("rope_type", said.get("type", "default")))
    return _ALIASES.get(name, name)


def _rounded(values: Doubles) -> tuple[float, ...]:
    return tuple(float(value) for value in values.astype(np.float32))


def _default(numbers: _Numbers, theta: float, features: int) -> tuple[Rotary, int]:
    return Rotary(frequencies(theta, features)), numbers.context


def _linear(numbers: _Numbers, theta: float, features: int) -> tuple[Rotary, int]:
    return Rotary(frequencies(theta, features, numbers.get("factor"))), numbers.context


def _dynamic(numbers: _Numbers, theta: float, features: int) -> tuple[Rotary, int]:
    """Beyond the original context, the base is that of the longest one: keys in a cache keep their rotation."""
    factor, original = numbers.get("factor"), numbers.context
    context = int(original * factor)
    stretch = (factor * context / original - (factor - 1)) ** (features / max(features - 2, 1))
    plain = Rotary(frequencies(theta, features))
    if context <= original:
        return plain, original
    return replace(plain, long=Rotary(frequencies(theta * stretch, features)), switch=original), context


def _llama3(numbers: _Numbers, theta: float, features: int) -> tuple[Rotary, int]:
    factor, original = numbers.get("factor"), numbers.original
    low, high = numbers.get("low_freq_factor"), numbers.get("high_freq_factor")
    if low >= high:
        raise numbers.refused("low_freq_factor", f"expected less than high_freq_factor {high:g}")
    plain = theta ** -(np.arange(0, features, 2, dtype=np.float64) / features)
    turns = original * plain / (2 * math.pi)  # of a pair within the original context
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return Rotary(_rounded((1 - share) * plain / factor + share * plain)), numbers.context


def _yarn(numbers: _Numbers, theta: float, features: int) -> tuple[Rotary, int]:
    original = numbers.original
    factor = numbers.get("factor", numbers.context / original)

    def pair(turns: float) -> float:  # the pair that turns so often within the original context
        return features * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(numbers.get("beta_fast", 32.0)), pair(numbers.get("beta_slow", 1.0))
    if numbers.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, features - 1)
    last = last + 0.001 if first == last else last
    ramp = np.clip((np.arange(features // 2, dtype=np.float64) - first) / (last - first), 0.0, 1.0)
    plain = theta ** -(np.arange(0, features, 2, dtype=np.float64) / features)
    context = max(numbers.context, int(original * factor))
    return Rotary(_rounded(plain / factor * ramp + plain * (1 - ramp)), _magnitude(numbers, factor)), context


def _magnitude(numbers: _Numbers, factor: float) -> float:
    """What YaRN multiplies cosines and sines by (section 3.4); DeepSeek has a quotient of two."""

    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if "attention_factor" in numbers:
        return numbers.get("attention_factor")
    if "mscale" in numbers and "mscale_all_dim" in numbers:
        return grown(numbers.get("mscale")) / grown(numbers.get("mscale_all_dim"))
    return grown(1.0)


def _longrope(numbers: _Numbers, theta: float, features: int) -> tuple[Rotary, int]:
    original, pairs = numbers.original, features // 2
    factor = numbers.get("factor", numbers.context / original)
    grown = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    magnitude = numbers.get("attention_factor", grown)
    short, long = (
        Rotary(frequencies(theta, features, numbers.listed(key, pairs)), magnitude)
        for key in ("short_factor", "long_factor")
    )
    return replace(short, long=long, switch=int(original)), numbers.context


_SCALINGS: dict[str, Callable[[_Numbers, float, int], tuple[Rotary, int]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
