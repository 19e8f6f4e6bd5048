"""Blocks of a decoder, read backwards along the residual stream.

The stream after a block is a value that every path from the embedding to the logits goes through. What is added between
two such values is the block's branch, or two branches of parallel blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array
from stic.compiler.forward import gelu, gelu_tanh
from stic.compiler.frontend.decoder_graph_attention import Inside, Projected, check_alike, is_attention, read_attention
from stic.compiler.frontend.decoder_graph_parts import Map, Normed, linear, normed
from stic.compiler.frontend.decoder_graph_rotary import Turned
from stic.compiler.frontend.decoder_graph_values import DecoderGraph
from stic.compiler.frontend.decoder_graph_weights import Matrix
from stic.compiler.frontend.parts import ELEMENTWISE, on_grid
from stic.runtime.architecture import Attention, Block, BlockActivation, FeedForward, Norms, Rotary

Tensors = Mapping[str, Matrix | Array]  # by role


@dataclass(frozen=True, eq=False)
class Read:
    """A block, its tensors, and where its rotary positions were found."""

    block: Block
    tensors: Tensors
    turned: Turned | None = None


def read_blocks(graph: DecoderGraph, value: str, rotaries: list[Rotary]) -> tuple[list[Read], str]:
    """Read all blocks that end in the stream `value`; return them and the stream before the first.

    `rotaries` is extended by what blocks turn by. UnsupportedModelError names what does not fit.
    """
    blocks: list[Read] = []
    while (step := _step(graph, value, rotaries)) is not None:
        found, value = step
        blocks[:0] = found
    if not blocks:
        raise graph.refuse(value, "attention or a feed-forward block, added to a residual stream")
    return blocks, value


def _step(graph: DecoderGraph, value: str, rotaries: list[Rotary]) -> tuple[list[Read], str] | None:
    """The blocks that the stream `value` is the sum of, and the stream before them; None before the first."""
    value = graph.source(value)
    post = None
    if not _is_sum(graph, value):
        post = normed(graph, value)
        value = post.source if post is not None else value
    if not _is_sum(graph, value):
        return None
    before = graph.source(graph.dominators[value])
    branches, residuals = _terms(graph, value, before)
    if residuals != 1 or len(branches) not in (1, 2):
        raise graph.refuse(value, "a residual stream and one or two branches, added")
    read = [_branch(graph, branch, before, post, rotaries) for branch in branches]
    if len(read) == 2:
        read.sort(key=lambda one: isinstance(one.block, FeedForward))
        kinds = [type(one.block) for one in read]
        if kinds != [Attention, FeedForward] or post is not None:
            raise graph.refuse(value, "attention and a feed-forward block side by side")
        second = read[1].block
        assert isinstance(second, FeedForward)
        read[1] = replace(read[1], block=replace(second, parallel=True))
    return read, before


def _is_sum(graph: DecoderGraph, value: str) -> bool:
    return graph.op(value) == "Add" and len(graph.operands(value)[0]) == 2


def _terms(graph: DecoderGraph, value: str, before: str) -> tuple[list[str], int]:
    """What is added to the stream `before` in the sum `value`, and how often that is in it."""
    value = graph.source(value)
    if value == before:
        return [], 1
    if not _is_sum(graph, value):
        return [value], 0
    found = [_terms(graph, name, before) for name in graph.producers[value].input]
    return [name for names, _ in found for name in names], sum(count for _, count in found)


def _branch(graph: DecoderGraph, value: str, before: str, post: Normed | None, rotaries: list[Rotary]) -> Read:
    last, branch = linear(graph, value), None
    if last is None:
        branch = normed(graph, value)
        last = None if branch is None else linear(graph, branch.source)
    if last is None:
        raise graph.refuse(value, "the output of attention or of a feed-forward block")
    attends = is_attention(graph, last.source)
    inside = read_attention(graph, last.source) if attends else _neurons(graph, last.source)
    first = None
    if graph.source(inside.source) != before:
        first = normed(graph, inside.source)
        if first is None or graph.source(first.source) != before:
            raise graph.refuse(inside.source, "a norm of the residual stream, or that stream, as a block's input")
    norms = Norms(*(None if one is None else one.kind for one in (first, branch, post)))
    vectors = {}
    for place, one in (("input", first), ("branch", branch), ("post", post)):
        vectors.update(norm_vectors(place, one))
    if isinstance(inside, Inside):
        return _attention(graph, inside, norms, vectors, last, rotaries)
    block = FeedForward(inside.up.matrix.shape[0], inside.activation, inside.gate is not None, norms)
    gate = {} if inside.gate is None else map_tensors("gate", inside.gate)
    return Read(block, {**vectors, **gate, **map_tensors("up", inside.up), **map_tensors("down", last)})


def norm_vectors(place: str, norm: Normed | None) -> dict[str, Array]:
    """The tensors of a norm, by role."""
    if norm is None:
        return {}
    beta = {} if norm.beta is None else {f"{place}_beta": norm.beta}
    return {f"{place}_gamma": norm.gamma, **beta}


def map_tensors(role: str, linear_map: Map) -> dict[str, Matrix | Array]:
    """The tensors of a linear map, by role."""
    found: dict[str, Matrix | Array] = {role: linear_map.matrix}
    if linear_map.bias is not None and linear_map.bias.any():
        found[f"{role}_bias"] = linear_map.bias
    return found


def _attention(
    graph: DecoderGraph, inside: Inside, norms: Norms, vectors: dict[str, Array], last: Map, rotaries: list[Rotary]
) -> Read:
    check_alike(graph, inside)
    query, key = inside.query, inside.key
    size = query.map.matrix.shape[0] // query.heads
    rotary = None
    if query.turned is not None:
        if query.turned.rotary not in rotaries:
            rotaries.append(query.turned.rotary)
        rotary = rotaries.index(query.turned.rotary)
    kind = None if query.norm is None else query.norm.kind
    block = Attention(
        query.heads, key.heads, size, norms, query.place, kind, rotary, inside.window, inside.softcap
    )  # fmt: skip
    columns = None if np.array_equal(inside.columns, np.arange(len(inside.columns))) else inside.columns
    matrix = replace(last.matrix, columns=columns).times(inside.factor)
    tensors: dict[str, Matrix | Array] = {**vectors, **map_tensors("output", replace(last, matrix=matrix))}
    for role, part in (("query", query), ("key", key)):
        tensors.update(_projection(role, part, size))
    tensors.update(map_tensors("value", inside.value.map))  # its factor is in `output`
    return Read(block, tensors, query.turned)


def _projection(role: str, part: Projected, size: int) -> dict[str, Matrix | Array]:
    """Queries or keys: factors in the norm where there is one, pairs of features half a rotation apart."""
    found, norm = part.map, part.norm
    if norm is None:
        found = found.times(part.factor)
    else:
        norm = norm.times(part.factor)
    if part.turned is not None:
        order = (np.arange(part.heads)[:, None] * size + part.turned.order).reshape(-1)
        found = found.rows(order)
        if norm is not None:
            places = part.turned.order if part.place == "head" else order
            beta = None if norm.beta is None else norm.beta[places]
            norm = replace(norm, gamma=norm.gamma[places], beta=beta)
    tensors = map_tensors(role, found)
    if norm is not None:
        for name, vector in norm_vectors(f"{role}_norm", norm).items():
            each = np.broadcast_to(vector.reshape(-1, size), (part.heads, size))
            tensors[name] = np.array(each) if norm.kind.kind == "layer" else vector
    return tensors


@dataclass(frozen=True, eq=False)
class _Neurons:
    """What a feed-forward block's last map reads: act(gate) * up, or act(up)."""

    up: Map
    gate: Map | None
    activation: BlockActivation

    @property
    def source(self) -> str:
        return self.up.source


