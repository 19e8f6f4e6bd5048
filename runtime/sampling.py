"""How the next token is chosen from logits."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from stic.runtime import native
from stic.runtime.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler, whose exact definition is runtime/src/sample.h. The default takes the likeliest token.

    Filters apply in this order: repetition penalty (arXiv 1909.05858), temperature, top_k, top_p (arXiv 1904.09751),
    min_p (arXiv 2407.01082). Raises InputError for values out of range.
    """

    temperature: float = 0.0  # above 1: more varied; 0: take the likeliest token
    top_k: int = 0  # draw from so many of the likeliest tokens; 0: from all
    top_p: float = 1.0  # draw from the likeliest tokens that together have this probability; 1: from all
    min_p: float = 0.0  # draw from tokens that have this part of the likeliest one's probability; 0: from all
    repetition_penalty: float = 1.0  # above 1: recent tokens become less likely; 1: they do not
    repetition_tokens: int = 64  # how many tokens are recent, where a text is generated
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fits, range_ in (
            ("temperature", 0 <= self.temperature < 3e38, "at least 0"),
            ("top_k", 0 <= self.top_k < 1 << 32, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < 3e38, "above 0"),
            ("repetition_tokens", self.repetition_tokens >= 0, "at least 0"),
            ("seed", 0 <= self.seed < 1 << 64, "a number of 64 bits"),
        ):
            if not fits:
                raise InputError(f"{name} must be {range_}, not {getattr(self, name)}")

    def raw(self) -> native.Sampling:
        """The settings as the engine takes them."""
        size = ctypes.sizeof(native.Sampling)
        plain = (self.top_k, self.temperature, self.top_p, self.min_p, self.repetition_penalty, self.seed)
        return native.Sampling(size, *plain)
