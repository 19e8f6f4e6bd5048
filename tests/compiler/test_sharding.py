"""Sharding: the reordered, padded, cut model is the same function."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stic.compiler.model import Array, Embeddings, Head, Layer, Linear, Model, Norm
from stic.compiler.sharding import (
    ShardedModel,
    assemble,
    layer_trunk,
    shard,
    shard_bias,
    shard_matrices,
    unit_magnitudes,
    valid_slices,
)
from stic.runtime.errors import InputError
from stic.runtime.format import MATRICES


def make_model(
    hidden: int = 24,
    heads: int = 2,
    head_dim: int = 12,
    ffn: int = 40,
    layers: int = 2,
    seed: int = 0,
    elastic: bool = False,
) -> Model:
    """A random encoder with weights of a size that keeps activations near 1."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> Array:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def linear(rows: int, columns: int) -> Linear:
        return Linear(draw(rows, columns, scale=1 / math.sqrt(columns)), draw(rows, scale=0.1))

    def norm() -> Norm:
        return Norm(1 + draw(hidden, scale=0.1), draw(hidden, scale=0.1), 1e-12)

    width = heads * head_dim
    made = tuple(
        Layer(
            linear(width, hidden),
            linear(width, hidden),
            linear(width, hidden),
            linear(hidden, width),
            norm(),
            linear(ffn, hidden),
            linear(hidden, ffn),
            norm(),
        )
        for _ in range(layers)
    )
    embeddings = Embeddings(draw(30, hidden), draw(16, hidden), None, norm())
    return Model("random", heads, "relu", embeddings, made, Head("tokens"), 1 / math.sqrt(head_dim), elastic)


def _norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * gamma + beta


def _attention(q: Array, k: Array, v: Array, heads: int, scale: float) -> Array:
    def split(x: Array) -> Array:
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    scores = np.exp(split(q) @ split(k).transpose(0, 2, 1) * scale)
    return (scores / scores.sum(-1, keepdims=True) @ split(v)).transpose(1, 0, 2).reshape(len(q), -1)


def _whole(model: Model, x: Array) -> Array:
    """Layers of a model on x (tokens, hidden)."""

    def apply(linear: Linear, x: Array) -> Array:
        return x @ linear.weight.T + linear.bias

    for layer in model.layers:
        q, k, v = (apply(m, x) for m in (layer.query, layer.key, layer.value))
        y = apply(layer.output, _attention(q, k, v, model.heads, model.attention_scale))
        n = layer.attention_norm
        x = _norm(x + y, n.gamma, n.beta, n.epsilon)
        y = apply(layer.ffn_out, np.maximum(apply(layer.ffn_in, x), 0))
        n = layer.ffn_norm
        x = _norm(x + y, n.gamma, n.beta, n.epsilon)
    return x


def _sliced(sharded: ShardedModel, x: Array) -> Array:
    """The same from padded shard matrices, slice by slice, as the engine goes about it."""
    g = sharded.geometry
    padding = np.zeros((len(x), g.HP - g.hidden), np.float32)
    for number in range(g.layers):
        trunk = layer_trunk(sharded, number)
        matrices = [shard_matrices(sharded, number, index) for index in range(g.slices)]
        biases = [shard_bias(sharded, number, index) for index in range(g.slices)]
        wide = np.hstack([x, padding])
        y = np.tile(trunk.out_bias, (len(x), 1))
        for m, bias in zip(matrices, biases, strict=True):
            qkv = wide @ m["qkv"].T + bias["qkv"]
            q, k, v = (qkv[:, i * g.A : i * g.A + g.attention_per_slice] for i in range(3))
            context = np.zeros((len(x), g.A), np.float32)
            context[:, : g.attention_per_slice] = _attention(q, k, v, g.heads_per_slice, 1.0)
            y = y + context @ m["out"].T
        gamma, beta = trunk.attention_gamma[: g.hidden], trunk.attention_beta[: g.hidden]
        x = _norm((wide + y)[:, : g.hidden], gamma, beta, trunk.attention_epsilon)
        wide = np.hstack([x, padding])
        y = np.tile(trunk.down_bias, (len(x), 1))
        for m, bias in zip(matrices, biases, strict=True):
            y = y + np.maximum(wide @ m["up"].T + bias["up"], 0) @ m["down"].T
        gamma, beta = trunk.ffn_gamma[: g.hidden], trunk.ffn_beta[: g.hidden]
        x = _norm((wide + y)[:, : g.hidden], gamma, beta, trunk.ffn_epsilon)
    return x