def _neurons(graph: DecoderGraph, value: str) -> _Neurons:
    value = graph.source(value)
    starts = _starts(graph, value)
    if len(starts) not in (1, 2) or value in starts:
        raise graph.refuse(value, "the activation of a linear map, or of one times another")
    maps = [_rows_of(graph, start) for start in starts]
    if len({graph.source(one.source) for one in maps}) != 1:
        raise graph.refuse(value, "gate and neurons of the same features")
    gate, up, kind = _activation(graph, value, starts)
    return _Neurons(maps[up], None if gate is None else maps[gate], kind)


def _starts(graph: DecoderGraph, value: str) -> list[str]:
    """Values from which `value` is computed element by element."""
    seen: set[str] = set()
    starts: list[str] = []
    waiting = [value]
    while waiting:
        name = graph.source(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        features, others = graph.operands(name) if name in graph.producers else ([], [])
        if graph.op(name) in ELEMENTWISE and features and all(graph.scalar(other) is not None for other in others):
            waiting.extend(features)
        else:
            starts.append(name)
    return sorted(starts)


def _rows_of(graph: DecoderGraph, start: str) -> Map:
    """The linear map of a value, which may be a part of what a fused one gives."""
    moved = graph.moved(start)
    found = linear(graph, moved.source)
    batch, tokens = graph.shape(graph.word)[:2]
    if found is None or moved.index.size % (batch * tokens):
        raise graph.refuse(start, "a linear map before the activation")
    index = moved.index.reshape(batch * tokens, -1)
    rows = index[0]
    token = np.arange(batch * tokens)[:, None] * found.matrix.shape[0]
    if rows.max() >= found.matrix.shape[0] or not np.array_equal(index, rows + token):
        raise graph.refuse(start, "neurons that are the same for every token")
    return found.rows(rows).times(moved.factor)


def _activation(graph: DecoderGraph, value: str, starts: list[str]) -> tuple[int | None, int, BlockActivation]:
    """Which start is the gate (None: there is none), which are the neurons, and the activation, told on a grid."""
    grid = np.linspace(-8, 8, 4001, dtype=np.float32)
    other = np.random.default_rng(3).uniform(0.5, 1.5, grid.shape).astype(np.float32)
    kinds: dict[BlockActivation, NDArray[Any]] = {
        "relu": np.maximum(grid, 0), "silu": grid / (1 + np.exp(-grid)), "gelu": gelu(grid.copy()),
        "gelu_tanh": gelu_tanh(grid.copy()),
    }  # fmt: skip
    orders = ((None, 0),) if len(starts) == 1 else ((0, 1), (1, 0))
    for gate, up in orders:
        given = {starts[up]: other if gate is not None else grid}
        if gate is not None:
            given[starts[gate]] = grid
        result = on_grid(graph, value, dict(given))
        if result.shape != grid.shape:
            continue
        factor = other if gate is not None else np.float32(1)
        errors = {kind: float(np.abs(result - expected * factor).max()) for kind, expected in kinds.items()}
        nearest = min(errors, key=lambda kind: errors[kind])
        if errors[nearest] < 2 * graph.precision.activation:
            return gate, up, nearest
    raise graph.refuse(value, "GELU (erf or tanh form), ReLU or SiLU as activation, alone or times other neurons")
