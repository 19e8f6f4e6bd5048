"""Cut every layer of a model into M slices of equal shape; a shard is one slice of one layer.

A slice owns whole attention heads (rows of query, key and value, columns of the output map) and a run of FFN
neurons (rows of `ffn_in`, columns of `ffn_out`). Units stand in descending importance, so slice 0 is the one to keep
when only one is kept. Everything else (embeddings, norms, output biases, head) is the trunk.

Follows STI (arXiv 2207.05022, section 4) for the cut and DynaBERT (arXiv 2004.04037) for the order of units. The
matrices are padded with zeros to multiples of 16; zero rows and columns change nothing, because an activation of 0
maps to 0 through ReLU and GELU alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array, Layer, Linear, Model
from stic.runtime.errors import InputError
from stic.runtime.format import MATRICES
from stic.runtime.layout import Shape
from stic.runtime.limits import LIMITS

MAX_COLUMNS = LIMITS["outlier_columns"]
LARGE_BYTES = 1 << 28  # of float32 weights: from here on, copies are most of the compiler's memory
LINEARS = ("query", "key", "value", "output", "ffn_in", "ffn_out")

Order = Sequence[NDArray[np.intp]] | NDArray[np.intp]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a sharded model. HP, A and FP are padded; the rest are true sizes."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    ffn: int
    slices: int

    @property
    def heads_per_slice(self) -> int:
        return self.heads // self.slices

    @property
    def attention_per_slice(self) -> int:
        """True attention features of one slice."""
        return self.heads_per_slice * self.head_dim

    @property
    def neurons_per_slice(self) -> int:
        return -(-self.ffn // self.slices)

    @property
    def shape(self) -> Shape:
        """The sizes as the package states them."""
        return Shape.layer(self.hidden, self.slices, self.heads_per_slice, self.head_dim, self.neurons_per_slice)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape of each block: they are layers, all cut alike."""
        return (self.shape,) * self.layers

    @property
    def HP(self) -> int:
        """Padded hidden size."""
        return self.shape.padded_hidden

    @property
    def A(self) -> int:
        """Padded attention width of one slice."""
        return self.shape.attention_width

    @property
    def FP(self) -> int:
        """Padded FFN width of one slice."""
        return self.shape.ffn_width

    @property
    def weights_per_shard(self) -> int:
        """Stored weights of one shard, padding included."""
        return self.shape.weights

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Return the padded (N, K) of one of a layer's matrices."""
        return self.shape.matrix(name)

    def neurons(self, index: int) -> range:
        """Return the neurons of slice `index`; later slices may have fewer than `neurons_per_slice`, even none."""
        per = self.neurons_per_slice
        return range(min(index * per, self.ffn), min((index + 1) * per, self.ffn))

    def used(self, name: str, index: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which rows (N,) and columns (K,) of a matrix of slice `index` hold weights, not padding."""
        hidden = np.arange(self.HP) < self.hidden
        attention = np.arange(self.A) < self.attention_per_slice
        neurons = np.arange(self.FP) < len(self.neurons(index))
        sides = {
            "qkv": (np.tile(attention, 3), hidden),
            "out": (hidden, attention),
            "up": (neurons, hidden),
            "down": (hidden, neurons),
        }
        return sides[name]


@dataclass(frozen=True, eq=False)
class ShardedModel:
    """A model whose units stand in order of importance, and how it is cut.

    `model` computes the same function as the one it was made from; its attention scale is folded into the query map,
    hence `model.attention_scale == 1`.
    """

    model: Model
    geometry: Geometry
    head_order: NDArray[np.intp]  # (layers, heads): position -> head of the original model
    neuron_order: NDArray[np.intp]  # (layers, ffn)

    @property
    def large(self) -> bool:
        """Whether a copy of its weights is to be avoided."""
        g = self.geometry
        return 4 * g.layers * g.slices * g.weights_per_shard >= LARGE_BYTES


@dataclass(frozen=True, eq=False)
class LayerTrunk:
    """What of a layer belongs to no slice; vectors padded with zeros to HP."""

    out_bias: Array  # (HP,)
    down_bias: Array  # (HP,)
    attention_gamma: Array  # (HP,)
    attention_beta: Array
    ffn_gamma: Array
    ffn_beta: Array
    attention_epsilon: float
    ffn_epsilon: float


def valid_slices(heads: int) -> tuple[int, ...]:
    """Return every M that `shard` takes for this number of heads."""
    return tuple(m for m in range(1, heads + 1) if heads % m == 0)


def unit_magnitudes(model: Model) -> tuple[Array, Array]:
    """Score units by their weights alone: heads (layers, heads) by |Wv||Wo|, neurons (layers, ffn) by |w_in||w_out|."""
    heads, neurons = [], []
    for layer in model.layers:
        value = layer.value.weight.reshape(model.heads, -1)
        output = layer.output.weight.T.reshape(model.heads, -1)
        heads.append(np.linalg.norm(value, axis=1) * np.linalg.norm(output, axis=1))
        neurons.append(np.linalg.norm(layer.ffn_in.weight, axis=1) * np.linalg.norm(layer.ffn_out.weight, axis=0))
    return np.stack(heads), np.stack(neurons)


def shard(
    model: Model, slices: int | None = None, head_order: Order | None = None, neuron_order: Order | None = None
) -> ShardedModel:
    """Order the units of `model` and cut each layer into `slices` (default: one per head).

    `head_order` (layers, heads) and `neuron_order` (layers, ffn) list unit numbers, most important first. Left out,
    an elastic model keeps its order (it was trained in it), any other is ordered by `unit_magnitudes`.
    Raises InputError if `slices` does not divide the heads, or an order is not a permutation per layer.
    """
    geometry = _geometry(model, model.heads if slices is None else slices)
    magnitudes = unit_magnitudes(model)
    orders = []
    for given, scores, unit in zip((head_order, neuron_order), magnitudes, ("head", "neuron"), strict=True):
        if given is not None:
            orders.append(_checked(np.asarray(given), scores.shape, unit))
        elif model.elastic:
            orders.append(np.broadcast_to(np.arange(scores.shape[1]), scores.shape))
        else:
            orders.append(np.argsort(-scores, axis=1, kind="stable"))
    layers = tuple(
        _reordered(layer, heads, neurons, model.attention_scale, geometry.head_dim)
        for layer, heads, neurons in zip(model.layers, *orders, strict=True)
    )
    return ShardedModel(replace(model, layers=layers, attention_scale=1.0), geometry, orders[0], orders[1])


def _geometry(model: Model, slices: int) -> Geometry:
    if slices not in valid_slices(model.heads):
        allowed = ", ".join(map(str, valid_slices(model.heads)))
        raise InputError(f"{model.name} has {model.heads} heads, which {slices} slices do not divide; try {allowed}")
    shapes = {(layer.query.weight.shape, layer.ffn_in.weight.shape) for layer in model.layers}
    if len(shapes) != 1:
        raise InputError(f"{model.name}: the layers differ in width, {sorted(shapes)}; shards need equal layers")
    geometry = Geometry(len(model.layers), model.hidden, model.heads, model.head_dim, model.ffn, slices)
    widest = max(geometry.matrix_shape(name)[1] for name in MATRICES["layer"])
    if widest > MAX_COLUMNS:
        fitting = [m for m in valid_slices(model.heads) if m > slices]
        hint = f"try more slices ({', '.join(map(str, fitting))})" if fitting else "the model is too wide"
        raise InputError(f"{model.name}: a shard matrix would have {widest} columns, limit {MAX_COLUMNS}; {hint}")
    return geometry


def _checked(order: NDArray[np.intp], shape: tuple[int, ...], unit: str) -> NDArray[np.intp]:
    if order.shape != shape or not np.array_equal(np.sort(order, axis=1), np.broadcast_to(np.arange(shape[1]), shape)):
        raise InputError(f"the {unit} order must be, per layer, a permutation of 0..{shape[1] - 1}: shape {shape}")
    return order


def _reordered(layer: Layer, heads: NDArray[np.intp], neurons: NDArray[np.intp], scale: float, head_dim: int) -> Layer:
    rows = (heads[:, None] * head_dim + np.arange(head_dim)).ravel()

    def picked(linear: Linear, factor: float = 1.0) -> Linear:
        factor32 = np.float32(factor)
        return Linear(linear.weight[rows] * factor32, linear.bias[rows] * factor32)

    return replace(
        layer,
        query=picked(layer.query, scale),
        key=picked(layer.key),
        value=picked(layer.value),
        output=Linear(layer.output.weight[:, rows], layer.output.bias),
        ffn_in=Linear(layer.ffn_in.weight[neurons], layer.ffn_in.bias[neurons]),
        ffn_out=Linear(layer.ffn_out.weight[:, neurons], layer.ffn_out.bias),
    )


def _padded(values: Array, *shape: int) -> Array:
    result = np.zeros(shape, np.float32)
    result[tuple(slice(size) for size in values.shape)] = values
    return result


def _runs(geometry: Geometry, index: int) -> tuple[slice, slice]:
    """The attention features and the neurons of a slice, as ranges over the whole layer."""
    width, neurons = geometry.attention_per_slice, geometry.neurons(index)
    return slice(index * width, (index + 1) * width), slice(neurons.start, neurons.stop)


def shard_matrices(sharded: ShardedModel, layer: int, index: int) -> dict[str, Array]:
    """Return the four matrices of slice `index` of `layer`, (N, K) float32, padded with zeros.

    qkv (3A, HP) holds the rows of q, k and v, head-major, each padded to A; out (HP, A); up (FP, HP); down (HP, FP).
    """
    g, weights = sharded.geometry, sharded.model.layers[layer]
    attention, neurons = _runs(g, index)
    qkv = [_padded(m.weight[attention], g.A, g.HP) for m in (weights.query, weights.key, weights.value)]
    return {
        "qkv": np.concatenate(qkv),
        "out": _padded(weights.output.weight[:, attention], g.HP, g.A),
        "up": _padded(weights.ffn_in.weight[neurons], g.FP, g.HP),
        "down": _padded(weights.ffn_out.weight[:, neurons], g.HP, g.FP),
    }


def shard_bias(sharded: ShardedModel, layer: int, index: int) -> dict[str, Array]:
    """Return the biases that a slice owns: qkv (3A,) and up (FP,)."""
    g, weights = sharded.geometry, sharded.model.layers[layer]
    attention, neurons = _runs(g, index)
    qkv = [_padded(m.bias[attention], g.A) for m in (weights.query, weights.key, weights.value)]
    return {"qkv": np.concatenate(qkv), "up": _padded(weights.ffn_in.bias[neurons], g.FP)}


def layer_trunk(sharded: ShardedModel, layer: int) -> LayerTrunk:
    """Return the biases and norms that belong to the whole layer."""
    width, weights = sharded.geometry.HP, sharded.model.layers[layer]
    return LayerTrunk(
        _padded(weights.output.bias, width),
        _padded(weights.ffn_out.bias, width),
        _padded(weights.attention_norm.gamma, width),
        _padded(weights.attention_norm.beta, width),
        _padded(weights.ffn_norm.gamma, width),
        _padded(weights.ffn_norm.beta, width),
        weights.attention_norm.epsilon,
        weights.ffn_norm.epsilon,
    )


def assemble(sharded: ShardedModel, matrix: Callable[[int, int, str], Array | None]) -> Model:
    """Put a model together from shard matrices, the inverse of `shard_matrices`; trunk and biases as in `sharded`.

    `matrix(layer, index, name)` returns a padded (N, K); None leaves that slice's matrix zero, and with all four left
    out the slice contributes nothing.
    """
    g = sharded.geometry
    layers = []
    for number, layer in enumerate(sharded.model.layers):
        linears = [getattr(layer, name) for name in LINEARS]
        query, key, value, output, ffn_in, ffn_out = (np.zeros_like(linear.weight) for linear in linears)
        for index in range(g.slices):
            attention, neurons = _runs(g, index)
            qkv, out, up, down = (matrix(number, index, name) for name in MATRICES["layer"])
            width, count = g.attention_per_slice, len(g.neurons(index))
            if qkv is not None:
                for part, whole in enumerate((query, key, value)):
                    whole[attention] = qkv[part * g.A : part * g.A + width, : g.hidden]
            if out is not None:
                output[:, attention] = out[: g.hidden, :width]
            if up is not None:
                ffn_in[neurons] = up[:count, : g.hidden]
            if down is not None:
                ffn_out[:, neurons] = down[: g.hidden, :count]
        weights = (query, key, value, output, ffn_in, ffn_out)
        rebuilt = (Linear(weight, linear.bias) for weight, linear in zip(weights, linears, strict=True))
        named: dict[str, Any] = dict(zip(LINEARS, rebuilt, strict=True))
        layers.append(replace(layer, **named))
    return replace(sharded.model, layers=tuple(layers))
