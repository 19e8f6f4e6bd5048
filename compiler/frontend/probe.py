"""Which input is what, and the probe runs that tell values apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from stic.compiler.frontend.graph import Graph, Values
from stic.compiler.frontend.norms import dominators
from stic.compiler.frontend.padding import padding_id, with_padding
from stic.runtime.errors import UnsupportedModelError

# The two probes. MASKED varies all that a run may vary: some tokens masked, every token type, padding in the text.
UNMASKED, MASKED = 0, 1
_BATCH, _SEQUENCE = 2, 5  # where the file leaves them open


@dataclass(frozen=True, eq=False)
class Inputs:
    """The probe inputs by meaning; each (2, batch, sequence), probe first."""

    word: str  # value: the word table's rows of the input
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    types: NDArray[np.int64]
    has_mask: bool
    has_types: bool  # else no token type that a run is given may matter
    padding: int | None  # the id that the graph treats unlike others (`frontend_padding`); in the ids of MASKED
    fixed_length: bool  # the file fixes the number of tokens


def probe(graph: Graph) -> Inputs:
    """Find the inputs' meaning by data flow, run both probes, and fill the graph's features, varying and probes."""
    lookups = _lookups(graph)
    if not lookups:
        raise UnsupportedModelError(
            f"{graph.where}: no node gathers rows of a table by a token input; expected a text encoder's word table"
            " (op Gather of a float table by token ids)"
        )
    word, ids_name, vocabulary = max(lookups, key=lambda found: found[2])
    others = sorted((rows, name) for _, name, rows in lookups if name != ids_name)
    # Two further tables: token types are few, positions many. One alone holds types unless it has rows for a sentence.
    types_name, types_rows = "", 2
    if others and (len(others) > 1 or others[0][0] <= 16):
        types_rows, types_name = others[0]
    positions_name = next((name for _, name in reversed(others) if name != types_name), "")
    rest = [v.name for v in graph.inputs if v.name not in (ids_name, types_name, positions_name)]
    if len(rest) > 1:
        raise UnsupportedModelError(
            f"{graph.where}: inputs {', '.join(repr(n) for n in rest)} remain beside the token ids '{ids_name}'; "
            "expected one attention mask"
        )
    batch, sequence, fixed_length = _axes(graph)
    low = vocabulary // 2  # ids that mean more than a word, such as padding, are small
    ids = (low + np.arange(2 * batch * sequence) % (vocabulary - low)).reshape(2, batch, sequence)
    mask = np.ones((2, batch, sequence), np.int64)
    mask[MASKED, :, -1:] = 0
    mask[MASKED, -1, -2:] = 0
    mask[MASKED, :, 0] = 1  # a fixed length may be two tokens
    types = np.zeros((2, batch, sequence), np.int64)
    if types_name:
        types[MASKED] = (np.arange(sequence) + np.arange(batch)[:, None]) % types_rows
    positions = np.broadcast_to(np.arange(sequence), (batch, sequence))
    graph.features.update(nx.descendants(graph.flow, word) | {word})
    graph.dominators.update(dominators(graph, word))
    for value in graph.inputs:
        graph.varying.update(nx.descendants(graph.flow, value.name) | {value.name})
    padding = None
    for number in (UNMASKED, MASKED):
        if number == MASKED and (padding := padding_id(graph, word, ids_name, vocabulary)) is not None:
            ids[MASKED] = with_padding(ids[MASKED], padding)
        by_name: Values = {ids_name: ids[number], types_name: types[number], positions_name: positions}
        by_name.update({name: mask[number] for name in rest})
        graph.probes.append(graph.run({v.name: by_name[v.name].astype(_dtype(v)) for v in graph.inputs}))
    return Inputs(word, ids, mask, types, bool(rest), bool(types_name), padding, fixed_length)


def _lookups(graph: Graph) -> list[tuple[str, str, int]]:
    """Find every (value, input name, rows of the table): table rows gathered by an input itself."""
    names = {value.name for value in graph.inputs}
    tables = _constants(graph)
    found = []
    for node in graph.nodes:
        if node.op_type != "Gather" or node.input[0] not in tables:
            continue
        index = node.input[1]
        while index not in names and graph.op(index) in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            index = graph.producers[index].input[0]
        table = _fold(graph, node.input[0])
        if index in names and table.ndim == 2 and np.issubdtype(table.dtype, np.floating):
            found.append((node.output[0], index, table.shape[0]))
    return found


def _constants(graph: Graph) -> set[str]:
    """Values that are weights, or made of weights by operators that keep a table a table."""
    known = set(graph.weights)
    for node in graph.nodes:
        if node.op_type == "Constant" or (node.op_type in ("Identity", "Cast", "Transpose") and node.input[0] in known):
            known.update(node.output)
    return known


def _fold(graph: Graph, value: str) -> NDArray[Any]:
    if value in graph.weights:
        return np.asarray(graph.weights[value])
    node = graph.producers[value]
    return np.asarray(graph.run_node(node, [_fold(graph, name) for name in node.input])[0])


def _axes(graph: Graph) -> tuple[int, int, bool]:
    """Return the probe's batch and tokens, as the file fixes them or small, and whether tokens are fixed."""
    fixed: list[set[int]] = [set(), set()]
    for value in graph.inputs:
        dims = value.type.tensor_type.shape.dim
        if len(dims) != 2:
            raise UnsupportedModelError(
                f"{graph.where}: input '{value.name}' has {len(dims)} axes; expected (batch, sequence)"
            )
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                fixed[axis].add(dim.dim_value)
    if len(fixed[0]) > 1 or len(fixed[1]) > 1 or max(fixed[0] | fixed[1] | {0}) > 1 << 14 or fixed[1] == {1}:
        raise UnsupportedModelError(
            f"{graph.where}: its inputs have sizes {sorted(fixed[0])} x {sorted(fixed[1])}; expected one batch and one "
            "sequence length of at least 2 tokens for all"
        )
    return next(iter(fixed[0]), _BATCH), next(iter(fixed[1]), _SEQUENCE), bool(fixed[1])


def _dtype(value: onnx.ValueInfoProto) -> Any:
    kind = value.type.tensor_type.elem_type
    return np.float32 if kind in (1, 10, 11, 16) else helper.tensor_dtype_to_np_dtype(kind)
