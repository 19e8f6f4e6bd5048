"""From sentences to a package's outputs: tokenise with the tokenizer it carries, then run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stic.compiler.importance.examples import Examples, encode
from stic.compiler.importance.tokens import Pair, Tables, tokenise
from stic.runtime.errors import InputError, PackageError
from stic.runtime.package import Package

Ids = NDArray[np.int32]


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


def tokens_of(package: Package, texts: Sequence[Pair], truncate: bool) -> list[tuple[Ids, Ids]]:
    """(ids, types) of each text or pair.

    Raises InputError for one that is too long, unless it may be cut, and for one that the model cannot take.
    """
    limit = int(package.header["max_length"])
    coded = tokenise(tokenizer_of(package), texts, Tables.of_package(package), limit if truncate else None)
    for text, one in zip(texts, coded, strict=True):
        if len(one.ids) > limit:
            raise InputError(
                f"the text '{text[0][:40]}...' has {len(one.ids)} tokens; the package was compiled for {limit}:"
                f" {_remedy(package, len(one.ids))}pass --truncate, or shorten the text"
            )
    return [(one.ids, one.types) for one in coded]


def _remedy(package: Package, tokens: int) -> str:
    """The advice to compile for so many tokens, unless the model has no positions for them."""
    positions = package.plan.get("model", {}).get("positions")
    return "" if positions is not None and tokens > positions else "compile with a larger --max-length, "


def inputs_of(package: Package, examples: Examples) -> list[tuple[int, Ids, Ids | None]]:
    """(number, ids, types) of each of `examples.sequences`, those of one length together; long texts are cut.

    Types are None where the model has but one. Raises InputError if the package gives a vector a token instead of one.
    """
    if int(package.header["pooling"]) == 0:
        raise InputError(f"{package.path} gives one vector a token: evaluation needs a model with pooling or a head")
    has_types = int(package.header["types"]) > 1
    return [
        (int(row), ids[mask], types[mask] if has_types else None)
        for batch in encode(
            examples, tokenizer_of(package), int(package.header["max_length"]), tables=Tables.of_package(package)
        )
        for row, ids, types, mask in zip(batch.rows, batch.ids, batch.types, batch.mask, strict=True)
    ]


def outputs_of(
    session: Runs, package: Package, examples: Examples, progress: Callable[[str, int, int], None]
) -> NDArray[np.float32]:
    """One output vector for each of `examples.sequences`, (sequences, features); otherwise as `inputs_of`."""
    inputs = inputs_of(package, examples)
    outputs = np.zeros((len(inputs), int(package.header["output_features"])), np.float32)
    for done, (row, ids, types) in enumerate(inputs):
        outputs[row] = session.run(ids, types)
        progress("evaluating", done + 1, len(inputs))
    return outputs
