"""What a model fixes in its kernels at compile time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from stic.runtime.format import Activation
from stic.schedules.pack import pad16

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True)
class KernelShape:
    """Compile-time constants of one model's kernels; everything else is a run-time scalar."""

    hidden: int
    head_dim: int
    activation: str  # one of ACTIVATIONS
    embed_epsilon: float  # of the norm after the embeddings
    norm_epsilon: float  # of the norms inside the layers

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.head_dim < 1:
            raise ValueError(f"hidden {self.hidden} and head_dim {self.head_dim} must be positive")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if not (self.embed_epsilon > 0 and self.norm_epsilon > 0):
            raise ValueError("the epsilon of a norm must be positive")

    @property
    def padded_hidden(self) -> int:
        """HP: hidden features rounded up to a whole tile."""
        return pad16(self.hidden)
