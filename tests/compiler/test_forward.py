"""The numpy forward: its functions against definitions, its shortcuts against the whole run."""

from dataclasses import replace
from math import erf
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.export.huggingface import export_model
from stic.compiler.forward import (
    dense_layout,
    embed,
    gelu,
    gelu_tanh,
    hidden_states,
    outputs,
    run_head,
    run_layer,
    run_layers,
)
from stic.compiler.frontend.onnx import load_model
from stic.compiler.model import Layer, Linear, Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Model:
    path = tmp_path_factory.mktemp("forward") / "m.onnx"
    export_model(tiny_dir, path)
    return load_model(path)


IDS = np.random.default_rng(0).integers(3, 20, (4, 7))
MASK = np.ones_like(IDS)
MASK[2, 4:] = 0


def test_gelu_is_exact() -> None:
    x = np.linspace(-12, 12, 100_003, dtype=np.float32)
    exact = np.array([0.5 * v * (1 + erf(v / 2**0.5)) for v in x.astype(float)])
    assert np.abs(gelu(x.copy()) - exact).max() < 1e-6
    tanh_form = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x.astype(float) ** 3)))
    assert np.abs(gelu_tanh(x.copy()) - tanh_form).max() < 1e-5


def test_padding_changes_nothing(model: Model) -> None:
    padded = outputs(model, IDS, MASK)
    alone = outputs(model, IDS[2:3, :4])
    assert np.abs(padded[2] - alone[0]).max() < 1e-5


def test_resuming_from_any_layer(model: Model) -> None:
    whole = hidden_states(model, IDS, MASK)
    x = embed(model, IDS)
    for layer in range(len(model.layers)):
        assert np.abs(run_layers(model, x, MASK, first=layer) - whole).max() < 1e-6
        x = run_layers(replace(model, layers=model.layers[: layer + 1]), x, MASK, first=layer)
    assert np.array_equal(x, whole)
    assert np.array_equal(run_head(model.head, x, MASK), outputs(model, IDS, MASK))


def test_rows_without_padding(model: Model) -> None:
    layout = dense_layout(MASK.astype(bool))
    x = layout.gather(embed(model, IDS))
    assert len(x) == MASK.sum()
    for layer in model.layers:
        x = run_layer(layer, model.heads, model.activation, model.attention_scale, x, layout)
    whole = hidden_states(model, IDS, MASK)
    np.testing.assert_allclose(layout.spread(x)[MASK > 0], whole[MASK > 0], atol=1e-5)
    assert not layout.spread(x)[MASK == 0].any()


def without(layer: Layer, heads: int, size: int, neurons: int) -> Layer:
    """Silence heads and neurons past a prefix by zeros."""
    attention = layer.output.weight.copy()
    attention[:, heads * size :] = 0
    down = layer.ffn_out.weight.copy()
    down[:, neurons:] = 0
    return replace(layer, output=Linear(attention, layer.output.bias), ffn_out=Linear(down, layer.ffn_out.bias))


def test_prefixes_and_skipped_layers(model: Model) -> None:
    widths = ((2, 50), None)
    silenced = [without(model.layers[0], 2, model.head_dim, 50), model.layers[1]]
    x = embed(model, IDS)
    assert np.abs(run_layers(model, x, MASK, widths=widths) - run_layers(model, x, MASK, layers=silenced)).max() < 1e-5
    shorter = replace(model, layers=model.layers[1:])
    assert np.array_equal(hidden_states(model, IDS, MASK, widths=((0, 0), None)), hidden_states(shorter, IDS, MASK))
