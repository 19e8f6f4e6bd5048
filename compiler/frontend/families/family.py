"""What a family says of a decoder: `Made` from its configuration, and a `Recipe` for each tensor from names.

The two are apart, because other formats have the same configurations under the same meaning, but other names. A GGUF
reader makes a `Config` of its metadata, calls the family's `make`, and brings `Names` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stic.compiler.frontend.families.config import Config
from stic.runtime.architecture import (
    Architecture,
    Attention,
    Block,
    BlockActivation,
    Embedding,
    FeedForward,
    Norm,
    Norms,
    Rotary,
    Tensor,
    Vocabulary,
    tensors,
)
from stic.runtime.errors import UnsupportedModelError

Key = tuple[int | None, str]  # block and role, as stic.runtime.architecture.tensors lists them
ACTIVATIONS: dict[str, BlockActivation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What a configuration says: the architecture, and the factors that weights take so that it needs no others."""

    architecture: Architecture
    factors: Mapping[Key, float] = field(default_factory=dict)  # of tensors that are not taken as they are


@dataclass(frozen=True)
class Recipe:
    """How a tensor comes from a file: (rows of the stored one, turned first, + offset) * factor."""

    names: tuple[str, ...]  # of what is stored: one tensor, or vectors that become rows (`stacked`)
    rows: tuple[int, int] | None = None  # first and count, of the stored tensor as (out, in); None: all
    transposed: bool = False  # it is stored as (in, out)
    factor: float = 1.0
    offset: float = 0.0
    stacked: bool = False
    interleaved: int = 0  # heads whose rotary pairs are rows (2 i, 2 i + 1) of it, to become (i, i + size / 2)
    through: Recipe | None = None  # a matrix (out, in) that its rows pass: y = through @ row


@dataclass(frozen=True)
class Stem:
    """The names of a matrix or a norm: NAME.weight, and NAME.bias where it has one; {} is the layer's number."""

    name: str
    bias: bool = False  # a matrix' bias, or a layer norm's beta, is there
    rows: tuple[int, int] | None = None
    transposed: bool = False
    offset: float = 0.0  # of gamma
    interleaved: int = 0
    each: int = 0  # as many vectors, of which a second {} is the number; 0: one tensor
    through: Recipe | None = None

    def recipe(self, layer: int, bias: bool = False) -> Recipe:
        """How its weight, or its bias, comes from the file."""
        suffix = ".bias" if bias else ".weight"
        names = tuple(self.name.format(layer, number) + suffix for number in range(self.each or 1))
        offset = 0.0 if bias else self.offset
        turned, stacked = self.transposed and not bias, self.each > 0
        return Recipe(names, self.rows, turned, 1.0, offset, stacked, self.interleaved, self.through)


@dataclass(frozen=True)
class Names:
    """Stems by matrix (query, ..., head) and by the place of a norm (input, branch, post, query_norm, key_norm)."""

    attention: Mapping[str, Stem]
    feed_forward: Mapping[str, Stem]
    outer: Mapping[str, Stem]  # embedding, position, head; input: the last norm


@dataclass(frozen=True)
class Family:
    """One family. `make` raises UnsupportedModelError for a configuration that it cannot take."""

    types: tuple[str, ...]  # of model_type
    make: Callable[[Config], Made]
    names: Callable[[Config, Architecture], Names]
    prefix: str = ""  # of stems; files of the bare model lack it
    spellings: tuple[tuple[str, str], ...] = ()  # other prefixes: of a stem, and what files have in its place
    defaults: Mapping[str, object] = field(default_factory=dict)  # of transformers, for keys that are absent
    ignored: tuple[str, ...] = ()  # keys that change no answer in this family
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)  # ends of names of tensors that are computed
    apart: tuple[str, ...] = ()  # beginnings of names of tensors that take no part in text


