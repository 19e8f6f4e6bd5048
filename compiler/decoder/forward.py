"""A decoder's forward pass in numpy, in float32: the compiler's answer to what a decoder computes.

It goes block by block, so that calibration and importance can hold one block's weights at a time:

    x, run = embed(decoder, ids, cache), Run(decoder, ids.shape, cache)
    for number in range(len(decoder.architecture.blocks) - 1):
        x = run_block(run, number, read_block(decoder, number), x)
    logits = run_vocabulary(decoder, x)

Matrix products go to BLAS; what is held is the block's weights, and of scores those of one key head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array, Decoder, Weights
from stic.compiler.forward import activate
from stic.runtime.architecture import Architecture, Attention, FeedForward, Norm, Rotary, tensors
from stic.runtime.errors import InputError

Ids = NDArray[np.integer[Any]]
Block = Mapping[str, Array]  # a block's tensors by role; those that are absent are not in it
Tap = Callable[[int, str, Array], Array]  # (block, what is multiplied, its input (rows, K)) -> the input to go on with

_HEAD_ROWS = 8192  # of the vocabulary, multiplied at a time


@dataclass(eq=False)
class Cache:
    """Keys and values of what has been computed, and the context for which rotary positions are chosen.

    Keys and values are (batch, key heads, context, head_dim) for each attention block; `length` tokens are there.
    """

    architecture: Architecture
    batch: int
    context: int
    length: int = 0
    held: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    def extend(self, number: int, key: Array, value: Array) -> tuple[Array, Array]:
        """Put the next tokens of a block behind those that are there; return all, (batch, key heads, tokens, d)."""
        if number not in self.held:
            shape = (self.batch, key.shape[1], self.context, key.shape[3])
            self.held[number] = (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        keys, values = self.held[number]
        end = self.length + key.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = key, value
        return keys[:, :, :end], values[:, :, :end]


@dataclass(eq=False)
class Run:
    """Tokens on their way through the blocks."""

    architecture: Architecture
    shape: tuple[int, int]  # (batch, tokens)
    cache: Cache | None = None  # None: the tokens are all there is
    turns: list[tuple[Array, Array]] = field(init=False)  # cosines and sines (tokens, pairs) of each rotary
    read: Array | None = None  # what the last attention block read, (rows, hidden)

    def __post_init__(self) -> None:
        positions = self.first + np.arange(self.shape[1])
        context = self.shape[1] if self.cache is None else self.cache.context
        longest = self.architecture.embedding.positions or context
        if self.first + self.shape[1] > min(context, longest):
            raise InputError(
                f"{self.first + self.shape[1]} tokens are more than the {min(context, longest)} that there is room for:"
                " give a shorter text"
            )
        self.turns = [turns(rotary.at(context), positions) for rotary in self.architecture.rotaries]

    @property
    def first(self) -> int:
        """Position of the first token."""
        return 0 if self.cache is None else self.cache.length


@dataclass(frozen=True, eq=False)
class HeldWeights:
    """Weights that are kept once they are read, where they are few or read often."""

    weights: Weights
    kept: dict[tuple[int | None, str], Array | None] = field(default_factory=dict)

    def read(self, block: int | None, role: str) -> Array | None:
        """See `Weights.read`."""
        if (block, role) not in self.kept:
            self.kept[block, role] = self.weights.read(block, role)
        return self.kept[block, role]

    def rows(self, role: str, first: int, count: int) -> Array:
        """See `Weights.rows`."""
        key = next((key for key in self.kept if key[1] == role), None)
        whole = None if key is None else self.kept[key]
        return self.weights.rows(role, first, count) if whole is None else whole[first : first + count]


def turns(rotary: Rotary, positions: NDArray[np.integer[Any]]) -> tuple[Array, Array]:
    """Cosines and sines of each position and pair, times their magnitude, (positions, pairs)."""
    angles = np.multiply.outer(positions.astype(np.float32), np.array(rotary.frequencies, np.float32))
    scale = np.float32(rotary.magnitude)
    return np.cos(angles) * scale, np.sin(angles) * scale


def read_block(decoder: Decoder, number: int) -> dict[str, Array]:
    """Every tensor of a block, by role."""
    roles = (tensor.role for tensor in tensors(decoder.architecture) if tensor.block == number)
    found = {role: decoder.weights.read(number, role) for role in roles}
    return {role: array for role, array in found.items() if array is not None}


def normalise(x: Array, norm: Norm | None, weights: Block, place: str) -> Array:
    """The norm of a place, over the last axis; `x` itself where there is none."""
    if norm is None:
        return x
    if norm.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    scale = np.float32(1.0) / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(norm.epsilon))
    x = x * scale * weights[f"{place}_gamma"]
    beta = weights.get(f"{place}_beta")
    return x if beta is None else np.asarray(x + beta)


def embed(decoder: Decoder, ids: Ids, cache: Cache | None = None) -> Array:
    """The stream before the first block, (batch, tokens, hidden), of `ids` (batch, tokens).

    Raises InputError for a token that the vocabulary does not have.
    """
    outside = ids[(ids < 0) | (ids >= decoder.architecture.vocabulary)]
    if outside.size:
        raise InputError(
            f"token {outside.flat[0]} is none of the {decoder.architecture.vocabulary} that {decoder.name} has: give"
            " tokens of its own tokenizer"
        )
    known, places = np.unique(ids, return_inverse=True)
    rows = np.stack([decoder.weights.rows("embedding", int(token), 1)[0] for token in known])
    x: Array = rows[places.reshape(ids.shape)] * np.float32(decoder.architecture.embedding.multiplier)
    if decoder.architecture.embedding.positions:
        first = 0 if cache is None else cache.length
        table = decoder.weights.read(None, "position")
        assert table is not None
        x = x + table[first : first + ids.shape[1]]
    return x


def run_block(run: Run, number: int, weights: Block, x: Array, tap: Tap | None = None) -> Array:
    """Run an attention or a feed-forward block on the stream (batch, tokens, hidden), which is left unchanged.

    `tap` sees the input of every product, as "qkv", "out", "up" and "down", and returns what the product reads.
    """
    block = run.architecture.blocks[number]
    seen = tap or (lambda number, name, rows: rows)
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(block, Attention):
        run.read = rows
        inner = seen(number, "qkv", normalise(rows, block.norms.input, weights, "input"))
        mixed = seen(number, "out", _attend(run, number, block, weights, inner))
        y = _linear(weights, "output", mixed)
    else:
        assert isinstance(block, FeedForward)
        read = run.read if block.parallel and run.read is not None else rows
        inner = seen(number, "up", normalise(read, block.norms.input, weights, "input"))
        y = _linear(weights, "down", seen(number, "down", _neurons(block, weights, inner)))
    y = rows + normalise(y, block.norms.branch, weights, "branch")
    return normalise(y, block.norms.post, weights, "post").reshape(x.shape)


def _linear(weights: Block, role: str, x: Array) -> Array:
    y: Array = x @ weights[role].T
    bias = weights.get(f"{role}_bias")
    return y if bias is None else y + bias


def _neurons(block: FeedForward, weights: Block, inner: Array) -> Array:
    if not block.gated:
        return _activated(_linear(weights, "up", inner), block.activation)
    return _activated(_linear(weights, "gate", inner), block.activation) * _linear(weights, "up", inner)


def _activated(x: Array, kind: str) -> Array:
    if kind == "silu":
        return np.asarray(x / (np.float32(1.0) + np.exp(-x)), np.float32)
    return activate(x, kind)


def _attend(run: Run, number: int, block: Attention, weights: Block, inner: Array) -> Array:
    """What every head gathers, heads side by side, (rows, heads * head_dim)."""
    batch, tokens = run.shape
    query, key, value = (_linear(weights, role, inner) for role in ("query", "key", "value"))
    query = _positioned(run, block, weights, "query", query.reshape(batch, tokens, block.heads, -1))
    key = _positioned(run, block, weights, "key", key.reshape(batch, tokens, block.key_heads, -1))
    value = value.reshape(batch, tokens, block.key_heads, -1).transpose(0, 2, 1, 3)
    keys, values = (key, value) if run.cache is None else run.cache.extend(number, key, value)
    end = keys.shape[2]
    places, own = np.arange(end), np.arange(end - tokens, end)[:, None]
    unseen = places > own if block.window is None else (places > own) | (places <= own - block.window)
    found = np.empty((batch, block.heads, tokens, block.head_dim), np.float32)
    for head in range(block.heads):
        at = head // block.queries
        scores = query[:, head] @ keys[:, at].transpose(0, 2, 1)
        if block.softcap is not None:
            cap = np.float32(block.softcap)
            scores = np.tanh(scores / cap) * cap
        scores[:, unseen] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        found[:, head] = (scores @ values[:, at]) / scores.sum(axis=-1, keepdims=True)
    return found.transpose(0, 2, 1, 3).reshape(batch * tokens, -1)


def _positioned(run: Run, block: Attention, weights: Block, role: str, x: Array) -> Array:
    """Queries or keys (batch, tokens, heads, head_dim), normed and turned, as (batch, heads, tokens, head_dim)."""
    if block.head_norm == "whole":
        x = normalise(x.reshape(*x.shape[:2], -1), block.head_norm_kind, weights, f"{role}_norm").reshape(x.shape)
    elif block.head_norm == "head":
        x = normalise(x, block.head_norm_kind, weights, f"{role}_norm")
    x = x.transpose(0, 2, 1, 3)
    if block.rotary is None:
        return x
    cosine, sine = run.turns[block.rotary]
    pairs = cosine.shape[1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return np.concatenate((first * cosine - second * sine, second * cosine + first * sine, rest), axis=-1)


def run_vocabulary(decoder: Decoder, x: Array, tap: Tap | None = None) -> Array:
    """Return logits (..., vocabulary) from the stream (..., hidden) before the last block."""
    architecture = decoder.architecture
    number, head = len(architecture.blocks) - 1, architecture.head
    roles = ("input_gamma", "input_beta", "head_bias") if not head.tied else ("input_gamma", "input_beta")
    listed = {tensor.role for tensor in tensors(architecture) if tensor.block == number}
    found = {role: decoder.weights.read(number, role) for role in roles if role in listed}
    weights = {role: array for role, array in found.items() if array is not None}
    rows = normalise(x.reshape(-1, x.shape[-1]), head.norms.input, weights, "input")
    rows = rows if tap is None else tap(number, "head", rows)
    logits = np.empty((len(rows), head.rows), np.float32)
    for first in range(0, head.rows, _HEAD_ROWS):
        count = min(_HEAD_ROWS, head.rows - first)
        part = decoder.weights.rows("embedding" if head.tied else "head", first, count)
        np.matmul(rows, part.T, out=logits[:, first : first + count])
    logits += weights.get("head_bias", np.float32(0.0))
    if head.softcap is not None:
        cap = np.float32(head.softcap)
        logits = np.tanh(logits / cap) * cap
    return logits.reshape(*x.shape[:-1], -1)


def hidden(decoder: Decoder, ids: Ids, cache: Cache | None = None, tap: Tap | None = None) -> Array:
    """Return the stream before the last block, (batch, tokens, hidden), of `ids` (batch, tokens).

    With a cache, the tokens follow those that are in it, and are in it afterwards. Raises InputError for tokens that
    the vocabulary does not have, and for more of them than there is room for.
    """
    run = Run(decoder.architecture, (ids.shape[0], ids.shape[1]), cache)
    x = embed(decoder, ids, cache)
    for number in range(len(decoder.architecture.blocks) - 1):
        x = run_block(run, number, read_block(decoder, number), x, tap)
    if cache is not None:
        cache.length += ids.shape[1]
    return x


def logits(decoder: Decoder, ids: Ids, cache: Cache | None = None, tap: Tap | None = None) -> Array:
    """Return logits (batch, tokens, vocabulary) of `ids` (batch, tokens); see `hidden`."""
    return run_vocabulary(decoder, hidden(decoder, ids, cache, tap), tap)
