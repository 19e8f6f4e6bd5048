"""Attention of a decoder, read backwards from what its output projection reads.

Queries, keys and values are followed back to their linear maps by the numbers of their elements, over any layout: what
lies between, norms of heads and rotations, is recognised by what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.decoder_graph_masks import Mask, read_scores, window_of
from stic.compiler.frontend.decoder_graph_parts import Map, Normed, decimal, linear, normed
from stic.compiler.frontend.decoder_graph_rotary import Turned, fused, turned
from stic.compiler.frontend.decoder_graph_values import DecoderGraph, attribute
from stic.compiler.frontend.decoder_graph_weights import Rows
from stic.compiler.frontend.graph import Moved
from stic.runtime.architecture import HeadNorm, Norm
from stic.runtime.errors import UnsupportedModelError

FUSED = ("Attention", "GroupQueryAttention")
_ROTATIONS = ("Add", "Sub", "Concat", "RotaryEmbedding", "ScatterND", "ScatterElements")


@dataclass(frozen=True, eq=False)
class Operand:
    """Queries, keys or values on their way back: `value.flat[index]` are heads (batch, heads, tokens, head_dim)."""

    value: str
    index: Rows
    factor: float = 1.0

    @property
    def heads(self) -> int:
        return int(self.index.shape[1])


@dataclass(frozen=True, eq=False)
class Projected:
    """What makes queries or keys: a linear map of `source`, then a norm, then a rotation."""

    map: Map
    heads: int
    factor: float
    norm: Normed | None = None
    place: HeadNorm | None = None
    turned: Turned | None = None


@dataclass(frozen=True, eq=False)
class Inside:
    """Attention without its output projection; `columns` are the places of that one's inputs, head by head."""

    query: Projected
    key: Projected
    value: Projected
    columns: Rows
    factor: float  # of what the heads gather
    window: int | None
    softcap: float | None

    @property
    def source(self) -> str:
        return self.query.map.source


@dataclass(frozen=True, eq=False)
class _Core:
    """The operands of attention, and what happens to scores."""

    operands: tuple[Operand, Operand, Operand]
    scale: float
    softcap: float | None
    window: int | None
    heads_last: bool  # heads are merged in the features of what it gives
    norms: tuple[Normed | None, Normed | None] = (None, None)  # of queries and keys, inside the operator
    turns: Turned | None = None  # likewise


def is_attention(graph: DecoderGraph, value: str) -> bool:
    """Whether what `value` holds was gathered by attention."""
    source = graph.source(graph.moved(value).source)
    if source not in graph.features:
        return False
    node = graph.producers[source]
    return node.op_type in FUSED or (node.op_type == "MatMul" and all(n in graph.features for n in node.input))


def read_attention(graph: DecoderGraph, value: str) -> Inside:
    """Read the attention that gives `value`; UnsupportedModelError names what does not fit."""
    inner = graph.moved(value)
    context = graph.source(inner.source)
    node = graph.producers[context]
    if node.op_type == "GroupQueryAttention":
        core = _grouped(graph, context)
    elif node.op_type == "Attention":
        core = _standard(graph, context)
    else:
        core = _composed(graph, context)
    query, key = (
        _projected(graph, operand, norm, core.turns)
        for operand, norm in zip(core.operands[:2], core.norms, strict=True)
    )
    values = _projected(graph, core.operands[2], None, None, plain=True)
    sources = {graph.source(part.map.source) for part in (query, key, values)}
    if len(sources) != 1:
        raise graph.refuse(context, "queries, keys and values of the same features (self-attention)")
    if query.heads % key.heads or key.heads != values.heads:
        raise graph.refuse(context, "key heads that are shared by the same number of query heads")
    size = core.operands[0].index.shape[-1]
    columns = _columns(graph, value, inner, query.heads, size, core.heads_last)
    query = replace(query, factor=query.factor * core.scale * key.factor)
    factor = inner.factor * values.factor
    return Inside(query, replace(key, factor=1.0), values, columns, factor, core.window, core.softcap)


def _composed(graph: DecoderGraph, context: str) -> _Core:
    """softmax(scores) times values, as products."""
    weights, values = graph.producers[context].input
    weights = graph.source(weights)
    if graph.op(weights) != "Softmax":
        raise graph.refuse(context, "attention: softmax(queries x keys) x values")
    node = graph.producers[weights]
    if attribute(node, "axis", -1) not in (-1, len(graph.shape(weights)) - 1):
        raise graph.refuse(weights, "a softmax over keys")
    scores = read_scores(graph, node.input[0])
    if graph.op(scores.product) != "MatMul" or any(
        name not in graph.features for name in graph.producers[scores.product].input
    ):
        raise graph.refuse(scores.product, "the product of queries and keys")
    query, key = graph.producers[scores.product].input
    operands = (_heads(graph, query), _heads(graph, key, swapped=True), _heads(graph, values))
    window = window_of(graph, weights, scores.masks)
    return _Core(operands, scores.scale, scores.softcap, window, heads_last=False)


