"""The token id that a graph treats as padding: RoBERTa's positions are counted over all other tokens.

A text can hold that token too (a literal `<pad>`), so what the graph makes of it is part of the model. The id is a
constant of the arithmetic on token ids; which constant it is, a run with each of them in a sentence tells.
"""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.graph import Graph, Values

Ids = NDArray[np.int64]


def padding_id(graph: Graph, word: str, ids_name: str, vocabulary: int) -> int | None:
    """Return the id whose presence changes more than its own word row; None if there is none.

    The graph's first probe holds no small ids. UnsupportedModelError if there are several.
    """
    arithmetic = (nx.descendants(graph.flow, ids_name) | {ids_name}) - graph.features
    nodes = [node for node in graph.nodes if arithmetic.intersection(node.output)]
    used = {name for node in graph.nodes if graph.features.intersection(node.output) for name in node.input}
    results = (arithmetic & used) - {graph.producers[word].input[1]}
    known = graph.probes[0]
    constants = {name for node in nodes for name in node.input if name and name not in arithmetic}
    found = []
    for number in sorted(_whole_numbers([graph.value(name) for name in constants if graph.is_constant(name)])):
        if not 0 <= number < vocabulary:
            continue
        values: Values = {**known, ids_name: with_padding(graph.value(ids_name), number)}
        for node in nodes:
            made = graph.run_node(node, [values[name] for name in node.input])
            values.update(zip([name for name in node.output if name], made, strict=True))
        if any(not np.array_equal(values[name], known[name]) for name in results):
            found.append(number)
    if len(found) > 1:
        raise graph.refuse(min(results), f"one id that counts as padding, and not {found} (export with a mask input)")
    return found[0] if found else None


def with_padding(ids: Ids, padding: int) -> Ids:
    """Return ids (batch, tokens) with some of them replaced by `padding`, inside every sentence and first in one."""
    changed = np.array(ids)
    changed[:, 1] = padding
    if ids.shape[1] > 4:
        changed[-1, 0] = padding
    return changed


def _whole_numbers(arrays: list[NDArray[Any]]) -> set[int]:
    """Return all whole numbers in arrays of any type."""
    numbers: set[int] = set()
    for array in arrays:
        values = np.unique(array[np.isfinite(array)]) if np.issubdtype(array.dtype, np.number) else np.zeros(0)
        numbers.update(int(value) for value in values if float(value).is_integer())
    return numbers
