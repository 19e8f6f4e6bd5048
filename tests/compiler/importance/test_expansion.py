"""Importance of large models: one expansion of the loss gives the gains that measuring shard by shard gives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler import sharding
from stic.compiler.importance import jobs, measure
from stic.compiler.importance.examples import Examples
from stic.compiler.importance.expansion import output_curvature
from stic.compiler.importance.jobs import Workers
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.measure import ImportanceSettings, measure_importance
from stic.compiler.importance.objectives import Objective, loss
from stic.compiler.importance.scoring import spearman
from stic.compiler.inputs import read_model
from stic.compiler.quantization.quantize import QuantizedModel, quantize
from stic.compiler.sharding import Geometry, shard
from tests.compiler.profiling import ONE, SETTINGS, encoder, labelled, one_thread

__all__ = ["encoder", "one_thread"]

MANY = replace(SETTINGS, tokens=600, plans=0)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large."""
    monkeypatch.setattr(measure, "MEASURED_PRODUCTS", 0)


@pytest.mark.parametrize(
    ("geometry", "expands"),
    [
        (Geometry(6, 384, 12, 32, 1536, 12), False),  # MiniLM-L6
        (Geometry(12, 384, 12, 32, 1536, 12), False),
        (Geometry(6, 768, 12, 64, 3072, 12), False),  # DistilBERT
        (Geometry(12, 768, 12, 64, 3072, 12), True),  # BERT-base
        (Geometry(24, 1024, 16, 64, 4096, 16), True),  # BERT-large
    ],
)
def test_large_models_are_expanded_unless_measuring_is_asked_for(geometry: Geometry, expands: bool) -> None:
    assert ImportanceSettings().expands(geometry) == expands
    assert not ImportanceSettings(exact=True).expands(geometry)


@pytest.mark.parametrize("objective", ["kl", "cross entropy", "cosine", "squared"])
@pytest.mark.parametrize("features", [1, 3, 20])
def test_the_curvature_of_an_objective(objective: Objective, features: int) -> None:
    if objective in ("cosine", "kl") and features == 1:
        pytest.skip("one number has no direction, and is no distribution")
    rng = np.random.default_rng(features)
    reference = rng.normal(size=(6, features)).astype(np.float32)
    found = (reference + 0.01 * rng.normal(size=reference.shape)).astype(np.float32)
    targets = rng.integers(0, max(features, 2), 6).astype(np.float64)
    examples = Examples("classification", (("", None),) * 6, targets, "")
    curvature = output_curvature(objective, found, reference, 6, float(reference.var(dtype=np.float64)), targets)
    change = 0.02 * rng.normal(size=found.shape)
    size = curvature.gradient.shape[-1]
    directions = np.broadcast_to(np.eye(size)[:, None, :], (size, *curvature.gradient.shape))
    padded = np.concatenate((np.zeros((6, size - features)), change), axis=1)
    roots = (curvature.project(directions) * padded).sum(axis=-1)
    predicted = (curvature.gradient * padded).sum() + np.square(roots).sum() / 2
    losses = [loss(objective, values, reference, examples) for values in (found, found + change)]
    assert predicted == pytest.approx(losses[1] - losses[0], rel=0.05, abs=1e-9)


def agree(found: Any, measured: Any) -> None:
    """The same gains, but for what is not linear, and for random probes."""
    assert spearman(found.gain[..., -1].ravel(), measured.gain[..., -1].ravel()) > 0.8
    np.testing.assert_allclose(found.gain[..., -1].sum(), measured.gain[..., -1].sum(), rtol=0.2)
    assert found.key == measured.key and found.evaluations == 1
    level = found.bits.index(found.level)
    np.testing.assert_array_equal(found.raw[..., level], measured.raw[..., level])
    assert np.isnan(np.delete(found.raw, level, axis=-1)).all()


def test_a_sentence_encoder(encoder: QuantizedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = measure_importance(encoder, settings=MANY, workers=ONE)
    monkeypatch.setattr(measure, "MEASURED_PRODUCTS", 0)
    agree(measure_importance(encoder, settings=MANY, workers=ONE), measured)


@pytest.mark.parametrize("objective", ["kl", "cross entropy", "squared"])
def test_a_classifier(objective: Objective, tiny_classifier_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = quantize(shard(read_model(tiny_classifier_dir), 4))
    settings = replace(MANY, objective=objective)
    measured = measure_importance(classifier, labelled(), settings, workers=ONE)
    monkeypatch.setattr(measure, "MEASURED_PRODUCTS", 0)
    agree(measure_importance(classifier, labelled(), settings, workers=ONE), measured)


def test_token_features(encoder: QuantizedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded = encoder.sharded
    head = replace(sharded.model.head, pooling="tokens")
    by_token = replace(encoder, sharded=replace(sharded, model=replace(sharded.model, head=head)))
    measured = measure_importance(by_token, settings=MANY, workers=ONE)
    monkeypatch.setattr(measure, "MEASURED_PRODUCTS", 0)
    agree(measure_importance(by_token, settings=MANY, workers=ONE), measured)


@pytest.mark.usefixtures("large")
def test_an_elastic_model_is_cut_as_before(encoder: QuantizedModel) -> None:
    sharded = encoder.sharded
    stretchy = replace(encoder, sharded=replace(sharded, model=replace(sharded.model, elastic=True)))
    found = measure_importance(stretchy, settings=SETTINGS, workers=ONE)
    assert found.path is not None and found.presence.any() and found.raw_width is not None


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("threads", [False, True])
def test_several_at_once_find_the_same(
    threads: bool, encoder: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = measure_importance(encoder, settings=SETTINGS, workers=ONE)
    monkeypatch.setattr(sharding, "LARGE_BYTES", 0 if threads else 1 << 60)
    together = measure_importance(encoder, settings=SETTINGS, workers=Workers(jobs=2), cache=tmp_path)
    np.testing.assert_array_equal(together.gain, alone.gain)
    (log,) = tmp_path.glob("*.jsonl")
    before = EvaluationLog(tmp_path, log.stem).results
    assert any(name.startswith("expansion") for name in before)
    monkeypatch.setattr(jobs, "_run", lambda *_: pytest.fail("an evaluation was made again"))
    again = measure_importance(encoder, settings=SETTINGS, workers=ONE, cache=tmp_path)
    np.testing.assert_array_equal(again.gain, alone.gain)
