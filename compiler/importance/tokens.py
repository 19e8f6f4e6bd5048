"""Where a tokenizer meets a model: texts to token ids and types that the model has rows for.

The two are made apart and can disagree: a tokenizer of another model, tokens that were added and never trained, token
types in a model that has none. A text is refused when it uses an id that the model lacks, as transformers would fail
on it; a tokenizer that merely knows more ids than the model is none the worse for all other texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stic.compiler.model import Model
from stic.runtime.errors import InputError
from stic.runtime.package import Package

Pair = tuple[str, str | None]


@dataclass(frozen=True)
class Tables:
    """What a model can look up."""

    words: int  # rows of the word table: ids are below it
    types: int  # rows of the token type table, 0: it has none
    where: str  # the model or the package, for messages

    @classmethod
    def of(cls, model: Model) -> Tables:
        """Those of a model."""
        types = model.embeddings.token_type
        return cls(len(model.embeddings.word), 0 if types is None else len(types), str(model.source or model.name))

    @classmethod
    def of_package(cls, package: Package) -> Tables:
        """Those of a package."""
        return cls(int(package.model["vocabulary"]), int(package.model["types"]), str(package.path))


@dataclass(frozen=True, eq=False)
class Coded:
    """A text, or a pair of them, as an encoder takes it."""

    ids: NDArray[np.int32]  # (tokens,)
    types: NDArray[np.int32]  # (tokens,): 1 in the second text of a pair, unless the model tells none apart


def tokenise(
    coder: Tokenizer, texts: Sequence[Pair], tables: Tables | None = None, max_length: int | None = None
) -> list[Coded]:
    """Tokenise texts or pairs, each cut to `max_length` tokens (None: left whole).

    Raises InputError, naming the text, for one that the tokenizer fails on or makes no token of, and for an id or a
    token type that is not in `tables` (None: not looked at).
    """
    coder.no_padding()
    coder.no_truncation()
    if max_length is not None:
        added = coder.num_special_tokens_to_add(any(second is not None for _, second in texts))
        if max_length < added:  # the tokenizers package would not cut at all
            raise InputError(
                f"inputs of {max_length} tokens have no room for text: the tokenizer adds {added} tokens of its own;"
                f" compile with --max-length {added + 1} or more"
            )
        coder.enable_truncation(max_length)
    try:
        found = coder.encode_batch([first if second is None else (first, second) for first, second in texts])
    except Exception as error:  # the package raises plain Exception
        raise InputError(
            f"the tokenizer fails on {_shown(texts)}: {error}; use the model's own tokenizer.json"
        ) from error
    coded = []
    for text, one in zip(texts, found, strict=True):
        ids, types = np.asarray(one.ids, np.int32), np.asarray(one.type_ids, np.int32)
        if not len(ids):
            raise InputError(f"the tokenizer makes no token of {_shown([text])}: leave that text out")
        if tables is not None:
            types = types if tables.types > 1 else np.zeros_like(types)  # one row, or none, says nothing
            _check(text, one.tokens, ids, types, tables)
        coded.append(Coded(ids, types))
    return coded


def _check(text: Pair, tokens: Sequence[str], ids: NDArray[np.int32], types: NDArray[np.int32], tables: Tables) -> None:
    """Refuse ids and token types that the model has no row for."""
    for name, numbers, rows, table in (("id", ids, tables.words, "word"), ("token type", types, tables.types, "type")):
        beyond = np.flatnonzero(numbers >= max(rows, 1))
        if len(beyond):
            at = int(beyond[0])
            raise InputError(
                f"{_shown([text])}: token '{tokens[at]}' has {name} {numbers[at]}, but the {table} table of"
                f" {tables.where} has {rows} rows: tokenizer.json is of another model, or gained tokens that this one"
                " was not trained on; use the model's own tokenizer.json, or leave such texts out"
            )


def _shown(texts: Sequence[Pair]) -> str:
    first = texts[0][0]
    shown = f"the text '{first[:40]}{'...' if len(first) > 40 else ''}'"
    return shown if len(texts) == 1 else f"{len(texts)} texts, the first being {shown}"