def _standard(graph: DecoderGraph, context: str) -> _Core:
    """The operator Attention of ONNX (opset 23): heads on an axis of their own, or merged."""
    node = graph.producers[context]
    merged = len(graph.shape(context)) == 3
    counts = (attribute(node, "q_num_heads", 1), *[attribute(node, "kv_num_heads", 1)] * 2)
    operands = tuple(
        _heads(graph, name, merged=int(heads) if merged else 0)
        for name, heads in zip(node.input[:3], counts, strict=True)
    )
    mask = node.input[3] if len(node.input) > 3 else ""
    causal = bool(attribute(node, "is_causal", 0))
    window = window_of(graph, context, (Mask(mask),) if mask else (), causal)
    scale = float(attribute(node, "scale", 0.0)) or operands[0].index.shape[-1] ** -0.5
    cap = float(attribute(node, "softcap", 0.0)) or None
    return _Core((operands[0], operands[1], operands[2]), scale, cap, window, merged)


def _grouped(graph: DecoderGraph, context: str) -> _Core:
    """GroupQueryAttention of onnxruntime (ContribOperators.md): causal, rotation and norms of heads inside."""
    node = graph.producers[context]
    names = [*node.input, *[""] * 16]
    bias, sink, scales, norms = names[10], names[11], names[12:14], names[14:16]
    if bias or sink or any(scales) or attribute(node, "smooth_softmax", 0) or attribute(node, "kv_cache_bit_width", 0):
        raise graph.refuse(context, "attention without bias, sinks and a quantised cache")
    heads, keys = int(attribute(node, "num_heads", 1)), int(attribute(node, "kv_num_heads", 1))
    if names[1]:
        operands = [_heads(graph, name, merged=n) for name, n in zip(names[:3], (heads, keys, keys), strict=True)]
    else:
        shape = graph.shape(names[0])
        index = np.arange(int(np.prod(shape))).reshape(*shape[:2], heads + 2 * keys, -1).transpose(0, 2, 1, 3)
        parts = np.split(index, (heads, heads + keys), axis=1)
        operands = [_composed_index(graph, Operand(names[0], part)) for part in parts]
    size = operands[0].index.shape[-1]
    epsilon = float(attribute(node, "qk_norm_epsilon", 1e-6))
    inside = tuple(_vector_norm(graph, context, name, size, epsilon) if name else None for name in norms)
    turns = None
    if attribute(node, "do_rotary", 0):
        interleaved = bool(attribute(node, "rotary_interleaved", 0))
        turns = fused(graph, context, (names[7], names[8]), interleaved, size)
    width = int(attribute(node, "local_window_size", -1))
    scale = float(attribute(node, "scale", 0.0)) or size**-0.5
    return _Core(
        (operands[0], operands[1], operands[2]), scale, float(attribute(node, "softcap", 0.0)) or None,
        width if width > 0 else None, heads_last=True, norms=(inside[0], inside[1]), turns=turns,
    )  # fmt: skip


def _vector_norm(graph: DecoderGraph, context: str, name: str, size: int, epsilon: float) -> Normed:
    if not graph.is_constant(name) or graph.shape(name) != (size,):
        raise graph.refuse(context, f"constant scales of {size} values for the norm of heads")
    return Normed("", Norm("rms", decimal(epsilon)), np.asarray(graph.value(name), np.float32))


def _heads(graph: DecoderGraph, name: str, swapped: bool = False, merged: int = 0) -> Operand:
    """An operand as heads (batch, heads, tokens, size): the last two may be swapped, or features be `merged` heads."""
    shape = graph.shape(name)
    index = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    if merged:
        index = index.reshape(*shape[:2], merged, -1).transpose(0, 2, 1, 3)
    index = index.swapaxes(-1, -2) if swapped else index
    batch, tokens = graph.shape(graph.word)[:2]
    if index.ndim < 3 or index.shape[-2] != tokens or index.size % (batch * tokens * index.shape[-1]):
        raise graph.refuse(name, f"heads of {tokens} tokens")
    return _composed_index(graph, Operand(name, index.reshape(batch, -1, tokens, index.shape[-1])))


