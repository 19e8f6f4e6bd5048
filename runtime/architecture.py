"""What a model is, apart from its weights: one frozen value that frontends make and every later stage reads.

A model embeds tokens, runs a sequence of blocks, and ends in a head. A block changes the residual stream x, (features,
tokens):

    attention     x += out(attention(rotary(q), rotary(k), v)),   q, k, v = query(n), key(n), value(n)
    feed-forward  x += down(act(gate(n)) * up(n)),  or  down(act(up(n))) without a gate
    vocabulary    logits = cap(head(n))

where n is the block's input norm of x, or x itself where there is none. A branch norm, where there is one, is applied
to what is added to x; a post norm to the sum. So a post-norm model (arXiv 1810.04805), a pre-norm one (arXiv
2302.13971), one that normalises branches (OLMo 2, arXiv 2501.00656) and one that does both (Gemma 2, arXiv 2408.00118)
are the same sequence with other norms.

What a family says by a constant factor is folded into weights by the frontend: attention scales into the query's
weights (or the norm of queries), residual multipliers into `output` and `down`, a divisor of logits into the last norm,
an offset of a norm's gamma into gamma. Weights are float32 in the orientation (out, in); rotary pairs are (i, i +
features / 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

NormKind = Literal["layer", "rms"]
HeadNorm = Literal["head", "whole"]  # of queries and keys: over each head, or over all heads together
BlockActivation = Literal["gelu", "gelu_tanh", "relu", "silu"]
NORM_KINDS: tuple[NormKind, ...] = get_args(NormKind)
BLOCK_ACTIVATIONS: tuple[BlockActivation, ...] = get_args(BlockActivation)


@dataclass(frozen=True)
class Norm:
    """Layer normalisation, or root-mean-square normalisation (arXiv 1910.07467), over features."""

    kind: NormKind
    epsilon: float

    def __post_init__(self) -> None:
        if self.kind not in NORM_KINDS or not self.epsilon > 0:
            raise ValueError(f"there is no norm of kind {self.kind!r} with epsilon {self.epsilon}")


@dataclass(frozen=True)
class Norms:
    """Which norms a block has."""

    input: Norm | None = None  # of what the block reads
    branch: Norm | None = None  # of what it adds to the stream
    post: Norm | None = None  # of the stream after that


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (arXiv 2104.09864): pair i of a head turns by position * frequencies[i].

    The first 2 * len(frequencies) features of a head turn, the rest are left as they are. Cosines and sines are
    multiplied by `magnitude`. Where the model was extended (`long`), contexts above `switch` tokens have other values.
    """

    frequencies: tuple[float, ...]  # radians a position, float32 values
    magnitude: float = 1.0
    long: Rotary | None = None
    switch: int = 0  # the longest context that has the values above, where there is a `long`

    def __post_init__(self) -> None:
        if not self.frequencies:
            raise ValueError("rotary positions turn at least one pair of features")
        if self.long is not None and len(self.long.frequencies) != len(self.frequencies):
            raise ValueError("both forms of rotary positions turn the same features")

    @property
    def features(self) -> int:
        """Features of a head that turn."""
        return 2 * len(self.frequencies)

    def at(self, context: int) -> Rotary:
        """The values that hold for all positions of a session of so long a context."""
        return (
            self.long if self.long is not None and context > self.switch else Rotary(self.frequencies, self.magnitude)
        )


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention (arXiv 2305.13245): head h reads the keys of key head h // (heads / key_heads)."""

    heads: int
    key_heads: int
    head_dim: int
    norms: Norms
    head_norm: HeadNorm | None = None  # of queries and keys, before their rotation
    head_norm_kind: Norm | None = None
    rotary: int | None = None  # index into Architecture.rotaries; None: no positions in this block
    window: int | None = None  # a token attends to so many tokens, itself included; None: to all before it
    softcap: float | None = None  # scores s become softcap * tanh(s / softcap)

    def __post_init__(self) -> None:
        if min(self.heads, self.key_heads, self.head_dim) < 1 or self.heads % self.key_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.key_heads} key heads")
        if (self.head_norm is None) != (self.head_norm_kind is None):
            raise ValueError("a norm of queries and keys needs its kind")
        if (self.window is not None and self.window < 1) or (self.softcap is not None and not self.softcap > 0):
            raise ValueError(f"a window of {self.window} tokens or a cap of {self.softcap} cannot be")

    @property
    def queries(self) -> int:
        """Query heads of one key head."""
        return self.heads // self.key_heads


