"""Text from a decoder, token by token."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from numpy.typing import ArrayLike

from stic.runtime.arguments import int32_of
from stic.runtime.errors import InputError
from stic.runtime.sampling import Sampling

if TYPE_CHECKING:
    from stic.runtime.session import Info

Finish = Literal["stop", "length", "context"]


class Extending(Protocol):
    """A text that is extended and sampled from, here or on a device."""

    @property
    def info(self) -> Info:
        """What the session was opened with."""

    @property
    def position(self) -> int:
        """Tokens that the text has."""

    def extend(self, ids: ArrayLike) -> None:
        """Extend the text by (tokens,) ids."""

    def sample(self, sampling: Sampling | None = None, recent: ArrayLike = ()) -> int:
        """Choose the token that follows."""


@dataclass(frozen=True)
class Generated:
    """One token of an answer."""

    token: int
    time_us: int  # from asking for it to having it; of the first one, with the prompt
    finish: Finish | None  # of the last one: a stop token, as many as were asked for, or the context is full


def generate(
    session: Extending, ids: ArrayLike, max_tokens: int, sampling: Sampling, stops: Iterable[int]
) -> Iterator[Generated]:
    """Extend the session's text by (tokens,) ids, then by tokens drawn one after another, and yield these.

    Without ids the text goes on from the logits that it has. A token is computed when the next one is asked for: the
    last one is not part of the text, and begins what it is extended by next. The repetition penalty concerns the last
    `sampling.repetition_tokens` of ids and answer. A caller may stop asking at any token. Raises InputError for ids, or
    where nothing was given to go on from; EngineError.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, not {max_tokens}")
    return _tokens(session, int32_of(ids, "ids").tolist(), max_tokens, sampling, frozenset(stops))


def _tokens(
    session: Extending, ids: list[int], max_tokens: int, sampling: Sampling, stops: frozenset[int]
) -> Iterator[Generated]:
    begin, recent = time.perf_counter_ns(), list(ids)
    pending = ids
    for count in range(1, max_tokens + 1):
        if pending:
            session.extend(pending)
        token = session.sample(sampling, recent[len(recent) - min(len(recent), sampling.repetition_tokens) :])
        finish: Finish | None = "stop" if token in stops else "length" if count == max_tokens else None
        if finish is None and session.position == session.info.max_length:
            finish = "context"
        yield Generated(token, (time.perf_counter_ns() - begin) // 1000, finish)
        if finish is not None:
            return
        begin = time.perf_counter_ns()
        recent.append(token)
        pending = [token]
