"""A session's tokens as an answer: text as it is certain, why it ended, how long tokens took."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stic.runtime.generator import Generated
from stic.runtime.sampling import Sampling

if TYPE_CHECKING:
    from stic.compiler.text.tokens import Coder

Ending = Literal["stop", "length", "context", "cancelled"]


class Generating(Protocol):
    """A decoder at work: `stic.runtime.text_session.TextSession`, or the same on a device."""

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling, stops: Sequence[int]
    ) -> Iterator[Generated]:
        """Extend the text by `ids`, then by tokens drawn one after another."""


@dataclass(frozen=True)
class Wish:
    """What an answer may be like."""

    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()  # texts that end it, which it does not have


@dataclass
class Answer:
    """An answer as far as it is there. Iterating it yields its text in parts, none of which ends within a character."""

    session: Generating
    coder: Coder
    prompt: Sequence[int]  # tokens that extend the session's text before the answer
    stops: Sequence[int]  # tokens that end it
    wish: Wish
    tokens: list[int] = field(default_factory=list)  # a stop token, if one came, included
    times_us: list[int] = field(default_factory=list)  # of each token; of the first one, with the prompt
    text: str = ""
    ending: Ending | None = None  # None: it is not at its end

    def __iter__(self) -> Iterator[str]:
        """Go on, once. What Ctrl-C interrupts ends as "cancelled", and is whole as far as it goes."""
        stream = self.coder.stream(self.wish.stops)
        tokens = self.session.generate(self.prompt, self.wish.max_tokens, self.wish.sampling, self.stops)
        with suppress(KeyboardInterrupt):
            for one in tokens:
                self.tokens.append(one.token)
                self.times_us.append(one.time_us)
                part = "" if one.finish == "stop" else stream.push(one.token)
                self.text += part
                if part:
                    yield part
                self.ending = "stop" if stream.stopped else one.finish
                if stream.stopped:
                    break
        self.ending = self.ending or "cancelled"
        rest = stream.flush()
        self.text += rest
        if rest:
            yield rest

    @property
    def first_token_us(self) -> int | None:
        """From asking to the first token; None: there is none."""
        return self.times_us[0] if self.times_us else None

    @property
    def next_token_us(self) -> float | None:
        """The median of all tokens but the first; None: there is no other."""
        return statistics.median(self.times_us[1:]) if len(self.times_us) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "tokens": self.tokens,
            "text": self.text,
            "finish_reason": self.ending,
            "prompt_tokens": len(self.prompt),
            "first_token_us": self.first_token_us,
            "next_token_us": self.next_token_us,
        }
