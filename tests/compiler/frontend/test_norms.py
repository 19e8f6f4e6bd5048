"""Layer norms in any spelling are read by their values; what is nearly one is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stic.compiler.export.graph import GraphWriter
from stic.compiler.forward import outputs
from stic.compiler.frontend.graph import build_graph
from stic.compiler.frontend.load import read_onnx
from stic.compiler.frontend.norms import norm
from stic.compiler.frontend.onnx import load_model
from stic.compiler.frontend.probe import probe
from stic.compiler.model import Norm

HIDDEN = 15
Spelling = Callable[[GraphWriter, str, str, str, float], str]


def mean(w: GraphWriter, x: str) -> str:
    return w.add("ReduceMean", x, axes=[-1], keepdims=1)


def centred(w: GraphWriter, x: str) -> str:
    return w.add("Sub", x, mean(w, x))


def squared(w: GraphWriter, x: str) -> str:
    return w.add("Mul", x, x)


def shifted(w: GraphWriter, x: str, gamma: str, beta: str) -> str:
    return w.add("Add", w.add("Mul", x, gamma), beta)


def fused(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    return w.add("LayerNormalization", x, gamma, beta, axis=-1, epsilon=epsilon)


def torch_form(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    d = centred(w, x)
    variance = mean(w, w.add("Pow", d, w.number(2.0)))
    return shifted(w, w.add("Div", d, w.add("Sqrt", w.add("Add", variance, w.number(epsilon)))), gamma, beta)


def tensorflow_form(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    m = mean(w, x)
    variance = mean(w, squared(w, w.add("Sub", x, m)))
    root = w.add("Reciprocal", w.add("Sqrt", w.add("Add", w.number(epsilon), variance)))
    scale = w.add("Mul", root, gamma)
    return w.add("Add", w.add("Mul", x, scale), w.add("Sub", beta, w.add("Mul", m, scale)))


def power_form(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    d = centred(w, x)
    root = w.add("Pow", w.add("Add", mean(w, squared(w, d)), w.number(epsilon)), w.number(-0.5))
    return w.add("Add", beta, w.add("Mul", d, w.add("Mul", gamma, root)))


def sum_form(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    """The mean by a product with 1/n, the variance by sums, epsilon before the division by n."""
    share = w.constant(np.full((HIDDEN, 1), 1 / HIDDEN), np.float32)
    d = w.add("Sub", x, w.add("MatMul", x, share))
    total = w.add("ReduceSumSquare", d, axes=[-1], keepdims=1)
    root = w.add("Sqrt", w.add("Add", total, w.number(HIDDEN * epsilon)))
    return shifted(w, w.add("Div", w.add("Mul", d, w.number(np.sqrt(HIDDEN))), root), gamma, beta)


def folded_form(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    """The operator without scale, and scale and shift after it."""
    ones, zeros = (w.constant(np.full(HIDDEN, value), np.float32) for value in (1.0, 0.0))
    return shifted(w, w.add("LayerNormalization", x, ones, zeros, axis=-1, epsilon=epsilon), gamma, beta)


def unbiased_form(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    """A variance over n - 1, made up for by the scale."""
    d = centred(w, x)
    total = w.add("ReduceSumSquare", d, axes=[-1], keepdims=1)
    variance = w.add("Div", total, w.number(HIDDEN - 1))
    root = w.add("Sqrt", w.add("Add", variance, w.number(epsilon * HIDDEN / (HIDDEN - 1))))
    exact = w.add("Mul", w.add("Div", d, root), w.number(np.sqrt(HIDDEN / (HIDDEN - 1))))
    return shifted(w, exact, gamma, beta)


def root_mean_square(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    root = w.add("Sqrt", w.add("Add", mean(w, squared(w, x)), w.number(epsilon)))
    return shifted(w, w.add("Div", x, root), gamma, beta)


def epsilon_outside(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    d = centred(w, x)
    root = w.add("Add", w.add("Sqrt", mean(w, squared(w, d))), w.number(epsilon))
    return shifted(w, w.add("Div", d, root), gamma, beta)


def largest_for_epsilon(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    d = centred(w, x)
    root = w.add("Sqrt", w.add("Max", mean(w, squared(w, d)), w.number(epsilon)))
    return shifted(w, w.add("Div", d, root), gamma, beta)


def bent(w: GraphWriter, x: str, gamma: str, beta: str, epsilon: float) -> str:
    return w.add("Tanh", torch_form(w, x, gamma, beta, epsilon))


NORMS = (fused, torch_form, tensorflow_form, power_form, sum_form, folded_form, unbiased_form)
OTHERS = (root_mean_square, epsilon_outside, largest_for_epsilon, bent)


def values(seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(2, HIDDEN)).astype(np.float32))


def found(path: Path, spelling: Spelling, epsilon: float) -> Norm | None:
    w = GraphWriter()
    word = np.random.default_rng(1).normal(size=(20, HIDDEN)).astype(np.float32)
    gamma, beta = (w.constant(vector, np.float32) for vector in values(2))
    x = w.add("Add", w.rows("word", word, "ids"), w.constant(word[0], np.float32))
    y = spelling(w, x, gamma, beta, epsilon)
    onnx.save(w.model(("ids",), {"y": (y, ("batch", "sequence", HIDDEN))}), path)
    graph = build_graph(*read_onnx(path), None, str(path))
    probe(graph)
    result = norm(graph, "y")
    if result is None:
        return None
    assert result[0] == x
    return result[1]


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize("spelling", NORMS, ids=lambda spelling: spelling.__name__)
def test_every_spelling(tmp_path: Path, spelling: Spelling, epsilon: float) -> None:
    result = found(tmp_path / "norm.onnx", spelling, epsilon)
    gamma, beta = values(2)
    assert result is not None
    np.testing.assert_allclose(result.gamma, gamma, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.beta, beta, rtol=1e-5, atol=1e-6)
    assert result.epsilon == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize("spelling", [torch_form, tensorflow_form, power_form, folded_form])
def test_what_is_written_is_read_exactly(tmp_path: Path, spelling: Spelling) -> None:
    result = found(tmp_path / "norm.onnx", spelling, 1e-7)
    gamma, beta = values(2)
    assert result is not None and result.epsilon == float(np.float32(1e-7))
    assert np.array_equal(result.gamma, gamma) and np.array_equal(result.beta, beta)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
@pytest.mark.parametrize("spelling", OTHERS, ids=lambda spelling: spelling.__name__)
def test_what_is_no_layer_norm(tmp_path: Path, spelling: Spelling, epsilon: float) -> None:
    assert found(tmp_path / "other.onnx", spelling, epsilon) is None


@pytest.mark.parametrize("spelling", NORMS, ids=lambda spelling: spelling.__name__)
def test_encoders_of_every_spelling(tmp_path: Path, spelling: Spelling) -> None:
    rng = np.random.default_rng(5)

    def array(*shape: int) -> Any:
        return rng.normal(0, 0.4, shape).astype(np.float32)

    def build(spell: Spelling, path: Path) -> Path:
        w = GraphWriter()

        def normed(x: str) -> str:
            gamma, beta = (w.constant(array(HIDDEN), np.float32) for _ in range(2))
            return spell(w, x, gamma, beta, 1e-5)

        places = w.rows("place", array(16, HIDDEN), w.positions("ids", None))
        x = normed(w.add("Add", w.rows("word", array(30, HIDDEN), "ids"), places))
        q, k, v = (w.linear(x, name, array(HIDDEN, HIDDEN), array(HIDDEN)) for name in ("q", "k", "v"))
        merged = w.attention(q, k, v, w.mask_bias("mask"), 3, 5)
        y = normed(w.add("Add", x, w.linear(merged, "out", array(HIDDEN, HIDDEN), array(HIDDEN))))
        z = w.activation(w.linear(y, "up", array(9, HIDDEN), array(9)), "gelu")
        z = normed(w.add("Add", w.linear(z, "down", array(HIDDEN, 9), array(HIDDEN)), y))
        onnx.save(w.model(("ids", "mask"), {"states": (z, ("batch", "sequence", HIDDEN))}), path)
        return path

    mine = load_model(build(spelling, tmp_path / "mine.onnx"))
    rng = np.random.default_rng(5)
    expected = load_model(build(fused, tmp_path / "fused.onnx"))
    ids = np.arange(2, 16).reshape(2, 7)
    np.testing.assert_allclose(outputs(mine, ids), outputs(expected, ids), atol=1e-4)
