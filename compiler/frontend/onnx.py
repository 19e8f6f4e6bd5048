"""ONNX -> Model: recognise an encoder of the BERT family in a graph, whoever exported it.

The graph is read (`frontend_load`), cut down to one output (`frontend_graph`), run on probe inputs
(`frontend_probe`), and read backwards from the output: head, then half layers (`frontend_layers`), then embeddings.
Names of nodes and weights play no part. At the end the model is run in numpy on the probes and must give what the
graph gives, so that a graph that was misread is refused, never compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from stic.compiler.forward import outputs
from stic.compiler.frontend.embeddings import read_embeddings
from stic.compiler.frontend.folders import beside, name_of
from stic.compiler.frontend.graph import Graph, build_graph
from stic.compiler.frontend.head import read_head
from stic.compiler.frontend.layers import AttentionHalf, FeedForwardHalf, half
from stic.compiler.frontend.load import prepared, read_onnx
from stic.compiler.frontend.norms import norm
from stic.compiler.frontend.parts import terms
from stic.compiler.frontend.probe import MASKED, UNMASKED, Inputs, probe
from stic.compiler.frontend.scores import refuse_causal
from stic.compiler.model import Head, Layer, Linear, Model
from stic.runtime.errors import InputError, UnsupportedModelError
from stic.runtime.format import Activation


def load_model(path: Path, output: str | None = None) -> Model:
    """Read the ONNX file `path` as an encoder; `output` names the output wanted (None: the first).

    Beside the file, `config.json` may say that the model is elastic, and `tokenizer.json` is noted. Raises
    InputError for a file that is damaged or incomplete, UnsupportedModelError (naming the node, its op and what
    was expected there) for a graph that is not such an encoder.
    """
    path = Path(path)
    model = _recognised(build_graph(*read_onnx(path), output, str(path)))
    tokenizer = beside(path, "tokenizer.json")
    return replace(
        model,
        name=name_of(path),
        elastic=_is_elastic(beside(path, "config.json")),
        tokenizer=tokenizer if tokenizer.is_file() else None,
        source=path,
    )


def load_exported(
    structure: onnx.ModelProto,
    weights: Mapping[str, NDArray[Any]],
    folder: Path,
    config: Path,
    output: str | None = None,
) -> Model:
    """Read a graph that stic made of the Hugging Face directory `folder`, whose configuration is `config`.

    float32 weights stay views of the file, wherever the model takes them as they are. Otherwise as `load_model`.
    """
    graph = build_graph(*prepared(structure, weights), output, str(folder))
    tokenizer = beside(folder, "tokenizer.json")
    return replace(
        _recognised(graph),
        name=name_of(folder),
        elastic=_is_elastic(config),
        tokenizer=tokenizer if tokenizer.is_file() else None,
        source=folder,
    )


def _recognised(graph: Graph) -> Model:
    """The encoder in a graph, without name, files, and what they say."""
    inputs = probe(graph)
    refuse_causal(graph)
    head, last = read_head(graph, inputs)
    model = _trunk(graph, inputs, head, last)
    _check_same(graph, inputs, model)
    return model


def _trunk(graph: Graph, inputs: Inputs, head: Head, value: str) -> Model:
    """Read layers backwards from the last hidden states `value` to the embeddings."""
    layers: list[Layer] = []
    scale = 0.0
    kinds = set()
    while not _is_embedding(graph, inputs, value):
        second = half(graph, inputs, value)
        if not isinstance(second, FeedForwardHalf):
            raise graph.refuse(value, "the feed-forward half of a layer (attention comes first)")
        first = half(graph, inputs, second.before)
        if not isinstance(first, AttentionHalf):
            raise graph.refuse(second.before, "the attention half of a layer before its feed-forward half")
        scale = scale or first.scale
        query = _scaled(first.query, first.scale / scale)  # fp16 exports round the scale differently in each layer
        layers.append(
            Layer(
                query,
                first.key,
                first.value,
                first.output,
                first.norm,
                second.first,
                second.second,
                second.norm,
            )
        )
        heads, activation = first.heads, second.activation
        kinds.add((heads, activation, first.query.weight.shape, second.first.weight.shape))
        if len(kinds) > 1:
            raise graph.refuse(value, "the same heads, sizes and activation as in every other layer")
        value = first.before
    if not layers:
        raise graph.refuse(graph.output, "at least one encoder layer between the embeddings and the output")
    return Model(
        name="",
        heads=heads,
        activation=cast(Activation, activation),
        embeddings=read_embeddings(graph, inputs, value),
        layers=tuple(reversed(layers)),
        head=head,
        attention_scale=scale,
    )


def _scaled(linear: Linear, factor: float) -> Linear:
    if factor == 1.0:
        return linear
    return Linear(linear.weight * np.float32(factor), linear.bias * np.float32(factor))


def _is_embedding(graph: Graph, inputs: Inputs, value: str) -> bool:
    found = norm(graph, value)
    return found is not None and inputs.word in terms(graph, found[0])[0]


def _is_elastic(config: Path) -> bool:
    if not config.is_file():
        return False
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{config} is not readable JSON ({error}); mend or remove it") from error
    return bool(content.get("elastic")) if isinstance(content, dict) else False


def _check_same(graph: Graph, inputs: Inputs, model: Model) -> None:
    """Raise UnsupportedModelError unless `model`, run in numpy, gives what the graph gives on both probes."""
    for number in (UNMASKED, MASKED):
        mask = inputs.mask[number]
        if number == MASKED and not inputs.has_mask:
            mask = np.ones_like(mask)
        with np.errstate(all="ignore"):  # damaged weights overflow; they then differ, or are refused as such
            mine = outputs(model, inputs.ids[number], mask, inputs.types[number])
        theirs = graph.value(graph.output, number)
        if theirs.size != mine.size:
            raise graph.refuse(graph.output, f"an output of shape {mine.shape} for the small example")
        theirs = theirs.reshape(mine.shape)
        kept: NDArray[Any] = mask.astype(bool) if model.head.pooling == "tokens" else np.ones(len(mask), bool)
        error = np.abs(mine[kept] - theirs[kept]).max() / max(1.0, float(np.abs(theirs[kept]).max()))
        if not error < graph.precision.output:
            raise UnsupportedModelError(
                f"{graph.where}: it was read as an encoder of {len(model.layers)} layers, but at output "
                f"'{graph.output}' the graph differs from that encoder by {error:.2g}; "
                "expected the same function"
            )
