"""From sentences to a package's outputs: tokenise with the tokenizer it carries, then run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stic.compiler.frontend.reading import recorded
from stic.compiler.importance.examples import Examples, encode
from stic.compiler.importance.tokens import Coded, Pair, Tables, tokenise
from stic.runtime.errors import InputError, PackageError
from stic.runtime.package import Package

Ids = NDArray[np.int32]
CHUNK = 64  # texts that are tokenised at once


class Runs(Protocol):
    """What runs one input: a `stic.runtime.session.Session`, or the reference."""

    def run(self, ids: Ids, types: Ids | None = None) -> NDArray[np.float32]:
        """ids and types: (tokens,); returns (features,), or (tokens, features) without pooling."""


def tokenizer_of(package: Package) -> Tokenizer:
    """The tokenizer that the package carries. Raises InputError if it carries none."""
    data = package.tokenizer
    if data is None:
        raise InputError(
            f"{package.path} carries no tokenizer: give token numbers with --ids, or compile a model that has"
            " tokenizer.json beside it"
        )
    try:
        return Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the package raises plain Exception
        raise PackageError(f"{package.path / 'tokenizer.json'} is not a tokenizer: {error}") from error


def tokens_of(package: Package, texts: Iterable[Pair], truncate: bool) -> list[tuple[Ids, Ids]]:
    """(ids, types) of each text or pair: `stream_tokens`, all at once."""
    return [(one.ids, one.types) for _, one in stream_tokens(package, texts, truncate)]


def stream_tokens(package: Package, texts: Iterable[Pair], truncate: bool) -> Iterator[tuple[Pair, Coded]]:
    """Yield each text or pair with its tokens, a default prompt before those that stand alone; holds few at a time.

    Raises InputError for one that is too long, unless it may be cut, and for one that the model cannot take.
    """
    tokenizer, prompt, tables = tokenizer_of(package), recorded(package).prompt, Tables.of_package(package)
    limit = package.max_length
    rest = iter(texts)
    while chunk := list(islice(rest, CHUNK)):
        whole = [(prompt + first if second is None else first, second) for first, second in chunk]
        coded = tokenise(tokenizer, whole, tables, limit if truncate else None)
        for text, one in zip(chunk, coded, strict=True):
            if len(one.ids) > limit:
                raise InputError(
                    f"the text '{text[0][:40]}...' has {len(one.ids)} tokens; the package was compiled for {limit}:"
                    f" {_remedy(package, len(one.ids))}pass --truncate, or shorten the text"
                )
            yield text, one


def _remedy(package: Package, tokens: int) -> str:
    """The advice to compile for so many tokens, unless the model has no positions for them."""
    positions = package.plan.get("model", {}).get("positions")
    return "" if positions is not None and tokens > positions else "compile with a larger --max-length, "


def token_names(package: Package) -> Callable[[Ids], list[str]]:
    """What spells the tokens (tokens,) of an input; their numbers, where the package carries no tokenizer."""
    if package.tokenizer is None:
        return lambda ids: [str(number) for number in ids]
    tokenizer = tokenizer_of(package)
    return lambda ids: [tokenizer.id_to_token(int(number)) or str(number) for number in ids]


def inputs_of(package: Package, examples: Examples) -> list[tuple[int, Ids, Ids | None]]:
    """(number, ids, types) of each of `examples.sequences`, those of one length together; long texts are cut.

    Types are None where the model has but one. Raises InputError if the package gives a vector a token instead of one.
    """
    if int(package.model["pooling"]) == 0:
        raise InputError(f"{package.path} gives one vector a token: evaluation needs a model with pooling or a head")
    has_types = int(package.model["types"]) > 1
    prompted = examples.prompted(recorded(package).prompt)
    return [
        (int(row), ids[mask], types[mask] if has_types else None)
        for batch in encode(prompted, tokenizer_of(package), package.max_length, tables=Tables.of_package(package))
        for row, ids, types, mask in zip(batch.rows, batch.ids, batch.types, batch.mask, strict=True)
    ]


def outputs_of(
    session: Runs, package: Package, examples: Examples, progress: Callable[[str, int, int], None]
) -> NDArray[np.float32]:
    """One output vector for each of `examples.sequences`, (sequences, features); otherwise as `inputs_of`."""
    inputs = inputs_of(package, examples)
    outputs = np.zeros((len(inputs), int(package.model["output_features"])), np.float32)
    for done, (row, ids, types) in enumerate(inputs):
        outputs[row] = session.run(ids, types)
        progress("evaluating", done + 1, len(inputs))
    return outputs
