"""What a model fixes in its kernels at compile time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

from stic.runtime.architecture import (
    BLOCK_ACTIVATIONS,
    NORM_KINDS,
    Architecture,
    Attention,
    Block,
    FeedForward,
    Norm,
    NormKind,
)
from stic.runtime.errors import UnsupportedModelError
from stic.runtime.format import CACHES, ROW_TYPES, Activation
from stic.schedules.pack import pad16

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
CACHE_TYPES = CACHES[1:]
Value = TypeVar("Value")


@dataclass(frozen=True)
class KernelShape:
    """Compile-time constants of one encoder's kernels; everything else is a run-time scalar."""

    hidden: int
    head_dim: int
    activation: str  # one of ACTIVATIONS
    embed_epsilon: float  # of the norm after the embeddings
    norm_epsilon: float  # of the norms inside the layers

    def __post_init__(self) -> None:
        _check_sizes(self.hidden, self.head_dim)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if not (self.embed_epsilon > 0 and self.norm_epsilon > 0):
            raise ValueError("the epsilon of a norm must be positive")

    @property
    def padded_hidden(self) -> int:
        """HP: hidden features rounded up to a whole tile."""
        return pad16(self.hidden)


@dataclass(frozen=True)
class DecoderShape:
    """Compile-time constants of one decoder's kernels, and which of the kernels it needs."""

    hidden: int
    head_dim: int
    activation: str  # one of BLOCK_ACTIVATIONS
    gated: tuple[
        bool, ...
    ]  # whether feed-forward blocks have a gate: (True,), (False,), or (False, True) of both kinds
    norms: tuple[NormKind, ...]  # the kinds that occur
    epsilon: float  # of every norm
    row_type: str  # one of ROW_TYPES: of embeddings.bin, or "tied", whose rows the engine takes from the head
    multiplier: float  # of embedding rows
    positions: bool  # learned rows of positions are added to the embedding
    rotary: bool  # some block has rotary positions
    cache: str  # one of CACHE_TYPES
    cap: float | None = None  # of scores
    logits_cap: float | None = None

    def __post_init__(self) -> None:
        _check_sizes(self.hidden, self.head_dim)
        if self.activation not in BLOCK_ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not one of {', '.join(BLOCK_ACTIVATIONS)}")
        if self.row_type not in ROW_TYPES or self.cache not in CACHE_TYPES:
            raise ValueError(f"there are no rows of {self.row_type!r} or no cache of {self.cache!r}")
        if not set(self.norms) <= set(NORM_KINDS) or (self.norms and not self.epsilon > 0):
            raise ValueError(f"there are no norms {self.norms} with epsilon {self.epsilon}")
        if any(cap is not None and not cap > 0 for cap in (self.cap, self.logits_cap)):
            raise ValueError(f"caps must be positive: {self.cap} of scores, {self.logits_cap} of logits")

    @property
    def padded_hidden(self) -> int:
        """HP: hidden features rounded up to a whole tile."""
        return pad16(self.hidden)

    @classmethod
    def of(cls, architecture: Architecture, row_type: str, cache: str) -> DecoderShape:
        """What a model's architecture fixes.

        Raises UnsupportedModelError where blocks differ in what one set of kernels has once.
        """
        attention = [block for block in architecture.blocks if isinstance(block, Attention)]
        ffn = [block for block in architecture.blocks if isinstance(block, FeedForward)]
        norms = [norm for block in architecture.blocks for norm in _norms(block)]
        return cls(
            hidden=architecture.hidden,
            head_dim=_only("head_dim", [block.head_dim for block in attention], architecture.hidden),
            activation=_only("activation", [block.activation for block in ffn], "relu"),
            gated=tuple(sorted({block.gated for block in ffn})),
            norms=tuple(kind for kind in NORM_KINDS if any(norm.kind == kind for norm in norms)),
            epsilon=_only("epsilon of norms", [norm.epsilon for norm in norms], 1.0),
            row_type=row_type,
            multiplier=architecture.embedding.multiplier,
            positions=architecture.embedding.positions > 0,
            rotary=any(block.rotary is not None for block in attention),
            cache=cache,
            cap=_only("cap of scores", [block.softcap for block in attention], None),
            logits_cap=architecture.head.softcap,
        )


def _check_sizes(hidden: int, head_dim: int) -> None:
    if hidden < 1 or head_dim < 1:
        raise ValueError(f"hidden {hidden} and head_dim {head_dim} must be positive")


def _norms(block: Block) -> list[Norm]:
    """Every norm of a block."""
    every = [block.norms.input, block.norms.branch, block.norms.post]
    if isinstance(block, Attention):
        every.append(block.head_norm_kind)
    return [norm for norm in every if norm is not None]


def _only(name: str, values: Sequence[Value], default: Value) -> Value:
    """The one value of all blocks; `default` where there is no block."""
    if len(set(values)) > 1:
        listed = ", ".join(map(str, dict.fromkeys(values)))
        raise UnsupportedModelError(f"blocks of this model differ in {name} ({listed}), and stic's kernels have one")
    return values[0] if values else default