@dataclass(frozen=True)
class Sizes:
    """The sizes that nearly every family spells alike."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    neurons: int
    vocabulary: int
    context: int


def sizes(config: Config) -> Sizes:
    """Read the common keys. Raises UnsupportedModelError for heads that do not divide."""
    hidden, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    key_heads = config.whole("num_key_value_heads", heads)
    if heads % key_heads:
        raise config.refuse("num_key_value_heads", f"expected a divisor of {heads} heads")
    if config.raw("head_dim", None) is None and hidden % heads:
        raise config.refuse("num_attention_heads", f"expected a divisor of hidden_size {hidden}, or head_dim beside it")
    return Sizes(
        hidden,
        config.whole("num_hidden_layers"),
        heads,
        key_heads,
        config.whole("head_dim", hidden // heads),
        config.whole("intermediate_size"),
        config.whole("vocab_size"),
        config.whole("max_position_embeddings"),
    )


def decoder(
    config: Config, size: Sizes, blocks: Sequence[Block], last: Norm | None, rotaries: tuple[Rotary, ...] = (),
    embedding: Embedding | None = None, softcap: float | None = None, context: int | None = None,
) -> Architecture:  # fmt: skip
    """Put blocks between embedding and vocabulary. Whether the head is tied is as the configuration says.

    `context` is the longest that a scaling of rotary positions allows; None: the configuration's.
    """
    tied = config.flag("tie_word_embeddings")
    vocabulary = Vocabulary(size.vocabulary, Norms(input=last), tied, softcap)
    return Architecture(
        family=str(config.raw("model_type")),
        hidden=size.hidden,
        vocabulary=size.vocabulary,
        context=context or size.context,
        embedding=embedding or Embedding(),
        blocks=(*blocks, vocabulary),
        rotaries=rotaries,
    )


def factors(
    architecture: Architecture, scores: Sequence[float] | None = None, residual: float = 1.0, logits: float = 1.0
) -> dict[Key, float]:
    """Where constants go that multiply scores, branches and logits: into weights, as docs/decoders.md has it.

    `scores` has one for each attention block; None: head_dim ** -0.5.
    """
    found: dict[Key, float] = {}
    left = iter(scores or [])
    for number, block in enumerate(architecture.blocks):
        if isinstance(block, Vocabulary):
            if logits != 1.0 and block.norms.input is None:
                raise UnsupportedModelError("logits are scaled where there is no last norm to hold the factor")
            found |= dict.fromkeys([(number, "input_gamma"), (number, "input_beta")], logits)
            continue
        if isinstance(block, Attention):
            scale = next(left) if scores is not None else block.head_dim**-0.5
            roles = ("query", "query_bias") if block.head_norm is None else ("query_norm_gamma", "query_norm_beta")
            found |= dict.fromkeys([(number, role) for role in roles], scale)
        last = "output" if isinstance(block, Attention) else "down"
        roles = (last, f"{last}_bias") if block.norms.branch is None else ("branch_gamma", "branch_beta")
        found |= dict.fromkeys([(number, role) for role in roles], residual)
    return {key: factor for key, factor in found.items() if factor != 1.0}


def recipes(made: Made, names: Names) -> dict[Key, Recipe]:
    """How every tensor that the names have comes from the file, factors included.

    A tensor of the architecture that is in the result must be in the file; an optional one that is not, is absent.
    """
    found: dict[Key, Recipe] = {}
    for tensor in tensors(made.architecture):
        recipe = _recipe(made.architecture, names, tensor)
        if recipe is not None:
            key = (tensor.block, tensor.role)
            found[key] = replace(recipe, factor=made.factors.get(key, 1.0))
    return found


def _recipe(architecture: Architecture, names: Names, tensor: Tensor) -> Recipe | None:
    block = None if tensor.block is None else architecture.blocks[tensor.block]
    stems = names.outer
    if isinstance(block, Attention | FeedForward):
        stems = names.attention if isinstance(block, Attention) else names.feed_forward
    role, _, part = tensor.role.rpartition("_")
    bias = part in ("bias", "beta")
    stem = stems[role if bias or part == "gamma" else tensor.role]
    if bias and not stem.bias:
        return None
    return stem.recipe((tensor.block or 0) // 2, bias)  # layer n is blocks 2 n and 2 n + 1
