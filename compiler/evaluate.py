"""What a choice of bits for every shard does to a model's outputs, in floating point on the compiler's side.

An assignment says for every shard how many bits it has: 2..8, 16 or 32, or 0 for left out. Weights are the dequantised
ones of `stic.compiler.quantize.dequantize`; activations stay float32, whereas the engine rounds them to 8 bits, which
every assignment suffers alike. An `Evaluator` keeps the hidden states of a base assignment before each layer, so that
an assignment which differs from it only from layer l on costs the layers from l on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stic.compiler.forward import attention_bias, embed, outputs, run_head, run_layer
from stic.compiler.model import Array, Layer, Model
from stic.compiler.quantize import QuantizedModel, dequantize
from stic.compiler.sharding import assemble
from stic.compiler.task import Batch, Examples, score
from stic.runtime.format import MATRICES

Assignment = tuple[tuple[int, ...], ...]  # [layer][slice] bits; 0: left out, and then all later slices as well
Objective = Literal["cross entropy", "kl", "cosine", "squared"]
BATCH_TOKENS = 512  # measured: larger batches leave the cache, smaller ones starve the matrix products


@dataclass(frozen=True)
class Scores:
    """What one assignment does."""

    loss: float  # by the objective; lower is better
    metric: float | None  # accuracy or Spearman; None without labels


@dataclass(frozen=True, eq=False)
class Measurement:
    """Everything an evaluation needs, with the embeddings already looked up: it is sent to other processes whole."""

    key: str  # distinguishes it from others in one process
    quantized: QuantizedModel  # its word table may be empty
    examples: Examples
    batches: tuple[Batch, ...]
    hidden: tuple[Array, ...]  # a batch each: (n, tokens, hidden) before layer 0
    reference: Array  # outputs of the full model, as `collect` returns them
    objective: Objective
    base: Assignment

    @property
    def tokens(self) -> int:
        """Tokens that an evaluation runs over, padding not counted."""
        return sum(batch.tokens for batch in self.batches)


def prepare(
    quantized: QuantizedModel, examples: Examples, batches: tuple[Batch, ...], base: Assignment, key: str = "",
    objective: Objective | None = None,
) -> Measurement:  # fmt: skip
    """Look up the embeddings and run the full model once, in float32, as the reference of agreement.

    The objective is by default cross entropy for labelled classification, else agreement: `agreement_objective`.
    """
    model = quantized.sharded.model
    reference = collect(model, batches, [run_model(model, batch) for batch in batches])
    if objective is None:
        objective = "cross entropy" if examples.kind == "classification" else agreement_objective(model)
    if examples.targets is not None:
        score(reference, examples)  # refuses labels that the model's outputs cannot meet
    hidden = tuple(embed(model, batch.ids, batch.types) for batch in batches)
    tables = replace(model.embeddings, word=model.embeddings.word[:0], position=model.embeddings.position[:0])
    light = replace(quantized.sharded, model=replace(model, embeddings=tables))
    return Measurement(
        key, replace(quantized, sharded=light), examples, batches, hidden, reference, objective, base
    )


def agreement_objective(model: Model) -> Objective:
    """Return how agreement with the full model is measured.

    A head that ends in a plain linear map to fewer features than hidden is a classifier: KL divergence of its class
    probabilities, or the squared error over the variance if it has one output. All else is an embedding: 1 - cosine.
    """
    dense = model.head.dense
    if not dense or model.head.normalize or dense[-1].activation != "none":
        return "cosine"
    features = dense[-1].linear.weight.shape[0]
    if features == 1:
        return "squared"
    return "kl" if features < model.hidden else "cosine"


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


def loss(objective: Objective, found: Array, reference: Array, examples: Examples) -> float:
    """Return the mean loss of outputs (rows, features); 0 is perfect, except for cross entropy."""
    if objective == "cross entropy":
        assert examples.targets is not None
        classes = examples.targets.astype(np.intp)
        logits = found.astype(np.float64)
        if logits.shape[1] == 1:
            logits = np.concatenate((np.zeros_like(logits), logits), axis=1)
        return float(-np.mean(log_softmax(logits)[np.arange(len(classes)), classes]))
    if objective == "kl":
        true, guess = log_softmax(reference.astype(np.float64)), log_softmax(found.astype(np.float64))
        return float(np.mean((np.exp(true) * (true - guess)).sum(axis=-1)))
    a, b = reference.astype(np.float64), found.astype(np.float64)
    if objective == "squared":
        return float(np.mean((a - b) ** 2) / max(float(a.var()), 1e-12))
    # 1 - cos as half the squared distance of unit vectors: no cancellation when they are close
    a, b = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (a, b))
    return float(np.mean(((a - b) ** 2).sum(axis=-1)) / 2)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the class probabilities, along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def uniform_assignment(quantized: QuantizedModel, bits: int) -> Assignment:
    """Every shard at `bits`."""
    g = quantized.sharded.geometry
    return ((bits,) * g.slices,) * g.layers


class Evaluator:
    """Evaluates assignments of one measurement, one after the other."""

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self._model = measurement.quantized.sharded.model
        self._biases = [attention_bias(batch.mask) for batch in measurement.batches]
        slices = measurement.quantized.sharded.geometry.slices
        self._matrices = lru_cache(maxsize=2 * slices)(self._dequantize)
        self._base_layer = lru_cache(maxsize=None)(lambda number: self._layer(number, measurement.base[number]))
        self._prefixes: list[list[Array]] = [list(measurement.hidden)]

    def scores(self, assignment: Assignment) -> Scores:
        """Return the loss and the metric of an assignment."""
        m = self.measurement
        found = self.outputs(assignment)
        metric = None if m.examples.targets is None else score(found, m.examples).value
        return Scores(loss(m.objective, found, m.reference, m.examples), metric)

    def outputs(self, assignment: Assignment) -> Array:
        """Return the model's outputs, as `collect` does."""
        base = self.measurement.base
        first = next((i for i, bits in enumerate(assignment) if bits != base[i]), len(base))
        hidden = self.prefix(first)
        for number in range(first, len(base)):
            hidden = self._run(number, assignment[number], hidden)
        found = [
            run_head(self._model.head, x, batch.mask)
            for x, batch in zip(hidden, self.measurement.batches, strict=True)
        ]
        return collect(self._model, self.measurement.batches, found)

    def prefix(self, layer: int) -> list[Array]:
        """Return the hidden states before `layer` under the base assignment, one array a batch; do not change them."""
        while len(self._prefixes) <= layer:
            number = len(self._prefixes) - 1
            self._prefixes.append(self._run(number, self.measurement.base[number], self._prefixes[-1]))
        return self._prefixes[layer]

    def matrices(self, layer: int, index: int, bits: int) -> Mapping[str, Array]:
        """Return the dequantised matrices of a shard."""
        return self._matrices(layer, index, bits)

    def _run(self, number: int, bits: tuple[int, ...], hidden: list[Array]) -> list[Array]:
        kept = sum(b > 0 for b in bits)
        if not kept:
            return hidden
        g, model = self.measurement.quantized.sharded.geometry, self._model
        base = bits == self.measurement.base[number]
        layer = self._base_layer(number) if base else self._layer(number, bits)
        width = (kept * g.heads_per_slice, g.neurons(kept - 1).stop)
        return [
            run_layer(layer, model.heads, model.activation, model.attention_scale, x, bias, width)
            for x, bias in zip(hidden, self._biases, strict=True)
        ]

    def _layer(self, number: int, bits: tuple[int, ...]) -> Layer:
        """Put one layer together: `assemble` on a model of that layer alone."""
        sharded = self.measurement.quantized.sharded
        alone = replace(sharded, model=replace(sharded.model, layers=(sharded.model.layers[number],)))
        return assemble(
            alone, lambda _, index, name: self._matrices(number, index, bits[index])[name] if bits[index] else None
        ).layers[0]

    def _dequantize(self, layer: int, index: int, bits: int) -> dict[str, Array]:
        return {name: dequantize(self.measurement.quantized, layer, index, name, bits) for name in MATRICES}