@dataclass(frozen=True)
class FeedForward:
    """Two linear maps with an activation between them; three with a gate (arXiv 2002.05202)."""

    neurons: int
    activation: BlockActivation
    gated: bool
    norms: Norms
    parallel: bool = False  # it reads what the attention block before it read, not what that left

    def __post_init__(self) -> None:
        if self.neurons < 1 or self.activation not in BLOCK_ACTIVATIONS:
            raise ValueError(f"there is no feed-forward block of {self.neurons} neurons with {self.activation!r}")


@dataclass(frozen=True)
class Vocabulary:
    """The head of a language model: a row of weights for each token of the vocabulary."""

    rows: int
    norms: Norms  # `input` alone: the model's last norm
    tied: bool  # its rows are those of the embedding
    softcap: float | None = None  # of logits


Block = Attention | FeedForward | Vocabulary


@dataclass(frozen=True)
class Embedding:
    """How tokens enter: their rows, times `multiplier`, plus learned rows of positions."""

    multiplier: float = 1.0
    positions: int = 0  # learned rows of positions; 0: there are none


@dataclass(frozen=True)
class Architecture:
    """What a decoder is. `blocks` are in the order of computation; the last one is the vocabulary."""

    family: str  # as its configuration names it: "llama", "qwen2", ...
    hidden: int
    vocabulary: int  # rows of the embedding
    context: int  # the longest that the model was made for, tokens
    embedding: Embedding
    blocks: tuple[Block, ...]
    rotaries: tuple[Rotary, ...] = ()
    bos: int | None = None
    stops: tuple[int, ...] = ()  # tokens that end an answer, ascending

    def __post_init__(self) -> None:
        if not self.blocks or not isinstance(self.blocks[-1], Vocabulary):
            raise ValueError("a decoder ends in its vocabulary")
        if any(isinstance(block, Vocabulary) for block in self.blocks[:-1]):
            raise ValueError("a decoder has one vocabulary, at its end")
        for before, block in zip((None, *self.blocks), self.blocks, strict=False):
            if isinstance(block, Attention) and block.rotary is not None and block.rotary >= len(self.rotaries):
                raise ValueError(f"a block names rotary positions {block.rotary} of {len(self.rotaries)}")
            if isinstance(block, FeedForward) and block.parallel and not isinstance(before, Attention):
                raise ValueError("a parallel feed-forward block follows an attention block")
        if list(self.stops) != sorted(set(self.stops)):
            raise ValueError(f"tokens that end an answer are ascending, each once: {self.stops}")

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix, each of all its rows."""
        return self.head.tied and self.head.rows == self.vocabulary

    @property
    def head(self) -> Vocabulary:
        """The last block."""
        last = self.blocks[-1]
        assert isinstance(last, Vocabulary)
        return last


_BLOCKS: dict[str, type[Block]] = {"attention": Attention, "feed_forward": FeedForward, "vocabulary": Vocabulary}


def to_json(architecture: Architecture) -> dict[str, Any]:
    """Plain data, for plan.json."""
    names = {kind: name for name, kind in _BLOCKS.items()}
    blocks = [{"kind": names[type(block)], **asdict(block)} for block in architecture.blocks]
    return {**asdict(architecture), "blocks": blocks}


def from_json(data: Mapping[str, Any]) -> Architecture:
    """Inverse of `to_json`. Raises TypeError, KeyError or ValueError for anything else."""
    fields = dict(data)
    blocks = tuple(_block(**block) for block in fields.pop("blocks"))
    rotaries = tuple(_rotary(**rotary) for rotary in fields.pop("rotaries"))
    embedding, stops = Embedding(**fields.pop("embedding")), tuple(fields.pop("stops"))
    return Architecture(blocks=blocks, rotaries=rotaries, embedding=embedding, stops=stops, **fields)


def _block(kind: str, norms: Mapping[str, Any], head_norm_kind: Any = None, **fields: Any) -> Block:
    placed = Norms(**{place: norm and Norm(**norm) for place, norm in norms.items()})
    if kind == "attention":
        fields["head_norm_kind"] = head_norm_kind and Norm(**head_norm_kind)
    return _BLOCKS[kind](norms=placed, **fields)


def _rotary(frequencies: Iterable[float], long: Mapping[str, Any] | None, **fields: Any) -> Rotary:
    return Rotary(tuple(frequencies), long=None if long is None else _rotary(**long), **fields)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model, by its role in a block."""

    block: int | None  # None: of the embedding
    role: str
    shape: tuple[int, ...]
    optional: bool = False  # a bias that may be absent, which then is zero


