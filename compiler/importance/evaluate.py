"""What a choice of bits for every shard does to a model's outputs, in floating point on the compiler's side.

An assignment says for every shard how many bits it has: 2..8, 16 or 32, or 0 for left out. Weights are the dequantised
ones of `quantization.quantize.dequantize`; activations stay float32, whereas the engine rounds them to 8 bits, which
every assignment suffers alike. An `Evaluator` keeps the hidden states of a base assignment before each layer, so that
an assignment which differs from it only from layer l on costs the layers from l on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from stic.compiler.forward import Layout, activate, attend, dense_layout, embed, feed_forward, mix, outputs, run_head
from stic.compiler.importance.examples import Batch, Examples
from stic.compiler.importance.objectives import Objective, loss
from stic.compiler.importance.scoring import score
from stic.compiler.model import Array, Layer, Model
from stic.compiler.quantization.quantize import QuantizedModel, dequantize
from stic.compiler.sharding import Geometry, assemble, shard_bias
from stic.runtime.format import MATRICES

Assignment = tuple[tuple[int, ...], ...]  # [layer][slice] bits; 0: left out, and then all later slices as well
BATCH_TOKENS = 512  # measured: larger batches leave the cache, smaller ones starve the matrix products


@dataclass(frozen=True)
class Scores:
    """What one assignment does."""

    loss: float  # by the objective; lower is better
    metric: float | None  # accuracy or Spearman; None without labels


@dataclass(frozen=True, eq=False)
class Setup:
    """What is to be evaluated, before anything is computed."""

    key: str  # distinguishes it from others in one process
    quantized: QuantizedModel
    examples: Examples
    batches: tuple[Batch, ...]
    objective: Objective
    base: Assignment

    @property
    def tokens(self) -> int:
        """Tokens that an evaluation runs over, padding not counted."""
        return sum(batch.tokens for batch in self.batches)

    @cached_property
    def measurement(self) -> Measurement:
        """Look up the embeddings and run the full model once, in float32, as the reference of agreement.

        Raises InputError for labels that the model's outputs cannot meet.
        """
        model, sharded = self.quantized.sharded.model, self.quantized.sharded
        reference = collect(model, self.batches, [run_model(model, batch) for batch in self.batches])
        if self.examples.targets is not None:
            score(reference, self.examples)
        hidden = tuple(embed(model, batch.ids, batch.types) for batch in self.batches)
        tables = replace(model.embeddings, word=model.embeddings.word[:0], position=model.embeddings.position[:0])
        light = replace(self.quantized, sharded=replace(sharded, model=replace(model, embeddings=tables)))
        return Measurement(replace(self, quantized=light), hidden, reference)


@dataclass(frozen=True, eq=False)
class Measurement:
    """Everything an evaluation needs, with the embeddings already looked up: it is sent to other processes whole."""

    setup: Setup  # its word table is empty
    hidden: tuple[Array, ...]  # a batch each: (n, tokens, hidden) before layer 0
    reference: Array  # outputs of the full model, as `collect` returns them


def run_model(model: Model, batch: Batch) -> Array:
    """Run a float model on a batch: (n, features), or (n, tokens, features) without pooling."""
    return outputs(model, batch.ids, batch.mask, batch.types)


def collect(model: Model, batches: Sequence[Batch], found: Sequence[Array]) -> Array:
    """Put the outputs of batches together: (sequences, features) in the order of `Examples.sequences`.

    Without pooling (tokens, features), batch after batch, padding left out.
    """
    if model.head.pooling == "tokens":
        return np.concatenate([values[batch.mask] for batch, values in zip(batches, found, strict=True)])
    result = np.empty((sum(len(batch.rows) for batch in batches), found[0].shape[-1]), np.float32)
    for batch, values in zip(batches, found, strict=True):
        result[batch.rows] = values
    return result


def uniform_assignment(quantized: QuantizedModel, bits: int) -> Assignment:
    """Every shard at `bits`."""
    g = quantized.sharded.geometry
    return ((bits,) * g.slices,) * g.layers


class Evaluator:
    """Evaluates assignments of one measurement, one after the other. Hidden states are rows without padding."""

    def __init__(self, measurement: Measurement) -> None:
        self.measurement, self.setup = measurement, measurement.setup
        self._sharded = self.setup.quantized.sharded
        self._model = self._sharded.model
        self.layouts = [dense_layout(batch.mask) for batch in self.setup.batches]
        slices, large = self._sharded.geometry.slices, self._sharded.large
        self._matrices = lru_cache(maxsize=slices if large else 2 * slices)(self.dequantized)
        held = 1 if large else None  # all would be the model once more
        self._base_layer = lru_cache(maxsize=held)(self.base_layer)
        self._attended = lru_cache(maxsize=1)(self._attend)
        self._part = lru_cache(maxsize=2)(self._slice_part)
        self._prefixes = [[layout.gather(x) for layout, x in zip(self.layouts, measurement.hidden, strict=True)]]

    def scores(self, assignment: Assignment) -> Scores:
        """Return the loss and the metric of an assignment."""
        setup = self.setup
        found = self.outputs(assignment)
        metric = None if setup.examples.targets is None else score(found, setup.examples).value
        return Scores(loss(setup.objective, found, self.measurement.reference, setup.examples), metric)

    def outputs(self, assignment: Assignment) -> Array:
        """Return the model's outputs, as `collect` does."""
        base = self.setup.base
        first = next((i for i, bits in enumerate(assignment) if bits != base[i]), len(base))
        hidden = self.prefix(first)
        for number in range(first, len(base)):
            hidden = self._run(number, assignment[number], hidden, number == first)
        found = [
            run_head(self._model.head, layout.spread(x), batch.mask)
            for x, layout, batch in zip(hidden, self.layouts, self.setup.batches, strict=True)
        ]
        return collect(self._model, self.setup.batches, found)

    def prefix(self, layer: int) -> list[Array]:
        """Return the hidden states (rows, hidden) before `layer` under the base assignment, one array a batch.

        Do not change them.
        """
        while len(self._prefixes) <= layer:
            number = len(self._prefixes) - 1
            self._prefixes.append(self._run(number, self.setup.base[number], self._prefixes[-1], False))
        return self._prefixes[layer]

    def matrices(self, layer: int, index: int, bits: int) -> Mapping[str, Array]:
        """Return `dequantized`, held for a while: for a shard that is asked for again."""
        return self._matrices(layer, index, bits)

    def dequantized(self, layer: int, index: int, bits: int) -> dict[str, Array]:
        """Return the dequantised matrices of a shard."""
        return {name: dequantize(self.setup.quantized, layer, index, name, bits) for name in MATRICES["layer"]}

    def base_layer(self, number: int) -> Layer:
        """Return a layer of the base assignment, put together anew: it takes as much memory as in the model."""
        return self._layer(number, self.setup.base[number])

    def _run(self, number: int, bits: tuple[int, ...], hidden: list[Array], first: bool) -> list[Array]:
        """Run a layer; `first`: on the hidden states of the base assignment."""
        kept = sum(b > 0 for b in bits)
        if not kept:
            return hidden
        g, model, base = self._sharded.geometry, self._model, self.setup.base[number]
        layer = self._base_layer(number) if bits == base else self._layer(number, bits)
        neurons = g.neurons(kept - 1).stop
        changed = [index for index in range(g.slices) if bits[index] != base[index]]
        if first and len(changed) == 1 and kept == g.slices and 0 not in base:
            # All other slices add what they add in the base assignment.
            old, new = (self._part(number, changed[0], b[changed[0]]) for b in (base, bits))
            streams = [y + (b - a) for y, a, b in zip(self._attended(number), old, new, strict=True)]
        else:
            streams = [
                attend(layer, x, model.heads, kept * g.heads_per_slice, model.attention_scale, layout)
                for x, layout in zip(hidden, self.layouts, strict=True)
            ]
        return [feed_forward(layer, y, model.activation, neurons) for y in streams]

    def _attend(self, number: int) -> list[Array]:
        """The stream after the attention of the base assignment, one array (rows, hidden) a batch."""
        layer, model = self._base_layer(number), self._model
        return [
            attend(layer, x, model.heads, model.heads, model.attention_scale, layout)
            for x, layout in zip(self.prefix(number), self.layouts, strict=True)
        ]

    def _slice_part(self, number: int, index: int, bits: int) -> list[Array]:
        """What the attention of one slice adds to that stream, at `bits`."""
        g, biases = self._sharded.geometry, shard_bias(self._sharded, number, index)
        matrices = self._matrices(number, index, bits)
        return [
            slice_attention(g, matrices, biases, x, layout)
            for x, layout in zip(self.prefix(number), self.layouts, strict=True)
        ]

    def _layer(self, number: int, bits: tuple[int, ...]) -> Layer:
        """Put one layer together: `assemble` on a model of that layer alone."""
        alone = replace(self._sharded, model=replace(self._model, layers=(self._model.layers[number],)))
        return assemble(
            alone, lambda _, index, name: self._matrices(number, index, bits[index])[name] if bits[index] else None
        ).layers[0]


def slice_attention(
    g: Geometry, matrices: Mapping[str, Array], biases: Mapping[str, Array], x: Array, layout: Layout
) -> Array:
    """Return what one slice's heads add to the stream, (rows, hidden) both; the scale is in the query weights."""
    width = g.attention_per_slice
    projected = x @ matrices["qkv"][:, : g.hidden].T + biases["qkv"]
    query, key, value = (projected[:, part * g.A : part * g.A + width] for part in range(3))
    return mix(query, key, value, g.heads_per_slice, layout) @ matrices["out"][: g.hidden, :width].T


def slice_ffn(
    g: Geometry, index: int, matrices: Mapping[str, Array], biases: Mapping[str, Array], x: Array, activation: str
) -> Array:
    """Return what one slice's neurons add to the stream, (rows, hidden) both."""
    count = len(g.neurons(index))
    inner = x @ matrices["up"][:count, : g.hidden].T + biases["up"][:count]
    return activate(inner, activation) @ matrices["down"][: g.hidden, :count].T