geometries = st.tuples(
    st.integers(3, 50), st.integers(1, 6), st.integers(1, 20), st.integers(1, 70), st.integers(1, 3), st.integers(0, 99)
)


@settings(max_examples=40, deadline=None)
@given(geometries, st.data())
def test_same_function_at_any_geometry(sizes: tuple[int, int, int, int, int, int], data: st.DataObject) -> None:
    model = make_model(*sizes)
    slices = data.draw(st.sampled_from(valid_slices(model.heads)))
    rng = np.random.default_rng(sizes[-1])
    order = None
    if data.draw(st.booleans()):
        order = [rng.permutation(model.heads) for _ in model.layers]
    sharded = shard(model, slices, head_order=order)
    x = rng.standard_normal((5, model.hidden)).astype(np.float32)
    expected = _whole(model, x)
    np.testing.assert_allclose(_whole(sharded.model, x), expected, atol=1e-5)
    np.testing.assert_allclose(_sliced(sharded, x), expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(geometries)
def test_shapes_padding_and_assembly(sizes: tuple[int, int, int, int, int, int]) -> None:
    model = make_model(*sizes)
    sharded = shard(model)
    g = sharded.geometry
    assert g.slices == model.heads
    for number in range(g.layers):
        covered: list[int] = []
        for index in range(g.slices):
            covered += g.neurons(index)
            matrices = shard_matrices(sharded, number, index)
            assert sum(m.size for m in matrices.values()) == g.weights_per_shard
            for name in MATRICES["layer"]:
                rows, columns = g.used(name, index)
                assert matrices[name].shape == g.matrix_shape(name) == (len(rows), len(columns))
                assert not len(rows) % 16 and not len(columns) % 16
                assert not matrices[name][~rows].any() and not matrices[name][:, ~columns].any()
        assert covered == list(range(model.ffn))
    again = assemble(sharded, lambda layer, index, name: shard_matrices(sharded, layer, index)[name])
    for a, b in zip(again.layers, sharded.model.layers, strict=True):
        for field in ("query", "key", "value", "output", "ffn_in", "ffn_out"):
            np.testing.assert_array_equal(getattr(a, field).weight, getattr(b, field).weight)


def test_a_slice_left_out_contributes_nothing() -> None:
    sharded = shard(make_model(heads=4, head_dim=5, ffn=10))
    kept = assemble(
        sharded, lambda layer, index, name: shard_matrices(sharded, layer, index)[name] if index < 3 else None
    )
    layer = kept.layers[0]
    assert not layer.query.weight[15:].any() and layer.query.weight[:15].all()
    assert not layer.ffn_out.weight[:, 9:].any() and layer.ffn_out.weight[:, :9].all()


def test_units_stand_in_descending_magnitude_unless_elastic() -> None:
    model = make_model(heads=6, head_dim=4, ffn=33)
    for scores in unit_magnitudes(shard(model).model):
        assert (np.diff(scores, axis=1) <= 1e-6 * scores.max()).all()
    kept = shard(make_model(heads=6, head_dim=4, ffn=33, elastic=True))
    assert (kept.head_order == np.arange(6)).all() and (kept.neuron_order == np.arange(33)).all()


def test_given_orders_are_followed() -> None:
    model = make_model(heads=3, head_dim=4, ffn=9)
    heads, neurons = np.array([[2, 0, 1]] * 2), np.tile(np.arange(9)[::-1], (2, 1))
    sharded = shard(model, head_order=heads, neuron_order=neurons)
    up = shard_matrices(sharded, 1, 0)["up"]
    np.testing.assert_array_equal(up[:3, : model.hidden], model.layers[1].ffn_in.weight[[8, 7, 6]])
    np.testing.assert_array_equal(sharded.model.layers[0].value.weight[:4], model.layers[0].value.weight[8:])


def test_wrong_cuts_and_orders_are_refused() -> None:
    model = make_model(heads=6, head_dim=4)
    with pytest.raises(InputError, match="try 1, 2, 3, 6"):
        shard(model, 4)
    with pytest.raises(InputError, match="head order"):
        shard(model, head_order=np.zeros((2, 6), np.intp))
    with pytest.raises(InputError, match="neuron order"):
        shard(model, neuron_order=np.tile(np.arange(39), (2, 1)))
    with pytest.raises(InputError, match=r"4112 columns.*more slices"):
        shard(make_model(hidden=4, heads=2, head_dim=2, ffn=4100), 1)
