"""A decoder as the compiler sees it: what it is, and its weights, read when they are needed.

All weights are float32 in the orientation (out, in): a linear map is `y = weight @ x + bias`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stic.runtime.architecture import Architecture

Array = NDArray[np.float32]


class Weights(Protocol):
    """Where a decoder's tensors come from, by the roles that `stic.runtime.architecture.tensors` lists.

    What a family folds into weights (scales, permutations, offsets) is in what is returned. Nothing is kept: who reads
    twice pays twice, and holds only what it holds itself.
    """

    def read(self, block: int | None, role: str) -> Array | None:
        """Return a tensor in its listed shape; None where it is optional and absent.

        Raises UnsupportedModelError if the files lack it or hold another shape, InputError if they are damaged.
        """

    def rows(self, role: str, first: int, count: int) -> Array:
        """Return rows first .. first + count - 1 of "embedding" or "head", (count, hidden)."""


@dataclass(frozen=True, eq=False)
class Text:
    """How a decoder's text becomes tokens: files or their content, as the model's makers ship them."""

    tokenizer: bytes | None = None  # a tokenizer.json; None: only token ids can be given
    template: str | None = None  # Jinja, of a chat's messages
    bos: str | None = None  # tokens that templates name
    eos: str | None = None
    add_bos: bool = False  # a prompt that no template made starts with bos


@dataclass(frozen=True, eq=False)
class Decoder:
    """A model that continues text."""

    name: str
    architecture: Architecture
    weights: Weights
    text: Text = Text()
    source: Path | None = None  # what it was read from
