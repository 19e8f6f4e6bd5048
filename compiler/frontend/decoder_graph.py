"""ONNX -> Decoder: recognise a decoder-only transformer in a graph, whoever exported it.

The graph is read without its weights (`decoder_graph_file`), computed as far as that needs none of them
(`decoder_graph_values`), and read backwards from its logits: head, blocks along the residual stream
(`decoder_graph_blocks`), embedding. Names of nodes and weights play no part. Weights stay in their files and are read
when they are asked for. At the end onnxruntime, where it is installed, computes the graph on random tokens, and the
decoder must give the same logits, so that a graph that was misread is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.decoder.model import Decoder
from stic.compiler.frontend.decoder_graph_blocks import Read, map_tensors, norm_vectors, read_blocks
from stic.compiler.frontend.decoder_graph_check import check_same
from stic.compiler.frontend.decoder_graph_file import read_decoder_graph
from stic.compiler.frontend.decoder_graph_parts import Normed, linear, normed, scaled
from stic.compiler.frontend.decoder_graph_rotary import lengthened
from stic.compiler.frontend.decoder_graph_values import DecoderGraph, build_decoder_graph
from stic.compiler.frontend.decoder_graph_weights import GraphWeights, Matrix, dense, quantised, whole
from stic.compiler.frontend.decoder_text import read_text
from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.folders import beside, name_of
from stic.compiler.frontend.graph import NEUTRAL, build_graph
from stic.compiler.frontend.sentence_modules import read_object
from stic.runtime.architecture import Architecture, Attention, Embedding, Norms, Rotary, Vocabulary, tensors
from stic.runtime.errors import InputError, UnsupportedModelError

_CONTEXT = ("max_position_embeddings", "n_positions", "context_length", "max_sequence_length")
_PAST = 3  # tokens before a prompt, by which its positions must move
_LAYOUT = {"Reshape", "Unsqueeze", "Squeeze", "Expand"}


@dataclass(frozen=True, eq=False)
class _Head:
    """What follows the last block; a factor of logits is in the norm, or in the matrix where there is none."""

    stream: str
    norm: Normed | None
    matrix: Matrix
    tensors: dict[str, Any]
    softcap: float | None


@dataclass(frozen=True, eq=False)
class _Entry:
    """How tokens enter."""

    matrix: Matrix
    multiplier: float
    position: Matrix | None


def load_decoder(path: Path) -> Decoder:
    """Read the ONNX file `path` as a decoder; what stands beside it says the context, the text and where answers end.

    Raises InputError for a file that is damaged or incomplete, UnsupportedModelError (naming the node, its op and what
    was expected there) for a graph that is not such a decoder, or differs from it on random tokens.
    """
    path = Path(path)
    model, weights, precision = read_decoder_graph(path)
    graph = build_decoder_graph(build_graph(model, weights, precision, _logits(model, path), str(path)))
    head = _read_head(graph)
    rotaries: list[Rotary] = []
    blocks, start = read_blocks(graph, head.stream, rotaries)
    _check_caches(graph, model, blocks)
    entry, config = _read_entry(graph, start), _config(path)
    tied = head.norm is not None and "head_bias" not in head.tensors and head.matrix.same(entry.matrix)
    context = _context(path, config, entry)
    kind = None if head.norm is None else head.norm.kind
    vocabulary = Vocabulary(head.matrix.shape[0], Norms(kind), tied, head.softcap)
    architecture = Architecture(
        str(config.raw("model_type", "onnx")), entry.matrix.shape[1], entry.matrix.shape[0], context,
        Embedding(entry.multiplier, 0 if entry.position is None else entry.position.shape[0]),
        (*(one.block for one in blocks), vocabulary), _rotaries(graph, blocks, rotaries, context),
    )  # fmt: skip
    text = read_text(beside(path, "config.json").parent, config, architecture.vocabulary)
    architecture = replace(architecture, bos=text.bos, stops=text.stops)
    decoder = Decoder(name_of(path), architecture, _weights(graph, architecture, entry, blocks, head), text.text, path)
    check_same(decoder, graph)
    return decoder


def _logits(model: Any, path: Path) -> str:
    """The output of logits: the first that is no cache, (batch, tokens, vocabulary)."""
    shapes = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.output}
    found = [name for name, axes in shapes.items() if axes == 3] or [name for name, axes in shapes.items() if axes != 4]
    if not found:
        raise UnsupportedModelError(
            f"{path}: its outputs are {', '.join(shapes)}; expected logits (batch, tokens, vocabulary) among them"
        )
    return str(found[0])


def _read_head(graph: DecoderGraph) -> _Head:
    value, factor = scaled(graph, graph.output)
    softcap = None
    if graph.op(value) == "Tanh":
        softcap = factor
        value, inner = scaled(graph, graph.producers[value].input[0])
        factor *= inner
    found = linear(graph, value)
    if found is None:
        raise graph.refuse(value, "logits: the product of features and the rows of a head")
    hidden = _whole_rows(graph, found.source)
    norm = normed(graph, hidden)
    if norm is not None:
        norm, bias = norm.times(factor), found.bias
        bias = None if bias is None else np.asarray(bias * np.float32(factor))
        found = replace(found, bias=bias)
    else:
        found = found.times(factor)
    return _Head(
        hidden if norm is None else norm.source, norm, found.matrix, map_tensors("head", found), softcap
    )  # fmt: skip


def _whole_rows(graph: DecoderGraph, value: str) -> str:
    """Step back over a choice of tokens of which logits are wanted."""
    moved = graph.moved(value)
    width = graph.shape(value)[-1]
    index = moved.index.reshape(-1, width)
    if moved.factor != 1.0 or not np.array_equal(index - index[:, :1], np.broadcast_to(np.arange(width), index.shape)):
        return value
    return graph.source(moved.source) if graph.shape(moved.source)[-1] == width else value


def _read_entry(graph: DecoderGraph, value: str) -> _Entry:
    """The sum of embedding rows, times a factor, and rows of positions, that ends in `value`."""
    value, position = graph.source(value), None
    features, others = graph.operands(value) if value != graph.word else ([], [])
    if graph.op(value) == "Add" and len(features) == 1:
        position = _positions(graph, others[0])
        value = features[0]
    value, multiplier = scaled(graph, value)
    if value != graph.source(graph.word) and value != graph.word:
        raise graph.refuse(value, "rows of the embedding, times a factor, with or without rows of positions")
    gather = graph.producers[graph.word]
    if gather.op_type == "GatherBlockQuantized":
        return _Entry(whole(quantised(graph, graph.word)), multiplier, position)
    table = dense(graph, gather.input[0])
    if table is None:
        raise graph.refuse(graph.word, "rows of a constant table")
    return _Entry(whole(table), multiplier, position)


def _positions(graph: DecoderGraph, value: str) -> Matrix:
    """The rows that are added for positions 0, 1, 2, ..."""
    while graph.op(value) in NEUTRAL or (
        graph.op(value) in _LAYOUT and graph.shape(graph.producers[value].input[0])[-1:] == graph.shape(value)[-1:]
    ):
        value = graph.producers[value].input[0]
    node = graph.producers.get(value)
    table = dense(graph, node.input[0]) if node is not None and node.op_type in ("Gather", "Slice") else None
    if node is None or table is None:
        raise graph.refuse(value, "rows of a constant table of positions")
    batch, tokens = graph.shape(graph.word)[:2]
    if node.op_type == "Gather":
        rows = graph.value(node.input[1])
    else:
        numbers = np.broadcast_to(np.arange(table.shape[0])[:, None], table.shape)
        rows = graph.run_node(node, [numbers, *(graph.value(one) for one in node.input[1:])])[0][:, 0]
    first = int(rows.reshape(-1)[0])
    if rows.size not in (tokens, batch * tokens) or not (rows.reshape(-1, tokens) == first + np.arange(tokens)).all():
        raise graph.refuse(value, "rows by position: an offset plus the token's number")
    if node.op_type == "Gather" and "past" in graph.roles.values():
        later = graph.compute([node.input[1]], batch, tokens, past=_PAST)[node.input[1]]
        if not np.array_equal(later.reshape(-1), rows.reshape(-1) + _PAST):
            raise graph.refuse(value, "positions that count the past tokens (export the model with position_ids)")
    return Matrix(table, np.arange(first, table.shape[0]))


def _config(path: Path) -> Config:
    """What config.json says, or genai_config.json where there is none."""
    file, genai = beside(path, "config.json"), beside(path, "genai_config.json")
    said: dict[str, Any] = {}
    if genai.is_file():
        model = read_object(genai).get("model")
        if not isinstance(model, dict):
            raise InputError(f"{genai} is damaged: it holds no model; build the model again")
        said = {**model, "model_type": model.get("type")}
    if file.is_file():
        own = read_object(file)
        said = {**said, **own, "eos_token_id": _union(said.get("eos_token_id"), own.get("eos_token_id"))}
    return Config(said, str(file if file.is_file() else genai))


def _union(*said: Any) -> list[Any]:
    return [number for one in said if one is not None for number in (one if isinstance(one, list) else [one])]


def _context(path: Path, config: Config, entry: _Entry) -> int:
    """The longest text that the model was made for, in tokens."""
    rows = [] if entry.position is None else [entry.position.shape[0]]
    said = [config.whole(key) for key in _CONTEXT if key in config][:1]
    if not rows and not said:
        raise InputError(
            f"{path}: nothing says how long a text the model was made for: put its config.json"
            " (max_position_embeddings) or its genai_config.json (context_length) beside it"
        )
    return min(rows + said)


def _check_caches(graph: DecoderGraph, model: Any, blocks: list[Read]) -> None:
    """Raise UnsupportedModelError where there are caches of other layers than the logits need."""
    caches = sum(len(value.type.tensor_type.shape.dim) == 4 for value in model.graph.input)
    layers = sum(isinstance(one.block, Attention) for one in blocks)
    if caches not in (0, 2 * layers):
        raise UnsupportedModelError(
            f"{graph.where}: it has {caches} inputs of past keys and values, but its logits need {layers} layers of"
            " attention; expected two for each layer: export the model again"
        )


def _rotaries(graph: DecoderGraph, blocks: list[Read], rotaries: list[Rotary], context: int) -> tuple[Rotary, ...]:
    """What blocks turn by, in texts of every length."""
    found, seen = list(rotaries), set()
    for turned in (one.turned for one in blocks if one.turned is not None):
        if turned.turning and turned.turning not in seen:
            seen.add(turned.turning)
            found[rotaries.index(turned.rotary)] = lengthened(graph, turned, context)
    return tuple(found)


def _weights(
    graph: DecoderGraph, architecture: Architecture, entry: _Entry, blocks: list[Read], head: _Head
) -> GraphWeights:
    """Every tensor by block and role; UnsupportedModelError where shapes do not fit each other."""
    held: dict[tuple[int | None, str], Any] = {(None, "embedding"): entry.matrix}
    if entry.position is not None:
        held[None, "position"] = entry.position
    for number, one in enumerate(blocks):
        held.update({(number, role): tensor for role, tensor in one.tensors.items()})
    vectors = norm_vectors("input", head.norm)
    last = {role: tensor for role, tensor in head.tensors.items() if not architecture.head.tied}
    held.update({(len(blocks), role): tensor for role, tensor in {**vectors, **last}.items()})
    listed = {(tensor.block, tensor.role): tensor for tensor in tensors(architecture)}
    for key, tensor in listed.items():
        found = held.get(key)
        if found is None and tensor.optional:
            continue
        if found is None or found.shape != tensor.shape:
            shape = "missing" if found is None else f"{found.shape}"
            raise UnsupportedModelError(
                f"{graph.where}: the {tensor.role} of block {tensor.block} is {shape}; expected {tensor.shape}"
            )
    if extra := held.keys() - listed.keys():
        place, role = min(extra, key=str)
        raise UnsupportedModelError(f"{graph.where}: block {place} has a {role}, which decoders have no place for")
    return GraphWeights(graph.where, held)
