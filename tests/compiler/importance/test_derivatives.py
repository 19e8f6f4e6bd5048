"""Derivatives of layers and heads against differences."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler.forward import activate, dense_layout, normalise, run_head, run_layer
from stic.compiler.importance.derivatives import head_cotangents, layer_cotangents, norm_cotangents, slope
from stic.compiler.inputs import read_model
from stic.compiler.model import Dense, Head, Linear, Model, Norm

STEP = 3e-3


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> Model:
    return read_model(tiny_dir)


@pytest.fixture(params=range(3))
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(request.param)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return rng.normal(size=shape).astype(np.float32)


def assert_derivative(function: Any, x: np.ndarray, cotangents: np.ndarray, found: np.ndarray) -> None:
    """Along random directions: the change of cotangent . function is that of found . x."""
    for seed in range(4):
        direction = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
        step = np.float32(STEP) * direction
        change = (function(x + step) - function(x - step)).astype(np.float64) / (2 * STEP)
        expected = (cotangents * change).reshape(len(cotangents), -1).sum(axis=1)
        got = (found * direction).reshape(len(found), -1).sum(axis=1)
        scale = np.linalg.norm(found.reshape(len(found), -1), axis=1).max()
        np.testing.assert_allclose(got, expected, atol=6e-2 * max(float(scale), 1e-3))


@pytest.mark.parametrize("kind", ["none", "relu", "tanh", "gelu", "gelu_tanh"])
def test_slopes_of_activations(kind: str, rng: np.random.Generator) -> None:
    x = normal(rng, 200) * 3
    x = x[np.abs(x) > 0.01]
    around = [activate((x.astype(np.float32) + d).copy(), kind).astype(np.float64) for d in (-3e-3, 3e-3)]
    np.testing.assert_allclose(slope(x, kind), (around[1] - around[0]) / 6e-3, atol=1e-3)


def test_a_norm(rng: np.random.Generator) -> None:
    norm = Norm(normal(rng, 12), normal(rng, 12), 1e-5)
    x, cotangents = normal(rng, 5, 12), normal(rng, 3, 5, 12)
    assert_derivative(lambda y: normalise(y.copy(), norm), x, cotangents, norm_cotangents(x, norm, cotangents))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])  # differences stumble over ReLU's corners
def test_a_layer_with_padding(activation: str, rng: np.random.Generator, model: Model) -> None:
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    layout = dense_layout(mask)
    layer = model.layers[0]
    scaled = replace(layer, query=Linear(*(part * np.float32(model.attention_scale) for part in (
        layer.query.weight, layer.query.bias))))  # fmt: skip
    x, cotangents = normal(rng, mask.sum(), model.hidden), normal(rng, 2, mask.sum(), model.hidden)
    found = layer_cotangents(scaled, model.heads, activation, x, layout, cotangents.copy())
    assert found.before.shape == found.attention.shape == found.ffn.shape == cotangents.shape
    assert_derivative(lambda y: run_layer(scaled, model.heads, activation, 1.0, y, layout), x, cotangents, found.before)


@pytest.mark.parametrize("count", [60, 120])
def test_a_layer_takes_memory_for_two_more_arrays_of_cotangents(
    count: int, rng: np.random.Generator, model: Model
) -> None:
    layout = dense_layout(np.ones((4, 8), bool))
    x, cotangents = normal(rng, 32, model.hidden), normal(rng, count, 32, model.hidden)
    tracemalloc.start()
    found = layer_cotangents(model.layers[0], model.heads, "gelu", x, layout, cotangents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.before is cotangents
    assert peak < 2.9 * cotangents.nbytes


@pytest.mark.parametrize("pooling", ["tokens", "first", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("activations", [(), ("none",), ("tanh", "none"), ("gelu",)])
def test_a_head(pooling: Any, normalize: bool, activations: Any, rng: np.random.Generator) -> None:
    sizes = (10, 7, 4)
    dense = tuple(
        Dense(Linear(normal(rng, out, inner) / np.float32(inner**0.5), normal(rng, out)), kind)
        for inner, out, kind in zip(sizes, sizes[1:], activations, strict=False)
    )
    head = Head(pooling, dense, normalize)
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
    hidden = normal(rng, 2, 3, 10)
    cotangents = normal(rng, 3, *run_head(head, hidden, mask).shape)
    found = head_cotangents(head, hidden, mask, cotangents)
    assert found.shape == (3, *hidden.shape)
    assert_derivative(lambda y: run_head(head, y, mask), hidden, cotangents, found)
