"""Attention masks: what a graph adds to attention scores, judged by its value on the probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.graph import Graph
from stic.compiler.frontend.load import describe
from stic.compiler.frontend.probe import MASKED, UNMASKED, Inputs
from stic.runtime.errors import UnsupportedModelError

_MASKED = -1e3  # a mask adds less than this to a score, whose exponential is then zero


@dataclass(frozen=True, eq=False)
class Scores:
    """The matrix product under a softmax, and what happens to it on the way."""

    product: str  # value: queries times keys
    factor: float
    bias: tuple[NDArray[Any], NDArray[Any]]  # sum of all that is added, for each probe, (..., queries, keys)


def read_scores(graph: Graph, value: str) -> Scores:
    """Walk back from a softmax's input over masks and scalar factors."""
    factor = 1.0
    bias: list[NDArray[Any]] = [np.zeros((1, 1)), np.zeros((1, 1))]
    while value in graph.features:
        node, op = graph.producers[value], graph.op(value)
        features, others = graph.operands(value)
        if len(features) != 1:
            break
        if op == "Where":
            keep_first = node.input[1] in graph.features
            fill = node.input[2] if keep_first else node.input[1]
            for number in (UNMASKED, MASKED):
                chosen = graph.value(node.input[0], number).astype(bool)
                hidden = ~chosen if keep_first else chosen
                bias[number] = bias[number] + np.where(hidden, graph.value(fill, number), 0.0)
        elif op == "Add" or (op == "Sub" and node.input[0] in graph.features):
            sign = 1.0 if op == "Add" else -1.0
            for number in (UNMASKED, MASKED):
                bias[number] = bias[number] + sign * graph.value(others[0], number)
        elif op in ("Mul", "Div") and (scalar := graph.scalar(others[0])):
            factor = factor * scalar if op == "Mul" else factor / scalar
        elif op not in ("Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze"):
            break
        value = features[0]
    return Scores(value, factor, (bias[UNMASKED], bias[MASKED]))


def refuse_causal(graph: Graph) -> None:
    """Raise UnsupportedModelError if any attention hides later tokens from earlier ones: that is a decoder."""
    for node in graph.nodes:
        causal = node.op_type == "Attention" and any(a.name == "is_causal" and a.i for a in node.attribute)
        if node.op_type == "Softmax" and node.input[0] in graph.features:
            causal = _is_causal(read_scores(graph, node.input[0]).bias[UNMASKED])
        elif node.op_type == "Attention" and len(node.input) > 3 and node.input[3]:
            causal = causal or _is_causal(additive(graph.value(node.input[3])))
        if causal:
            raise UnsupportedModelError(
                f"{graph.where}: {describe(node)} hides later tokens from earlier ones (a causal mask): this is a "
                "decoder; decoders of this form are not supported"
            )


def additive(mask: NDArray[Any]) -> NDArray[Any]:
    """Turn a mask of truth values (True: attend) into one that is added to scores."""
    return np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else mask


def _is_causal(bias: NDArray[Any]) -> bool:
    size = bias.shape[-1]
    if bias.ndim < 2 or bias.shape[-2] != size or size < 2:
        return False
    later = np.triu(np.ones((size, size), bool), 1)
    hidden = bias < _MASKED
    return bool(hidden[..., later].all() and not hidden[..., ~later].any())


def check_mask(graph: Graph, inputs: Inputs, value: str, bias: tuple[NDArray[Any], NDArray[Any]], heads: int) -> None:
    """Raise UnsupportedModelError (naming the node of `value`) unless `bias` is a padding mask and nothing else."""
    _, batch, size = inputs.mask.shape
    for number in (UNMASKED, MASKED):
        array = bias[number]
        lead = (batch * heads,) if array.ndim == 3 and array.shape[0] == batch * heads else (batch, heads)
        try:
            added = np.broadcast_to(array, (*lead, size, size)).reshape(batch, heads, size, size)
        except ValueError:
            raise graph.refuse(value, f"a mask that fits (batch, heads, {size}, {size})") from None
        kept = inputs.mask[number].astype(bool) if inputs.has_mask else np.ones((batch, size), bool)
        for row in range(batch):
            seen = added[row][:, kept[row], :]
            words = kept[row] & (inputs.ids[number][row] != inputs.padding)
            if np.abs(seen[..., words]).max(initial=0.0) > 1e-6:
                expected = "attention scores with nothing added to tokens in use (no relative positions, as MPNet's)"
                raise graph.refuse(value, expected)
            if np.abs(seen[..., kept[row]]).max() > 1e-6:
                raise graph.refuse(
                    value,
                    f"an attention mask that is an input of the graph and not made from token ids, which hides token"
                    f" {inputs.padding} where a text holds it (export with attention_mask as an input)",
                )
            if not (seen[..., ~kept[row]] < _MASKED).all():
                raise graph.refuse(value, "scores of masked tokens pushed to minus infinity (an attention mask)")
