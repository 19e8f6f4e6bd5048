"""From sentences to a package's outputs: tokenise with the tokenizer it carries, then run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stic.compiler.importance.examples import Examples, Pair, encode
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
    """(ids, types) of each text or pair. Raises InputError for one that is too long, unless it may be cut."""
    tokenizer = tokenizer_of(package)
    limit = int(package.header["max_length"])
    tokenizer.no_padding()
    if truncate:
        tokenizer.enable_truncation(limit)
    else:
        tokenizer.no_truncation()
    found = []
    for text, coded in zip(texts, tokenizer.encode_batch([a if b is None else (a, b) for a, b in texts]), strict=True):
        if len(coded.ids) > limit:
            raise InputError(
                f"the text '{text[0][:40]}...' has {len(coded.ids)} tokens; the package was compiled for {limit}:"
                " compile with a larger --max-length, or pass --truncate"
            )
        found.append((np.asarray(coded.ids, np.int32), np.asarray(coded.type_ids, np.int32)))
    return found


def inputs_of(package: Package, examples: Examples) -> list[tuple[int, Ids, Ids | None]]:
    """(number, ids, types) of each of `examples.sequences`, those of one length together; long texts are cut.

    Types are None where the model has none. Raises InputError if the package gives a vector a token instead of one.
    """
    if int(package.header["pooling"]) == 0:
        raise InputError(f"{package.path} gives one vector a token: evaluation needs a model with pooling or a head")
    has_types = int(package.header["types"]) > 0
    return [
        (int(row), ids[mask], types[mask] if has_types else None)
        for batch in encode(examples, tokenizer_of(package), int(package.header["max_length"]))
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
