"""A conversation of several turns over one session, whose cache is kept from turn to turn."""

from __future__ import annotations

import itertools
from typing import Protocol

from stic.compiler.text.answering import Answer, Generating, Wish
from stic.compiler.text.template import ChatTemplate
from stic.compiler.text.tokens import Coder
from stic.runtime.errors import InputError


class Rewinding(Generating, Protocol):
    """A session whose text can be taken back."""

    @property
    def position(self) -> int:
        """Tokens that the session holds."""

    def rewind(self, position: int) -> None:
        """Take back what comes after `position`."""


class Conversation:
    """Turns of a person and a model. A turn computes only what the session does not hold yet."""

    def __init__(
        self, session: Rewinding, coder: Coder, template: ChatTemplate, stops: tuple[int, ...], context: int,
        system: str | None = None,
    ) -> None:  # fmt: skip
        self._session, self._coder, self._template, self._stops = session, coder, template, stops
        self._context = context
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self.messages: list[dict[str, str]] = list(self._system)
        self._held: list[int] = []  # tokens that the session holds

    def ask(self, content: str, wish: Wish) -> Answer:
        """Return the answer to a turn, to be iterated; `end` keeps it.

        Raises InputError where the conversation is longer than the context.
        """
        self.messages.append({"role": "user", "content": content})
        try:
            ids = self._coder.encode(self._template.render(self.messages), special=True)
            if len(ids) >= self._context:
                raise InputError(
                    f"the conversation has {len(ids)} tokens, and the package a context of {self._context}: begin a new"
                    " one (/reset), or compile with a larger --context"
                )
        except InputError:
            self.messages.pop()
            raise
        # A token at least is computed anew: it gives the logits that the answer begins with.
        pairs = zip(ids[:-1], self._held, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._session.rewind(min(shared, self._session.position))
        self._asked = ids
        return Answer(self._session, self._coder, ids[self._session.position :], self._stops, wish)

    def end(self, answer: Answer) -> None:
        """Keep an answer that has ended as a turn. One without a token takes its question back."""
        self._held = [*self._asked, *answer.tokens][: self._session.position]
        if answer.tokens:
            self.messages.append({"role": "assistant", "content": answer.text})
        else:
            self.messages.pop()
