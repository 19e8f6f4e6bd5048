"""What an encoder's ONNX graph means: the compiler's view of a model, free of graphs and of node names.

All weights are float32 in the orientation (out, in): a linear map is `y = weight @ x + bias`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stic.runtime.format import Activation, Pooling

Array = NDArray[np.float32]
HeadActivation = Literal["none", "tanh", "relu", "gelu"]


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear map."""

    weight: Array  # (out, in)
    bias: Array  # (out,)


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer normalisation over the hidden axis."""

    gamma: Array  # (hidden,)
    beta: Array  # (hidden,)
    epsilon: float


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Word + position (+ token type) rows, then a norm. Position of token t is row `position_offset + t`.

    Where `padding` is an id, t counts the other tokens, and tokens of that id have row `position_offset - 1`.
    """

    word: Array  # (vocabulary, hidden)
    position: Array  # (positions, hidden)
    token_type: Array | None  # (types, hidden); None: the model has none; one row: every token has it
    norm: Norm
    position_offset: int = 0  # 2 for RoBERTa, whose first positions belong to padding
    padding: int | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """One post-norm encoder layer: x = norm(x + attention(x)); x = norm(x + ffn(x))."""

    query: Linear  # (heads * head_dim, hidden), head-major
    key: Linear
    value: Linear
    output: Linear  # (hidden, heads * head_dim)
    attention_norm: Norm
    ffn_in: Linear  # (ffn, hidden)
    ffn_out: Linear  # (hidden, ffn)
    ffn_norm: Norm


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear map of the head and what follows it."""

    linear: Linear
    activation: HeadActivation


@dataclass(frozen=True, eq=False)
class Head:
    """What turns hidden states into the output: pooling, then linear maps, then an optional L2 norm."""

    pooling: Pooling  # "tokens": the output is (tokens, features); else one vector
    dense: tuple[Dense, ...] = ()
    normalize: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """An encoder of the BERT family."""

    name: str
    heads: int
    activation: Activation
    embeddings: Embeddings
    layers: tuple[Layer, ...]
    head: Head
    attention_scale: float  # usually 1 / sqrt(head_dim)
    elastic: bool = False  # trained so that prefixes of its slices, and fewer layers, still work
    tokenizer: Path | None = None  # tokenizer.json beside the model, if there is one
    source: Path | None = None

    @property
    def hidden(self) -> int:
        return int(self.embeddings.word.shape[1])

    @property
    def head_dim(self) -> int:
        return int(self.layers[0].query.weight.shape[0]) // self.heads

    @property
    def ffn(self) -> int:
        return int(self.layers[0].ffn_in.weight.shape[0])

    @property
    def max_length(self) -> int:
        """Longest input, in tokens, that the position table allows."""
        return int(self.embeddings.position.shape[0]) - self.embeddings.position_offset