def _composed_index(graph: DecoderGraph, operand: Operand) -> Operand:
    """Step back over layout and factors; heads that are copies of others are left out."""
    moved: Moved = graph.moved(operand.value)
    index = moved.index.reshape(-1)[operand.index]
    firsts = [0, *(h for h in range(1, index.shape[1]) if not np.array_equal(index[:, h], index[:, h - 1]))]
    copies = index.shape[1] // len(firsts)
    if not np.array_equal(np.repeat(index[:, firsts], copies, axis=1), index):
        raise graph.refuse(operand.value, "key heads that are each repeated as often, side by side")
    return Operand(graph.source(moved.source), index[:, firsts], operand.factor * moved.factor)


def _projected(
    graph: DecoderGraph, operand: Operand, norm: Normed | None, turns: Turned | None, plain: bool = False
) -> Projected:
    """Follow an operand back to its linear map; `plain`: no norm and no rotation may lie between."""
    place: HeadNorm | None = "head" if norm is not None else None
    factor = 1.0
    while (found := linear(graph, operand.value)) is None:
        if plain or operand.value not in graph.features:
            raise graph.refuse(operand.value, "a linear map (queries, keys or values)")
        rotation = None
        if norm is None and turns is None and graph.op(operand.value) in _ROTATIONS:
            rotation = turned(graph, operand.value, operand.index)
        if rotation is not None:
            turns = rotation
            operand = _composed_index(graph, Operand(rotation.source, operand.index, operand.factor))
            continue
        head = normed(graph, operand.value) if norm is None else None
        if head is None:
            raise graph.refuse(operand.value, "a linear map, a norm of heads or rotary positions before attention")
        norm, place, factor = head, _place(graph, operand, len(head.gamma)), operand.factor
        operand = _composed_index(graph, Operand(head.source, operand.index))
    linear_map = found.rows(_rows(graph, operand, found.matrix.shape[0]))
    if norm is None:
        return Projected(linear_map, operand.heads, operand.factor, turned=turns)
    return Projected(linear_map.times(operand.factor), operand.heads, factor, norm, place, turns)


def _place(graph: DecoderGraph, operand: Operand, size: int) -> HeadNorm:
    """Whether a norm of `size` features is of each head, or of all; its features must be in the heads' order."""
    heads, width = operand.heads, operand.index.shape[-1]
    if size not in (width, heads * width):
        raise graph.refuse(operand.value, f"a norm over the {width} features of a head, or over all heads")
    places: NDArray[np.int64] = operand.index[0, :, 0, :] % size
    expected = np.arange(width) if size == width else np.arange(size).reshape(heads, width)
    if not np.array_equal(places, np.broadcast_to(expected, places.shape)):
        raise graph.refuse(operand.value, "a norm of heads whose features are in their order")
    return "head" if size == width else "whole"


def _rows(graph: DecoderGraph, operand: Operand, rows: int) -> Rows:
    """The outputs of a linear map that are an operand's features, head by head, the same for every token."""
    batch, heads, tokens, _ = operand.index.shape
    first = operand.index[0, :, 0, :]
    token = np.arange(batch * tokens).reshape(batch, 1, tokens, 1) * rows
    if first.max() >= rows or not np.array_equal(operand.index, first[None, :, None, :] + token):
        raise graph.refuse(operand.value, f"features split into {heads} heads, the same for every token")
    return np.asarray(first.reshape(-1))


def _columns(graph: DecoderGraph, value: str, inner: Moved, heads: int, size: int, heads_last: bool) -> Rows:
    """For each head's features in turn, the column of the output projection that reads it."""
    batch, tokens = graph.shape(graph.word)[:2]
    count = heads * size
    shape: tuple[Any, ...] = (batch, tokens, heads, size)
    whole = np.arange(batch * tokens * count)
    expected = whole.reshape(shape) if heads_last else whole.reshape(batch, heads, tokens, size).transpose(0, 2, 1, 3)
    index = inner.index.reshape(batch * tokens, -1) if inner.index.size == whole.size else np.zeros((0, 0))
    features = expected.reshape(batch * tokens, count)
    if index.shape == features.shape:
        places = np.argsort(index[0])[np.argsort(np.argsort(features[0]))]
        if np.array_equal(index[:, places], features):
            return np.asarray(places)
    raise graph.refuse(value, f"the {heads} heads' outputs merged into {count} features per token")


def check_alike(graph: DecoderGraph, inside: Inside) -> None:
    """Raise UnsupportedModelError unless queries and keys are normed and turned alike."""
    query, key = inside.query, inside.key
    kinds = [(part.place, None if part.norm is None else part.norm.kind) for part in (query, key)]
    turns = [None if part.turned is None else (part.turned.rotary, *part.turned.order) for part in (query, key)]
    if kinds[0] != kinds[1] or turns[0] != turns[1]:
        raise UnsupportedModelError(
            f"{graph.where}: at '{inside.source}', queries and keys are normed or turned in different ways; expected"
            " the same norm and the same rotary positions for both"
        )
