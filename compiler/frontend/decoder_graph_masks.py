"""What a token attends to: masks by their value, and windows by the constants that make them.

A window of thousands of tokens hides nothing in a short prompt. So each number that a mask is computed from is replaced
by small ones: where the mask then hides all but so many tokens, the number is a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.decoder_graph_values import DecoderGraph
from stic.compiler.frontend.graph import Values
from stic.compiler.frontend.scores import additive
from stic.runtime.errors import UnsupportedModelError

Allowed = NDArray[np.bool_]  # (queries, keys)
_HIDDEN = -1e3  # a mask adds less than this to a score, whose exponential is then zero
_TRIED = (2, 3)  # windows in place of a constant
_TOKENS = 9  # of the prompt on which they are tried
_LARGEST_TABLE = 1 << 12  # tokens of a constant table of masks
_DATA_FIRST = {  # operators of which only the first input goes into the result, element by element
    "Reshape", "Unsqueeze", "Squeeze", "Expand", "Slice", "Gather", "GatherND", "Tile", "Transpose", "Cast", "Identity",
    "CastLike", "Trilu", "ScatterND",
}  # fmt: skip
_SILENT = {"Shape", "Size", "ConstantOfShape"}


@dataclass(frozen=True)
class Mask:
    """Something that hides tokens: it is added to scores, or chooses them or what hides them."""

    value: str
    fill: str = ""  # what hidden scores become, of masks that choose
    keeps: bool = True  # such a mask is true where scores stay


@dataclass(frozen=True, eq=False)
class Scores:
    """The product under a softmax, and what happens to it on the way."""

    product: str
    scale: float  # of the product, before the cap is applied
    softcap: float | None
    masks: tuple[Mask, ...]


def read_scores(graph: DecoderGraph, value: str) -> Scores:
    """Walk back from a softmax's input over masks, factors and a cap."""
    factor, cap = 1.0, None
    masks: list[Mask] = []
    while value in graph.features:
        node, op = graph.producers[value], graph.op(value)
        features, others = graph.operands(value)
        if len(features) != 1:
            break
        if op == "Where":
            keeps = node.input[1] in graph.features
            masks.append(Mask(node.input[0], node.input[2] if keeps else node.input[1], keeps))
        elif op == "Add":
            masks.append(Mask(others[0]))
        elif op in ("Mul", "Div") and (scalar := graph.scalar(others[0])):
            factor = factor * scalar if op == "Mul" else factor / scalar
        elif op == "Tanh" and cap is None:
            cap, factor = factor, 1.0
        elif op not in ("Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze"):
            break
        value = features[0]
    return Scores(value, factor if cap is None else factor * cap, cap, tuple(masks))


def window_of(graph: DecoderGraph, value: str, masks: tuple[Mask, ...], causal: bool = False) -> int | None:
    """How many tokens a token attends to, itself included; None: all before it.

    `causal` says that later tokens are hidden besides. Raises UnsupportedModelError, naming the node of `value`, for
    masks that hide anything else, or later tokens not at all.
    """
    key = (masks, causal)
    if key not in graph.windows:
        graph.windows[key] = _window(graph, value, masks, causal)
    return graph.windows[key]


def _window(graph: DecoderGraph, value: str, masks: tuple[Mask, ...], causal: bool) -> int | None:
    names = {name for mask in masks for name in (mask.value, mask.fill) if name}
    batch, size = graph.shape(graph.word)[:2]
    plain = _allowed(graph, value, masks, graph.probes[0], size, causal)
    if np.triu(plain, 1).any():
        raise UnsupportedModelError(
            f"{graph.where}: at '{value}', tokens attend to tokens after them; expected a decoder's causal mask"
            " (`stic compile` reads encoders)"
        )
    shown = _width(plain)
    if shown is None:
        raise graph.refuse(value, "a causal mask, with or without a window")
    found = shown if shown < size else None
    for constant in _numbers(graph, names):
        widths = []
        for tried in _TRIED:
            number = np.full_like(graph.value(constant), tried)
            try:
                values = graph.compute(names, batch, _TOKENS, {constant: number})
                width = _width(_allowed(graph, value, masks, values, _TOKENS, causal))
            except UnsupportedModelError:  # the number is something else, and does not stand to be another
                width = None
            widths.append(width)
        if None not in widths and widths[1] - widths[0] == 1 and widths[1] < _TOKENS:  # type: ignore[operator]
            width = int(graph.value(constant).reshape(())) + widths[0] - _TRIED[0]  # type: ignore[operator]
            if found is not None and found != width:
                raise graph.refuse(value, "one window of attention")
            found = width
    return found


