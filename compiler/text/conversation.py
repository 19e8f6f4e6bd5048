"""A conversation of several turns over one session, whose cache is kept from turn to turn."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Protocol

from stic.compiler.text.answering import Answer, Generating, Wish
from stic.compiler.text.template import ChatTemplate
from stic.compiler.text.tokens import Coder
from stic.runtime.errors import InputError
from stic.runtime.files import read_text, whole_file


class Keeping(Generating, Protocol):
    """A session whose text can be taken back, saved and loaded."""

    @property
    def position(self) -> int:
        """Tokens that the session holds."""

    def rewind(self, position: int) -> None:
        """Take back what comes after `position`."""

    def save(self, path: Path) -> None:
        """Write the text's state to a file."""

    def load(self, path: Path) -> None:
        """Take up a state that was saved."""


class Conversation:
    """Turns of a person and a model. A turn computes only what the session does not hold yet."""

    def __init__(
        self, session: Keeping, coder: Coder, template: ChatTemplate, stops: tuple[int, ...], context: int,
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

    def save(self, path: Path) -> None:
        """Write the session's state to `path` and, beside it, what was said; both or none.

        Raises InputError where they cannot be written.
        """
        said = json.dumps({"messages": self.messages, "tokens": self._held})
        try:
            with whole_file(_said_in(path), parents=False) as partial:
                partial.write_text(said, encoding="utf-8")
                self._session.save(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from error

    def load(self, path: Path) -> None:
        """Go on where `save` was called. Raises InputError for files that do not belong together.

        Raises EngineError for a state of another model or plan. The conversation then is as it was, or begun anew.
        """
        messages, tokens = _said(_said_in(path))
        self._session.load(path)
        held = self._session.position
        if held != len(tokens):
            self._session.rewind(0)
            self.reset()
            raise InputError(
                f"{path} holds {held} tokens, and {_said_in(path)} {len(tokens)}: they were not saved"
                " together, and the conversation begins anew"
            )
        self.messages, self._held = messages, tokens


def _said_in(path: Path) -> Path:
    """The file of what was said, beside a state."""
    return path.with_name(f"{path.name}.json")


def _said(path: Path) -> tuple[list[dict[str, str]], list[int]]:
    """Messages, and the tokens that their session holds. Raises InputError for a file that `save` did not write."""
    try:
        said = json.loads(read_text(path))
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in said["messages"]]
        return messages, [int(token) for token in said["tokens"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what /save writes beside a state: {error!r}") from error
