"""What is packed whatever the plan: the model's tables, weights in slices, files, and what plan.json says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array
from stic.compiler.quantization.quantize import MatrixLevel
from stic.runtime.format import MODEL
from stic.runtime.layout import Shape


class Quantized(Protocol):
    """A model's weights by block and slice, quantised and as they were."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def quantizer(self) -> str:
        """How codes were found."""

    @property
    def nested(self) -> bool:
        """Whether codes of fewer bits are prefixes of codes of more bits."""

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """How each block is cut."""

    def level(self, block: int, index: int, name: str, bits: int) -> MatrixLevel:
        """Return one matrix of slice `index` at one bitwidth."""

    def weights(self, block: int, index: int) -> Mapping[str, Array]:
        """The matrices of a slice before they were quantised, (N, K) float32, padded with zeros."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a package says of its model."""

    model: NDArray[np.void]  # table MODEL, of one entry
    described: Mapping[str, Any]  # "model" of plan.json
    files: Mapping[str, bytes] = field(default_factory=dict)  # beside those that every package has
    said: Mapping[str, Any] = field(default_factory=dict)  # further keys of plan.json

    @property
    def elastic(self) -> bool:
        """Whether slices and layers may be left out."""
        return bool(self.described["elastic"])


def model_table(values: Mapping[str, Any]) -> NDArray[np.void]:
    """Table MODEL with these values, zeros elsewhere."""
    table = np.zeros(1, MODEL)
    for name, value in values.items():
        table[0][name] = value
    return table
