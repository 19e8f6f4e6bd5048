"""Cut a decoder's blocks into slices: which rows and columns of which tensor a slice's matrices hold.

A slice of attention owns key heads with all queries that read them, a slice of a feed-forward block neurons, a slice of
the vocabulary rows. So attention is cut at the shares of grouped-query attention, and a slice is never less than one.
Slices are wide enough for a read to be worth its request, and few enough for a planner. Everything else (norms, biases,
the embedding) is trunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array, Decoder
from stic.runtime.architecture import Attention, Block, FeedForward, Vocabulary
from stic.runtime.errors import InputError, UnsupportedModelError
from stic.runtime.format import GROUPS, TILE
from stic.runtime.layout import Shape, pad
from stic.runtime.limits import LIMITS

GROUP = GROUPS[-1]  # columns that share scales
MOST_SLICES = 4  # of a block of attention or neurons, unless others are asked for
MOST_ROW_SLICES = 16  # of the vocabulary
LEAST_ROWS = 2048  # of one of them
# Roles of the weights whose rows and columns a slice's matrices are made of.
MAPS = {
    "attention": ("query", "key", "value", "output"),
    "gated": ("gate", "up", "down"),
    "plain": ("up", "down"),
}


@dataclass(frozen=True, eq=False)
class Cut:
    """A decoder and how each of its blocks is cut."""

    decoder: Decoder
    shapes: tuple[Shape, ...]  # by block; blocks alike share one value
    slices_asked: int | None = None  # of attention and neurons; None: as many as suit them

    @cached_property
    def kinds(self) -> tuple[Shape, ...]:
        """The different shapes, in the order of their first block."""
        return tuple(dict.fromkeys(self.shapes))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What the blocks are, in the order of computation."""
        return self.decoder.architecture.blocks

    def slices(self, number: int) -> Iterator[dict[str, Array]]:
        """Read a block's weights; yield the matrices (N, K) of each slice by name, padded with zeros.

        Slices of the vocabulary, whose weights may be most of the model's, are read one at a time.
        """
        block, shape, weights = self.blocks[number], self.shapes[number], self.decoder.weights
        if isinstance(block, Vocabulary):
            for index in range(shape.slices):
                own = own_units(shape, block, index)
                rows = weights.rows("embedding" if block.tied else "head", own.start, len(own))
                yield {"head": _padded(rows, *shape.matrix("head"))}
            return
        roles = MAPS["attention"] if isinstance(block, Attention) else MAPS["gated" if block.gated else "plain"]
        whole = {role: _present(weights.read(number, role)) for role in roles}
        for index in range(shape.slices):
            yield _slice_of(shape, whole, index)

    def used(self, number: int, name: str, index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which rows (N,) and columns (K,) of a matrix of a slice hold weights, not padding."""
        block, shape = self.blocks[number], self.shapes[number]
        hidden = np.arange(shape.padded_hidden) < shape.hidden
        if isinstance(block, Attention):
            queries = np.arange(shape.attention_width) < shape.heads_per_slice * shape.head_dim
            keys = np.arange(shape.key_width) < shape.key_heads_per_slice * shape.head_dim
            return (np.concatenate([queries, keys, keys]), hidden) if name == "qkv" else (hidden, queries)
        width = shape.head_width if name == "head" else shape.ffn_width
        own = np.arange(width) < len(own_units(shape, block, index))
        if name == "down":
            return hidden, own
        return np.tile(own, 2 if name == "up" and shape.gated else 1), hidden


def own_units(shape: Shape, block: FeedForward | Vocabulary, index: int) -> range:
    """Neurons, or rows of the vocabulary, of a slice; the last slices may have fewer than others, down to none."""
    if isinstance(block, Vocabulary):
        each, most = shape.rows_per_slice, block.rows
    else:
        each, most = shape.neurons_per_slice, block.neurons
    return range(min(index * each, most), min((index + 1) * each, most))


def cut_decoder(decoder: Decoder, slices: int | None = None) -> Cut:
    """Decide how each block is cut; `slices` is the number for attention and neurons, else it is chosen.

    Raises InputError if `slices` does not divide a block's key heads, or a slice would be wider than a package holds;
    UnsupportedModelError for a norm over all heads that could not be without padding.
    """
    architecture = decoder.architecture
    shapes: dict[Block, Shape] = {}
    for block in architecture.blocks:
        if block not in shapes:
            shapes[block] = _shape(block, architecture.hidden, slices, decoder.name)
    # Blocks that differ in their norms or windows alone are cut alike: dict.fromkeys keeps one value of equal ones.
    same = {shape: shape for shape in shapes.values()}
    return Cut(decoder, tuple(same[shapes[block]] for block in architecture.blocks), slices)


def _shape(block: Block, hidden: int, slices: int | None, name: str) -> Shape:
    if isinstance(block, Attention):
        divisors = _slice_counts(block)
        if not divisors:
            raise UnsupportedModelError(
                f"{name} normalises all heads as one: its {block.key_heads} key heads of {block.head_dim} features"
                f" are no multiple of {TILE}, which kernels need there"
            )
        count = max(n for n in divisors if n <= MOST_SLICES or n == divisors[0]) if slices is None else slices
        if count not in divisors:
            allowed = ", ".join(map(str, divisors))
            raise InputError(
                f"{name} has {block.key_heads} key heads, which {slices} slices do not divide; try {allowed}"
            )
        keys = block.key_heads // count
        shape = Shape("attention", hidden, count, keys * block.queries, keys, block.head_dim)
    elif isinstance(block, FeedForward):
        count = min(slices or MOST_SLICES, -(-block.neurons // TILE))
        each = pad(-(-block.neurons // count), GROUP if block.neurons >= count * GROUP else TILE)
        shape = Shape("feed_forward", hidden, -(-block.neurons // each), neurons_per_slice=each, gated=block.gated)
    else:
        each = min(pad(max(LEAST_ROWS, -(-block.rows // MOST_ROW_SLICES)), GROUP), pad(block.rows, TILE))
        shape = Shape("vocabulary", hidden, -(-block.rows // each), rows_per_slice=each)
    widest = max(columns for _, columns in map(shape.matrix, shape.matrices))
    if widest > LIMITS["columns"] or shape.hidden > LIMITS["hidden"]:
        raise InputError(
            f"{name}: a slice would have {widest} columns of {LIMITS['columns']} that a package holds: more slices are"
            " narrower (--slices)"
        )
    return shape


def _slice_counts(block: Attention) -> list[int]:
    """How many slices attention may have: key heads stay whole, and under a norm of all heads nothing is padded."""
    counts = [n for n in range(1, block.key_heads + 1) if block.key_heads % n == 0]
    if block.head_norm == "whole":
        counts = [n for n in counts if block.key_heads // n * block.head_dim % TILE == 0]
    return counts


def _slice_of(shape: Shape, whole: dict[str, Array], index: int) -> dict[str, Array]:
    """A slice's matrices of attention or of a feed-forward block."""
    hp = shape.padded_hidden
    if shape.kind == "attention":
        wide, narrow = (n * shape.head_dim for n in (shape.heads_per_slice, shape.key_heads_per_slice))
        queries, keys = (slice(index * n, (index + 1) * n) for n in (wide, narrow))
        parts = [
            _padded(whole["query"][queries], shape.attention_width, hp),
            *(_padded(whole[role][keys], shape.key_width, hp) for role in ("key", "value")),
        ]
        out = _padded(whole["output"][:, queries], hp, shape.attention_width)
        return {"qkv": np.concatenate(parts), "out": out}
    each = shape.neurons_per_slice
    own = slice(index * each, (index + 1) * each)
    ups = [_padded(whole[role][own], shape.ffn_width, hp) for role in ("gate", "up") if role in whole]
    return {"up": np.concatenate(ups), "down": _padded(whole["down"][:, own], hp, shape.ffn_width)}


def _padded(values: Array, *shape: int) -> Array:
    result = np.zeros(shape, np.float32)
    result[tuple(slice(size) for size in values.shape)] = values
    return result


def _first(width: int, count: int) -> NDArray[np.bool_]:
    return np.arange(width) < count


def _present(tensor: Array | None) -> Array:
    assert tensor is not None, "matrices are not optional"
    return tensor
