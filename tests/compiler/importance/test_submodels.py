"""The path of submodels: nested, measured as they are, and led by what layers lose together."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.device.synthetic import synthetic
from stic.compiler.importance.evaluate import Setup, uniform_assignment
from stic.compiler.importance.examples import built_in_examples
from stic.compiler.importance.gain_curves import isotonic
from stic.compiler.importance.jobs import LossJob
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.measure import ImportanceSettings, sample
from stic.compiler.importance.objectives import agreement_objective
from stic.compiler.importance.submodels import path_of, submodel_path
from stic.compiler.inputs import read_model
from stic.compiler.plan import SubmodelPath
from stic.compiler.quantization.quantize import QuantizedModel, quantize
from stic.compiler.sharding import Geometry, shard
from tests.compiler.profiling import ONE, one_thread

__all__ = ["one_thread"]

BITS = 8


@pytest.fixture(scope="module")
def setup(tiny_dir: Path) -> Setup:
    """An encoder of 2 layers of 4 slices, and sentences."""
    model = replace(read_model(tiny_dir), elastic=True)
    assert model.tokenizer is not None
    quantized = quantize(shard(model, 4))
    examples, batches = sample(built_in_examples(), model.tokenizer, 16, ImportanceSettings(tokens=60))
    base = uniform_assignment(quantized, BITS)
    return Setup("submodels", quantized, examples, batches, agreement_objective(model), base)


def kept(widths: tuple[int, ...], slices: int) -> str:
    """Name of the evaluation of the submodel with so many slices a layer."""
    return LossJob(tuple((BITS,) * width + (0,) * (slices - width) for width in widths)).name


def along(path: SubmodelPath, log: EvaluationLog) -> np.ndarray:
    """Measured losses of the path's submodels, from nothing to the whole."""
    layers, slices = path.value.shape
    names = [[k for k, _ in path.order[:count]] for count in range(len(path.order) + 1)]
    return np.array([log.results[kept(tuple(map(n.count, range(layers))), slices)]["loss"] for n in names])


def told(loss: Callable[[tuple[int, ...]], float], quantized: QuantizedModel) -> tuple[SubmodelPath, set[str]]:
    """The path through submodels whose losses are already in the log, `loss` of the layers' widths."""
    g = quantized.sharded.geometry
    log = EvaluationLog(None, "")
    for widths in itertools.product(range(g.slices + 1), repeat=g.layers):
        log.results[kept(widths, g.slices)] = {"loss": loss(widths), "metric": None}
    setup = Setup("told", quantized, built_in_examples(), (), "cosine", uniform_assignment(quantized, BITS))
    return submodel_path(setup, BITS, log, ONE, None)


def encoder(layers: int, slices: int) -> QuantizedModel:
    return synthetic(Geometry(layers, 16 * slices, slices, 16, 16 * slices, slices), "gelu", 16)


def test_a_path_takes_every_shard_once_and_its_values_are_the_measured_losses(setup: Setup) -> None:
    log, ticks = EvaluationLog(None, ""), []
    path, tried = submodel_path(setup, BITS, log, ONE, lambda *at: ticks.append(at))
    assert sorted(path.order) == list(np.ndindex(2, 4))
    assert all(path.order.index((k, s - 1)) < path.order.index((k, s)) for k, s in path.order if s)
    assert tried == log.results.keys() and ticks == [(done, 8) for done in range(1, 9)]
    losses = along(path, log)
    assert losses[0] > losses[-1]
    falling = -isotonic(-losses, np.ones(len(losses)))
    assert (path.value >= 0).all() and path.value.sum() == pytest.approx(falling[0] - falling[-1])
    np.testing.assert_allclose(falling[0] - np.cumsum([path.value[shard_] for shard_ in path.order]), falling[1:])


def test_a_path_resumes_from_the_log(setup: Setup, tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path, "key")
    first, tried = submodel_path(setup, BITS, log, ONE, None)
    lines = (tmp_path / "key.jsonl").read_text().splitlines()
    assert len(lines) == len(tried)
    for known in (lines, lines[: len(lines) // 2]):
        (tmp_path / "key.jsonl").write_text("\n".join(known) + "\n")
        again, names = submodel_path(setup, BITS, EvaluationLog(tmp_path, "key"), ONE, None)
        assert again.order == first.order and names == tried
        np.testing.assert_array_equal(again.value, first.value)
        assert sorted((tmp_path / "key.jsonl").read_text().splitlines()) == sorted(lines)


def test_two_layers_that_could_each_be_spared_are_not_both_taken_out() -> None:
    def loss(widths: tuple[int, ...]) -> float:
        first, second, third = widths
        return 10.0 * (2 - max(first, second)) + 1.0 * (2 - third)  # the first two do the same work

    path, _ = told(loss, encoder(3, 2))
    taken = path.order[::-1]
    assert taken[:2] == ((0, 1), (0, 0))  # either costs nothing while the other is there
    assert taken[2:4] == ((2, 1), (2, 0)) and path.order[:2] == ((1, 0), (1, 1))
    np.testing.assert_allclose(path.value, [[0, 0], [10, 10], [1, 1]])


def test_a_layer_gives_way_in_steps_and_a_narrow_one_wholly() -> None:
    def loss(widths: tuple[int, ...]) -> float:
        first, second = widths
        return 100.0 * (12 - second) + (12 - first if first else 9.0)  # without the first layer: better than narrow

    path, tried = told(loss, encoder(2, 12))
    assert path.order == tuple((k, s) for k in (1, 0) for s in range(12))
    np.testing.assert_allclose(path.value[1], 100.0)
    np.testing.assert_allclose(path.value[0], [0.25] * 4 + [1.0] * 8)  # the last four slices went at once
    widths = {name.split("/")[0].removeprefix("loss ").split(",").count("8") for name in tried}
    assert widths == {0, 2, 4, 6, 8, 10, 12}


def test_losses_that_fall_on_the_way_down_are_pooled() -> None:
    path = path_of([[(1, 1)], [(0, 1)], [(0, 0), (1, 0)]], [1.0, 0.5, 3.0, 7.0], (2, 2))
    assert path.order == ((0, 0), (1, 0), (0, 1), (1, 1))
    np.testing.assert_allclose(path.value, [[2.0, 2.25], [2.0, 0.0]])