def _width(allowed: Allowed) -> int | None:
    """Tokens that the last one attends to, where every other attends to as many, or to all before it; else None."""
    size = len(allowed)
    width = int(allowed[-1].sum())
    places = np.arange(size)
    expected = (places <= places[:, None]) & (places > places[:, None] - width)
    return width if width and np.array_equal(allowed, expected) else None


def _allowed(
    graph: DecoderGraph, value: str, masks: tuple[Mask, ...], values: Values, tokens: int, causal: bool
) -> Allowed:
    """Which tokens are attended to, in all heads and texts alike; anything added but minus infinity is refused."""
    hidden: NDArray[np.bool_] = np.triu(np.ones((tokens, tokens), bool), 1) if causal else np.zeros((1, 1), bool)
    for mask in masks:
        array = np.asarray(values[mask.value])
        if mask.fill:
            chosen = array.astype(bool)
            away, added = np.broadcast_arrays(~chosen if mask.keeps else chosen, values[mask.fill])
            if not (added[away] < _HIDDEN).all():
                raise graph.refuse(value, "hidden scores pushed to minus infinity")
        else:
            added = additive(array)
            away = added < _HIDDEN
            if np.abs(added[~away]).max(initial=0.0) > 1e-6:
                raise graph.refuse(
                    value, "attention scores with nothing added to tokens in use (no relative positions)"
                )
        hidden = hidden | away
    try:
        every = np.broadcast_to(hidden, np.broadcast_shapes(hidden.shape, (tokens, tokens))).reshape(-1, tokens, tokens)
    except ValueError:
        raise graph.refuse(value, f"a mask that fits {tokens} queries and keys") from None
    if not (every == every[:1]).all():
        raise graph.refuse(value, "the same mask in every head and text")
    allowed: Allowed = ~every[0]
    return allowed


def _numbers(graph: DecoderGraph, names: set[str]) -> list[str]:
    """Constants of one whole number of at least 2 that go into masks, element by element."""
    seen, waiting, found = set(names), list(names), []
    while waiting:
        name = waiting.pop()
        node = graph.producers.get(name)
        if node is None or node.op_type == "Constant":
            number = graph.scalar(name)
            if number is not None and number >= 2 and number == int(number):
                found.append(name)
            elif name in graph.weights or node is not None:
                _refuse_table(graph, name)
        elif node.op_type not in _SILENT:
            given = [one for one in (node.input[:1] if node.op_type in _DATA_FIRST else node.input) if one]
            waiting.extend(one for one in given if one not in seen)
            seen.update(given)
    return sorted(found)


def _refuse_table(graph: DecoderGraph, name: str) -> None:
    """Refuse a constant table of masks that is neither all alike nor plainly causal: a short prompt sees its corner."""
    table = graph.value(name)
    if table.ndim < 2 or table.shape[-2] != table.shape[-1] or not 2 <= table.shape[-1] <= _LARGEST_TABLE:
        return
    size = table.shape[-1]
    kept = additive(table) >= _HIDDEN if table.dtype == np.bool_ or (table < 0).any() else table != 0
    plain = (kept.reshape(-1, size, size) == np.tri(size, dtype=bool)).all()
    if not plain and kept.any() and not kept.all():
        node = next((n for n in graph.nodes if name in n.input), None)
        raise graph.refuse(node.output[0] if node else name, f"a causal mask in the constant '{name}'")
