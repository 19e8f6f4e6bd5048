"""Embedding tables: told apart by the row numbers that the probes looked up in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.graph import Graph
from stic.compiler.frontend.norms import norm
from stic.compiler.frontend.parts import terms
from stic.compiler.frontend.probe import MASKED, UNMASKED, Inputs
from stic.compiler.model import Array, Embeddings


def read_embeddings(graph: Graph, inputs: Inputs, value: str) -> Embeddings:
    """Read norm(word + position (+ token type)) at `value`; UnsupportedModelError names what else is in the sum."""
    found = norm(graph, value)
    if found is None:
        raise graph.refuse(value, "the layer normalisation of the embeddings")
    features, others = terms(graph, found[0])
    if features != [inputs.word]:
        raise graph.refuse(found[0], "the sum of word, position and token type rows")
    word = _table(graph, inputs.word)
    hidden = word.shape[1]
    position: Array | None = None
    types: Array | None = None
    offset, padding = 0, None
    constant = np.zeros((1, hidden), np.float32)
    _, batch, tokens = inputs.ids.shape
    for name in others:
        name = _lookup(graph, name)
        if graph.op(name) not in ("Gather", "Slice"):
            constant = constant + _folded(graph, inputs, name, hidden)
            continue
        index = [np.broadcast_to(_rows(graph, name, p), (batch, tokens)) for p in (UNMASKED, MASKED)]
        start = int(index[UNMASKED][0, 0])
        if np.array_equal(index[UNMASKED], np.broadcast_to(start + np.arange(tokens), (batch, tokens))):
            if position is not None:
                raise graph.refuse(name, "one position table")
            position, offset = _table(graph, name), start
            padding = _padding(graph, inputs, name, index[MASKED] - start)
        elif inputs.has_types and all(np.array_equal(index[p], inputs.types[p]) for p in (UNMASKED, MASKED)):
            if types is not None:
                raise graph.refuse(name, "one token type table")
            types = _table(graph, name)
        elif all(np.all(index[p] == start) for p in (UNMASKED, MASKED)):  # the same row, whatever types a run is given
            row = _table(graph, name)[start : start + 1]
            if types is None and not inputs.has_types:
                types = row
            else:
                constant = constant + row
        else:
            raise graph.refuse(name, "rows by position (an offset plus the token's number) or by token type")
    if len(constant) > 1:  # rows that the exporter folded, one for each token of a fixed length
        if padding is not None:
            raise graph.refuse(found[0], "positions that either depend on padding or are constant")
        base = position[offset : offset + tokens] if position is not None else np.float32(0.0)
        position, offset = (base + constant).astype(np.float32), 0
    elif np.any(constant) and position is not None:
        position = position + constant
    if position is None:
        raise graph.refuse(found[0], "position rows in the sum of the embeddings")
    return Embeddings(word, position, types, found[1], offset, padding)


def _folded(graph: Graph, inputs: Inputs, name: str, hidden: int) -> Array:
    """Return the rows that the exporter folded: one for all tokens, or one for each (rows, hidden)."""
    rows, (_, batch, tokens) = graph.value(name), inputs.ids.shape
    shapes = ((tokens, hidden), (batch, tokens, hidden))
    if graph.is_constant(name) and rows.shape[-1:] == (hidden,) and rows.size in (hidden, *map(np.prod, shapes)):
        every = np.broadcast_to(rows.reshape(-1, *shapes[0]) if rows.size > hidden else rows.reshape(-1), shapes[1])
        same = np.array_equal(every, np.broadcast_to(every[:1], every.shape))  # for every text of the batch
        if same and np.array_equal(every[0], np.broadcast_to(every[0, :1], shapes[0])):
            return np.asarray(every[0, :1], np.float32)
        if same and inputs.fixed_length:
            return np.asarray(every[0], np.float32)
    raise graph.refuse(name, "rows of a position or token type table")


def _padding(graph: Graph, inputs: Inputs, name: str, places: NDArray[Any]) -> int | None:
    """Return the id that the positions `places` of MASKED's tokens skip, None if they are the tokens' numbers."""
    kept = inputs.mask[MASKED].astype(bool)  # rows of masked tokens bear on nothing
    if np.array_equal(places[kept], np.broadcast_to(np.arange(places.shape[1]), places.shape)[kept]):
        return None
    counted = inputs.ids[MASKED] != inputs.padding
    skipping = np.cumsum(counted, axis=1) * counted - 1
    if inputs.padding is None or not np.array_equal(places[kept], skipping[kept]):
        raise graph.refuse(name, "positions by token number, or by the number of tokens that are no padding")
    return inputs.padding


def _lookup(graph: Graph, name: str) -> str:
    """Step back from looked-up rows over casts and added axes to the Gather."""
    while graph.op(name) in ("Cast", "Identity", "Unsqueeze", "Expand", "Reshape", "Dropout"):
        before = graph.producers[name].input[0]
        if graph.shape(before)[-1:] != graph.shape(name)[-1:]:
            break
        name = before
    return name


def _rows(graph: Graph, name: str, number: int) -> NDArray[Any]:
    """Return the numbers of the table's rows that a Gather or a Slice takes."""
    node = graph.producers[name]
    if node.op_type == "Gather":
        return graph.value(node.input[1], number)
    table = _table(graph, name)
    numbers = np.broadcast_to(np.arange(len(table))[:, None], table.shape)
    taken = graph.run_node(node, [numbers, *(graph.value(other, number) for other in node.input[1:])])[0]
    if taken.ndim != 2 or taken.shape[1] != table.shape[1]:
        raise graph.refuse(name, "whole rows of a position table")
    return np.asarray(taken[:, 0])


def _table(graph: Graph, gather: str) -> Array:
    node = graph.producers[gather]
    table = graph.value(node.input[0])
    if not graph.is_constant(node.input[0]) or table.ndim != 2:
        raise graph.refuse(gather, "a constant table of rows")
    return np.ascontiguousarray(table, np.float32)
