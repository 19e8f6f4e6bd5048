"""What is measured on a device: layers of one shape, and how an engine runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from stic.compiler.inputs import input_length
from stic.compiler.model import Model
from stic.compiler.options import ShardOptions, longest_input
from stic.compiler.sharding import Geometry
from stic.runtime.format import LEVEL_BITS, Activation
from stic.runtime.limits import LIMITS
from stic.targets.target import Target

DEFAULT_LANES = 2  # phone flash gains nothing from more (FlexInfer, arXiv 2503.03777)
SMALL_ENCODER = (384, 12, 32, 1536)  # hidden, heads, head_dim, FFN of the MiniLM family


@dataclass(frozen=True)
class Workload:
    """Layers of one shape, the length of their input, and the threads that they are given."""

    geometry: Geometry
    activation: Activation
    max_length: int  # tokens
    threads: int  # of compute
    lanes: int  # of IO
    full_bits: int = 16  # width of the full-precision level; 0: none
    epsilon: float = 1e-12  # of the norms: with a model's own, its kernels are compiled once

    @classmethod
    def of(
        cls,
        model: Model | None,
        target: Target,
        max_length: int | None,
        shards: ShardOptions,
        threads: int | None = None,
        lanes: int | None = None,
    ) -> Self:
        """That of a model on a target, or without a model of a small encoder; by default a slice for each head.

        Raises InputError for a `max_length` beyond the model's positions.
        """
        threads, lanes, full_bits = threads or target.threads, lanes or DEFAULT_LANES, shards.full_bits
        if model is None:
            geometry = Geometry(1, *SMALL_ENCODER, shards.slices or SMALL_ENCODER[1])
            length = longest_input(max_length, LIMITS["chunk"])
            return cls(geometry, "gelu", length, threads, lanes, full_bits)
        geometry = Geometry(1, model.hidden, model.heads, model.head_dim, model.ffn, shards.slices or model.heads)
        length, epsilon = input_length(max_length, model), model.embeddings.norm.epsilon
        return cls(geometry, model.activation, length, threads, lanes, full_bits, epsilon)

    @property
    def bits(self) -> tuple[int, ...]:
        """Bitwidths that compute is measured at."""
        return LEVEL_BITS + ((self.full_bits,) if self.full_bits else ())
