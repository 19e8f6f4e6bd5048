"""Tokens one at a time to text: whole characters only, and nothing of a stop string.

Tokens stand for bytes, and a character may span tokens; a stop string may, too. What is not yet decided is held back,
so that the parts are, one after another, the text that all tokens make together.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from stic.compiler.text.pieces import Pieces


class Stream:
    """An answer on its way. `stopped` says that a stop string was met: what follows is not its text."""

    def __init__(self, pieces: Pieces, stops: Sequence[str] = (), special: bool = False) -> None:
        """`stops` end the text before themselves; `special` shows tokens that are no text, too."""
        self._pieces, self._special = pieces, special
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strips = pieces.strips
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that is certain now that `token` came; it may be empty."""
        if self._pieces.special(token) and not self._special:
            return ""
        return self._more(self._decoder.decode(self._pieces.bytes(token)))

    def flush(self) -> str:
        """Return what is left, as no more tokens come; half a character becomes U+FFFD."""
        certain = self._more(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return certain + rest

    def _more(self, text: str) -> str:
        if self._strips and text:
            text, self._strips = text.removeprefix(" "), False
        if self.stopped:
            return ""
        self._held += text
        # The stop string that is complete first ends the text; of several, the longest.
        ends = [(self._held.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in self._held]
        if ends:
            end, less = min(ends)
            certain, self._held, self.stopped = self._held[: end + less], "", True
            return certain
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        at = len(self._held) - keep
        certain, self._held = self._held[:at], self._held[at:]
        return certain


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
