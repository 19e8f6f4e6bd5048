"""Rotary positions, recognised by what they do to a head's features.

Between a value that dominates the rotated one and that one, the nodes are run on heads made for it. If features turn in
pairs, by the same angles in every head, the answers give each pair's cosine and sine at each position; frequencies are
solved from these, and taken from the constants of the graph where these hold them. Rotations written as sums, with the
operators RotaryEmbedding of ONNX and of onnxruntime, or inside GroupQueryAttention all end here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.decoder_graph_file import MICROSOFT
from stic.compiler.frontend.decoder_graph_values import TOKENS, DecoderGraph, attribute
from stic.compiler.frontend.decoder_graph_weights import Rows
from stic.compiler.frontend.norms import Between, between
from stic.runtime.architecture import Rotary

Doubles = NDArray[np.float64]
_LONGER, _LONGEST = 4097, 1 << 17  # tokens of texts in which a short prompt's cosines are looked for again


@dataclass(frozen=True, eq=False)
class Turned:
    """Rotated features: what they were before, by how much they turn, and which features are pairs."""

    source: str
    rotary: Rotary
    order: Rows  # feature order[i] of a head is i where pairs are (i, i + features / 2)
    turning: tuple[str, ...]  # values that hold cosines and sines, and depend on the tokens
    tables: bool = False  # these two are tables (positions, pairs)


@dataclass(frozen=True, eq=False)
class Angles:
    """Cosines and sines (positions, pairs), from position 0 on, and constants that may be their frequencies."""

    cosine: Doubles
    sine: Doubles
    hints: tuple[NDArray[Any], ...] = ()


def turned(graph: DecoderGraph, value: str, index: Rows) -> Turned | None:
    """The rotation that ends at `value`, where `index` (batch, heads, tokens, size) says which element of it is which.

    None if features do not turn there.
    """
    if graph.op(value) == "RotaryEmbedding":
        return _fused(graph, value, index.shape[-1])
    start = value
    while start := graph.dominators.get(start, ""):
        if graph.shape(start) != graph.shape(value):
            continue
        function = between(graph, start, value, varying=True)
        if function is None:
            return None
        found = _measured(graph, function, index)
        if found is not None:
            return found
    return None


def fused(graph: DecoderGraph, value: str, names: tuple[str, str], interleaved: bool, size: int) -> Turned:
    """The rotation by two constant tables (positions, pairs), inside or outside of attention, of heads of `size`."""
    if not all(map(graph.is_constant, names)):
        raise graph.refuse(value, "constant tables of cosines and sines, the same for texts of every length")
    cosine, sine = (np.asarray(graph.value(name), np.float64) for name in names)
    rotary = _rotary(graph, value, Angles(cosine, sine))
    turning = tuple(name for name in names if name not in graph.weights)
    return Turned(value, rotary, _order(size, cosine.shape[-1], interleaved), turning, tables=True)


def _fused(graph: DecoderGraph, value: str, size: int) -> Turned:
    node = graph.producers[value]
    microsoft = node.domain == MICROSOFT
    tables = node.input[2:4] if microsoft else node.input[1:3]
    given = node.input[1] if microsoft else node.input[3] if len(node.input) > 3 else ""
    interleaved = bool(attribute(node, "interleaved", 0))
    heads = attribute(node, "num_heads", 0)
    if heads and len(graph.shape(value)) == 3 and graph.shape(value)[-1] != heads * size:
        raise graph.refuse(value, f"rotary positions of heads of {size} features")
    source = node.input[0]
    if given:
        places = graph.value(given).reshape(-1)
        tokens = len(places) if len(places) > 1 else 1  # one number: the position of the first token
        if tokens > 1 and not np.array_equal(places[:2], [0, 1]):
            raise graph.refuse(value, "positions 0, 1, 2, ... of a prompt's tokens")
        found = fused(graph, value, (tables[0], tables[1]), interleaved, size)
        return replace(found, source=source)
    cosine, sine = (np.asarray(graph.value(name), np.float64) for name in tables)
    angles = Angles(cosine.reshape(-1, *cosine.shape[-2:])[0], sine.reshape(-1, *sine.shape[-2:])[0])
    angles = Angles(angles.cosine, angles.sine, _hints(graph, tuple(tables), cosine.shape[-1]))
    rotary = _rotary(graph, value, angles)
    return Turned(source, rotary, _order(size, cosine.shape[-1], interleaved), tuple(tables))


def _order(size: int, pairs: int, interleaved: bool) -> Rows:
    first = np.arange(pairs) * 2 if interleaved else np.arange(pairs)
    return np.concatenate((first, first + (1 if interleaved else pairs), np.arange(2 * pairs, size)))


def _measured(graph: DecoderGraph, function: Between, index: Rows) -> Turned | None:
    size = index.shape[-1]
    random = np.random.default_rng(5)
    heads = random.uniform(0.5, 1.5, index.shape)

    def answers(x: Doubles) -> Doubles:
        given = np.zeros(graph.value(function.start).size)
        given[index.reshape(-1)] = x.reshape(-1)
        return function(given)[index]

    whole = answers(heads)
    if not np.isfinite(whole).all() or np.allclose(whole, heads, atol=1e-6):
        return None
    tolerance = max(1e-4, 4 * graph.precision.rounding)
    for pairs in range(size // 2, 0, -1):
        for interleaved in (False, True):
            order = _order(size, pairs, interleaved)
            first, second = order[:pairs], order[pairs : 2 * pairs]
            alone = np.zeros_like(heads)
            alone[..., first] = heads[..., first]
            given = answers(alone)
            cosine, sine = (given[..., part] / heads[..., first] for part in (first, second))
            expected = heads.copy()
            expected[..., first] = cosine * heads[..., first] - sine * heads[..., second]
            expected[..., second] = cosine * heads[..., second] + sine * heads[..., first]
            alike = all(np.abs(part - part[:1, :1]).max() < tolerance for part in (cosine, sine))
            if alike and np.abs(expected - whole).max() < tolerance:
                turning = tuple(name for name in function.constants if graph.value(name).size > 1)
                angles = Angles(cosine[0, 0], sine[0, 0], _hints(graph, turning, pairs))
                return Turned(function.start, _rotary(graph, function.end, angles), order, turning)
    return None


def _hints(graph: DecoderGraph, names: tuple[str, ...], pairs: int) -> tuple[NDArray[Any], ...]:
    """Constant vectors of `pairs` numbers from which values are computed."""
    before = set(names).union(*(nx.ancestors(graph.flow, name) for name in names if name in graph.flow))
    vectors = [graph.value(name).reshape(-1) for name in sorted(before) if graph.is_constant(name)]
    return tuple(v for v in vectors if v.size == pairs and np.issubdtype(v.dtype, np.floating))


def _rotary(graph: DecoderGraph, value: str, angles: Angles) -> Rotary:
    """Solve frequencies and magnitude; UnsupportedModelError if angles are not positions times frequencies."""
    cosine, sine = angles.cosine, angles.sine
    tolerance = max(2e-3, 8 * graph.precision.rounding)
    magnitude = float(np.hypot(cosine, sine).mean())
    magnitude = 1.0 if abs(magnitude - 1.0) < max(1e-5, graph.precision.rounding) else magnitude
    turns = np.arctan2(sine, cosine)
    frequencies = turns[1]
    step = 2
    while step < len(turns):  # later positions tell frequencies more exactly
        missing = np.round((step * frequencies - turns[step]) / (2 * np.pi))
        frequencies = (turns[step] + 2 * np.pi * missing) / step
        step *= 2
    for hint in angles.hints:
        near = np.abs(hint - frequencies) <= 1e-3 * np.abs(frequencies) + 1e-9
        frequencies = hint.astype(np.float64) if near.all() else frequencies
    found = frequencies.astype(np.float32)
    expected = np.multiply.outer(np.arange(len(turns)), found.astype(np.float64))
    error = max(np.abs(np.cos(expected) * magnitude - cosine).max(), np.abs(np.sin(expected) * magnitude - sine).max())
    if not error < tolerance * max(1.0, magnitude):
        raise graph.refuse(value, "rotary positions: angles that are a token's number times a frequency")
    return Rotary(tuple(found.tolist()), magnitude)


def lengthened(graph: DecoderGraph, turned: Turned, context: int) -> Rotary:
    """The rotary positions with those of long texts (longrope), where tables depend on the number of tokens.

    Raises UnsupportedModelError for cosines that are computed otherwise in longer texts (dynamic scaling).
    """
    longest = min(context, _LONGEST)
    if not any(_differ(graph, turned, tokens) for tokens in {min(longest, _LONGER), longest}):
        return turned.rotary
    if not turned.tables or not _differ(graph, turned, longest):
        raise graph.refuse(turned.source, "the same rotary positions in texts of every length")
    short, long = TOKENS, longest
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (short, middle) if _differ(graph, turned, middle) else (middle, long)
    values = graph.compute(turned.turning, 1, longest)
    cosine, sine = (np.asarray(values[name], np.float64) for name in turned.turning)
    return replace(turned.rotary, long=_rotary(graph, turned.source, Angles(cosine, sine)), switch=short)


def _differ(graph: DecoderGraph, turned: Turned, tokens: int) -> bool:
    """Whether the first tokens of a text of so many turn otherwise than in a short prompt."""
    values = graph.compute(turned.turning, 1, tokens)
    for name in turned.turning:
        short, long = graph.value(name), np.asarray(values[name])
        first = tuple(slice(min(sizes)) for sizes in zip(short.shape, long.shape, strict=True))
        if not np.allclose(short[first], long[first], atol=1e-4):
            return True
    return False