def tensors(architecture: Architecture) -> Iterator[Tensor]:
    """Every tensor that a model of this architecture has, embedding first, then block by block.

    Matrices (out, in): query (heads * head_dim, hidden), key, value (key_heads * head_dim, hidden), output (hidden,
    heads * head_dim), gate, up (neurons, hidden), down (hidden, neurons), head (rows, hidden; of untied models). Each
    has an optional bias, "<matrix>_bias". A norm has "<place>_gamma", and, if it is a layer norm, an optional
    "<place>_beta"; places are input, branch, post, query_norm and key_norm. Norms of queries and keys have (head_dim,),
    or (heads, head_dim) where heads differ (layer norms of "head"), or all features ("whole").
    """
    hidden = architecture.hidden
    yield Tensor(None, "embedding", (architecture.vocabulary, hidden))
    if architecture.embedding.positions:
        yield Tensor(None, "position", (architecture.embedding.positions, hidden))
    for number, block in enumerate(architecture.blocks):
        for place in ("input", "branch", "post"):
            yield from _norm(number, place, getattr(block.norms, place), (hidden,))
        if isinstance(block, Attention):
            wide, narrow = block.heads * block.head_dim, block.key_heads * block.head_dim
            for place, heads in (("query_norm", block.heads), ("key_norm", block.key_heads)):
                shape: tuple[int, ...] = (block.head_dim,) if block.head_norm == "head" else (heads * block.head_dim,)
                if block.head_norm_kind is not None and block.head_norm_kind.kind == "layer":
                    shape = (heads, block.head_dim)
                yield from _norm(number, place, block.head_norm_kind, shape)
            maps = [("query", wide, hidden), ("key", narrow, hidden), ("value", narrow, hidden)]
            maps.append(("output", hidden, wide))
        elif isinstance(block, FeedForward):
            maps = [("gate", block.neurons, hidden)] if block.gated else []
            maps += [("up", block.neurons, hidden), ("down", hidden, block.neurons)]
        else:
            maps = [] if block.tied else [("head", block.rows, hidden)]
        for role, rows, columns in maps:
            yield Tensor(number, role, (rows, columns))
            yield Tensor(number, f"{role}_bias", (rows,), optional=True)


def _norm(block: int | None, place: str, norm: Norm | None, shape: tuple[int, ...]) -> Iterator[Tensor]:
    if norm is not None:
        yield Tensor(block, f"{place}_gamma", shape)
        if norm.kind == "layer":
            yield Tensor(block, f"{place}_beta", shape, optional=True)
