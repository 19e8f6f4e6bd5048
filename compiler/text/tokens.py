"""A decoder's tokenizer: text to ids that its model has rows for, and ids to text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from stic.compiler.decoder.model import Text
from stic.compiler.text.pieces import Pieces
from stic.compiler.text.streaming import Stream
from stic.runtime.architecture import Architecture
from stic.runtime.errors import InputError


class Coder:
    """Turns text into tokens and back. One thread may use it at a time."""

    def __init__(self, text: Text, architecture: Architecture, where: str) -> None:
        """Open the tokenizer of a model; messages call it `where`.

        Raises InputError if there is none, if it is damaged, or if a token that begins or ends text has no row.
        """
        if text.tokenizer is None:
            raise InputError(f"{where} has no tokenizer, so text cannot be turned into tokens: give token ids")
        self.where = where
        self._vocabulary = architecture.vocabulary
        try:
            self._tokenizer = Tokenizer.from_buffer(text.tokenizer)
            content = json.loads(text.tokenizer)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the package raises plain Exception, and panics that are no Exception
            raise InputError(
                f"{where}: its tokenizer is damaged, or is none that the tokenizers package reads: {_first_line(error)}"
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pieces = Pieces(self._tokenizer, content, where)
        self.bos = self._id(text.bos, architecture.bos)
        self._add_bos = text.add_bos
        if text.add_bos and self.bos is None:
            raise InputError(f"{where}: prompts start with a token that it does not name; set its bos token")
        for token in (self.bos, *architecture.stops):
            if token is not None and token >= self._vocabulary:
                raise InputError(
                    f"{where}: token {token} begins or ends text, but the model has {self._vocabulary} rows: the"
                    " tokenizer is of another model"
                )

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of a text, without bos; `special` takes names of special tokens in it for the tokens.

        Text of others must not be `special`, or it could end turns that are not its own. Raises InputError for a text
        that is no Unicode, or that uses a token the model has no row for.
        """
        self._tokenizer.encode_special_tokens = not special
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the package raises plain Exception
            raise InputError(f"the tokenizer of {self.where} fails on {_shown(text)}: {_first_line(error)}") from error
        for token, name in zip(found.ids, found.tokens, strict=True):
            if token >= self._vocabulary:
                raise InputError(
                    f"{_shown(text)}: token '{name}' has id {token}, but {self.where} has {self._vocabulary} rows: the"
                    " tokenizer is of another model, or gained tokens that this one was not trained on"
                )
        return list(found.ids)

    def prompt(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of a prompt that no template made: bos before it where the model wants one, once."""
        ids = self.encode(text, special)
        if self._add_bos and self.bos is not None and ids[:1] != [self.bos]:
            return [self.bos, *ids]
        return ids

    def decode(self, tokens: Iterable[int], special: bool = False) -> str:
        """Return the text of tokens; `special` shows those that are no text. Bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream(special=special)
        return "".join([*map(stream.push, tokens), stream.flush()])

    def stream(self, stops: Sequence[str] = (), special: bool = False) -> Stream:
        """Begin an answer: text as its tokens come."""
        return Stream(self._pieces, stops, special)

    def token(self, name: str) -> int | None:
        """The id of the token of that name; None if there is none."""
        return self._tokenizer.token_to_id(name)

    def _id(self, name: str | None, id: int | None) -> int | None:
        return id if id is not None or name is None else self.token(name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _shown(text: str) -> str:
    return f"the text '{text[:40].encode('utf-8', 'replace').decode()}{'...' if len(text) > 40 else ''}'"
