"""What a session does with the text of a decoder."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stic.runtime.arguments import int32_of
from stic.runtime.errors import InputError
from stic.runtime.sampling import Sampling

if TYPE_CHECKING:
    from stic.runtime.generator import Generated
    from stic.runtime.session import Info

Floats = NDArray[np.float32]
_FLOATS = ctypes.POINTER(ctypes.c_float)
_TOKEN = np.dtype([("id", "<i4"), ("position", "<u4"), ("sequence", "<u4")])  # stic_token of stic.h


class TextSession(ABC):
    """The part of a session that decoders have: a text, which is extended, sampled from, taken back, saved.

    Every method raises InputError on a package of an encoder, and EngineError. Ctrl-C during a long call ends it soon;
    the text is then as it was before.
    """

    info: Info
    _engine: Any

    @abstractmethod
    def _handle(self) -> ctypes.c_void_p:
        """The engine's session."""

    @abstractmethod
    def _check(self, status: int) -> None:
        """Raise what a status stands for."""

    @property
    def position(self) -> int:
        """Tokens that the text has."""
        return int(self._engine.stic_session_position(self._handle()))

    def extend(self, ids: ArrayLike) -> None:
        """Extend the text by (tokens,) ids. Raises InputError for ids out of range, or where the context is full."""
        tokens = int32_of(ids, "ids")
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        session = self._handle()
        self._run(len(tokens), lambda: self._engine.stic_session_extend_ids(session, pointer, len(tokens)))

    def score(self, ids: ArrayLike) -> Floats:
        """Extend the text by (tokens,) ids, as `extend` does; returns the logits of each, (tokens, vocabulary)."""
        given = int32_of(ids, "ids")
        tokens = np.zeros(len(given), _TOKEN)
        tokens["id"] = given
        tokens["position"] = self.position + np.arange(len(given))
        logits = np.empty((len(given), self.info.output_features), np.float32)
        arguments = (tokens.ctypes.data, len(given), logits.ctypes.data_as(_FLOATS), logits.size)
        session = self._handle()
        self._run(len(given), lambda: self._engine.stic_session_extend(session, *arguments))
        return logits

    def logits(self) -> Floats:
        """The logits of the last token, (vocabulary,). Raises InputError where none was computed."""
        logits = np.empty(self.info.output_features, np.float32)
        self._check(self._engine.stic_session_logits(self._handle(), logits.ctypes.data_as(_FLOATS), logits.size))
        return logits

    def sample(self, sampling: Sampling | None = None, recent: ArrayLike = ()) -> int:
        """Choose the token that follows, without extending the text by it.

        recent: (tokens,) ids that the repetition penalty concerns. Raises InputError where no logits were computed.
        """
        given, tokens, chosen = (sampling or Sampling()).raw(), int32_of(recent, "recent"), ctypes.c_int32()
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        arguments = (ctypes.byref(given), pointer, len(tokens), ctypes.byref(chosen))
        self._check(self._engine.stic_session_sample(self._handle(), *arguments))
        return chosen.value

    def generate(
        self, ids: ArrayLike, max_tokens: int, sampling: Sampling | None = None, stops: Iterable[int] = ()
    ) -> Iterator[Generated]:
        """Extend the text by ids and go on from there, token by token; see `stic.runtime.generator.generate`."""
        from stic.runtime.generator import generate

        return generate(self, ids, max_tokens, sampling or Sampling(), stops)

    def rewind(self, position: int) -> None:
        """Go back to a position at or before the present one."""
        if not 0 <= position < 1 << 32:
            raise InputError(f"a position is a number of tokens, not {position}")
        self._check(self._engine.stic_session_rewind(self._handle(), position))

    def save(self, path: str | Path) -> None:
        """Write the text's state to a file, which is there whole or not at all."""
        self._check(self._engine.stic_session_save(self._handle(), os.fsencode(path)))

    def load(self, path: str | Path) -> None:
        """Take up a state that a session of the same model and plan saved. Raises InputError for any other file."""
        self._check(self._engine.stic_session_load(self._handle(), os.fsencode(path)))

    def cancel(self) -> None:
        """Have an extend that is under way in another thread end soon, with an EngineError; else nothing happens."""
        self._engine.stic_session_cancel(self._handle())

    def _run(self, tokens: int, call: Callable[[], int]) -> None:
        """Make a call that computes so many tokens; a long one in a thread of its own, so that Ctrl-C reaches us."""
        if tokens <= self.info.chunk:
            self._check(call())
            return
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(call)
            try:
                status = running.result()
            except BaseException:
                self.cancel()
                raise
        self._check(status)
