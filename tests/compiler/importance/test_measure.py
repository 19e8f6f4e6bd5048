"""Importance: gain curves, their additivity, the published ranking, and that a profile neither varies nor repeats work.

The model is tiny and random; what is tested is the measurement, not what is measured.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler.importance import jobs, measure
from stic.compiler.importance.evaluate import Evaluator
from stic.compiler.importance.examples import Examples
from stic.compiler.importance.file import load, save
from stic.compiler.importance.jobs import ErrorJob, LossJob, Workers
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.measure import Importance, ImportanceSettings, measure_importance
from stic.compiler.importance.submodels import submodel_path
from stic.compiler.options import CompileOptions, ImportanceOptions, ModelOptions, PlannerOptions, TargetOptions
from stic.compiler.pipeline import plan_model
from stic.compiler.plan import Problem, SubmodelPath
from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.stages import Decided
from stic.runtime.errors import InputError
from tests.compiler.profiling import ONE, SETTINGS, classifier, encoder, labelled, one_thread

__all__ = ["classifier", "encoder", "one_thread"]

ROUNDING = 1e-9


def elastic(quantized: QuantizedModel) -> QuantizedModel:
    sharded = quantized.sharded
    return replace(quantized, sharded=replace(sharded, model=replace(sharded.model, elastic=True)))


@pytest.fixture(scope="module")
def found(encoder: QuantizedModel) -> Importance:
    return measure_importance(encoder, settings=SETTINGS, workers=ONE)


@pytest.fixture(scope="module")
def stretchy(encoder: QuantizedModel) -> Importance:
    return measure_importance(elastic(encoder), settings=SETTINGS, workers=ONE)


def assert_same(a: Importance, b: Importance) -> None:
    """Equal in everything but the time it took."""
    np.testing.assert_equal(*(asdict(replace(importance, seconds=0.0)) for importance in (a, b)))


def assert_rising_and_concave(gain: np.ndarray, bits: tuple[int, ...]) -> None:
    slopes = np.diff(gain, axis=-1) / np.diff(bits)
    assert not gain[..., 0].any()
    assert (slopes >= 0).all()
    assert (np.diff(slopes, axis=-1) <= 1e-9 * np.abs(gain).max()).all()


def jobs_in(folder: Path) -> list[str]:
    (log,) = folder.glob("*.jsonl")
    return [json.loads(line)["job"] for line in log.read_text().splitlines()]


def test_gains_rise_and_flatten(found: Importance) -> None:
    assert found.gain.shape == found.raw.shape == (2, 4, 5)
    assert_rising_and_concave(found.gain, SETTINGS.bits)
    assert (found.gain[..., -1] > 0).all()
    assert found.objective == "cosine" and found.metric is None and found.raw_width is None and found.path is None
    assert not found.presence.any()
    assert "built-in sentences: " in found.calibration and found.calibration.endswith("unlabelled")


def test_a_profile_repeats_itself(found: Importance, encoder: QuantizedModel) -> None:
    assert_same(measure_importance(encoder, settings=SETTINGS, workers=ONE), found)
    other = measure_importance(encoder, settings=replace(SETTINGS, seed=1), workers=ONE)
    assert other.key != found.key


def test_more_bits_are_worth_more(found: Importance) -> None:
    low, high = (((bits,) * 4,) * 2 for bits in (2, 16))
    assert found.value(low) == 0 < found.value(high)
    assert found.value(high) == pytest.approx(found.gain[..., -1].sum())


def test_only_the_ends_the_middle_and_the_operating_level_are_measured(
    found: Importance, encoder: QuantizedModel
) -> None:
    settings = replace(SETTINGS, exact=True, plans=0)
    exact = measure_importance(encoder, settings=settings, workers=ONE)
    measured = [SETTINGS.bits.index(bits) for bits in SETTINGS.measured]
    assert SETTINGS.measured == (2, 4, 8, 16) and settings.measured == SETTINGS.bits
    assert ImportanceSettings(bits=(3, 6, 8)).measured == (3, 8)  # 4 bits are not on offer
    assert not np.isnan(exact.raw).any() and exact.evaluations == 1 + 8 * 4
    others = [i for i in range(5) if i not in measured]
    np.testing.assert_array_equal(found.raw[..., measured], exact.raw[..., measured])
    assert np.isnan(found.raw[..., others]).all()
    ends = exact.raw[..., 0] - exact.raw[..., -1]
    for profiled in (found, exact):
        assert (profiled.gain[..., -1] >= ends - 1e-12).all()
    np.testing.assert_allclose(found.gain[..., -1], exact.gain[..., -1], atol=0.1 * found.gain.max())
    assert exact.additivity == () and exact.rho is None


def test_the_operating_level_is_one_evaluation(found: Importance) -> None:
    at_level = found.raw[..., SETTINGS.bits.index(8)]
    assert SETTINGS.level == found.level == 8 and np.unique(at_level).size == 1


def test_additivity(found: Importance) -> None:
    (first, *_) = found.additivity
    assert first.plans == SETTINGS.plans
    assert abs(first.rho_near) <= 1 + ROUNDING and 0 <= first.residual <= 1
    assert found.rho is not None and abs(found.rho) <= 1 + ROUNDING
    assert found.rho == found.additivity[-1].rho


def test_layer_factors_are_checked_on_new_plans(encoder: QuantizedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stic.compiler.importance.measure.GOOD_RHO", 1.1)
    again = measure_importance(encoder, settings=SETTINGS, workers=ONE)
    assert len(again.additivity) == 2 and all(abs(entry.rho) <= 1 + ROUNDING for entry in again.additivity)
    assert np.mean(again.layer_factor) == pytest.approx(1.0) and min(again.layer_factor) > 0
    assert_rising_and_concave(again.gain, SETTINGS.bits)


def test_presence_of_an_elastic_model(stretchy: Importance) -> None:
    assert stretchy.presence.shape == (2, 4) and (stretchy.presence >= 0).all() and stretchy.presence.any()
    assert stretchy.raw_width is not None and stretchy.raw_width.shape == (2, 5)
    full = ((4,) * 4,) * 2
    cut = ((4,) * 4, (4, 4, 0, 0))
    assert stretchy.value(full) >= stretchy.value(cut)
    assert stretchy.rho is not None and abs(stretchy.rho) <= 1 + ROUNDING


@pytest.mark.parametrize("factors", [False, True])
def test_submodels_of_an_elastic_model_are_worth_what_their_gains_leave(
    factors: bool, stretchy: Importance, encoder: QuantizedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[SubmodelPath] = []

    def measured(*arguments: Any) -> tuple[SubmodelPath, set[str]]:
        path, names = submodel_path(*arguments)
        whole.append(path)
        return path, names

    monkeypatch.setattr(measure, "submodel_path", measured)
    monkeypatch.setattr(measure, "GOOD_RHO", 1.1 if factors else -1.1)
    again = measure_importance(elastic(encoder), settings=SETTINGS, workers=ONE)
    assert (len(again.additivity) == 2) == factors
    assert again.path is not None and stretchy.path is not None and again.path.order == stretchy.path.order
    at_level = again.gain[..., SETTINGS.bits.index(SETTINGS.level)]
    np.testing.assert_array_equal(again.path.value, np.maximum(whole[0].value - at_level, 0.0))
    assert again.path.value.any()


def test_an_elastic_profile_goes_on_and_counts_its_submodels(
    stretchy: Importance, encoder: QuantizedModel, tmp_path: Path
) -> None:
    assert_same(measure_importance(elastic(encoder), settings=SETTINGS, workers=ONE, cache=tmp_path), stretchy)
    before = jobs_in(tmp_path)
    assert sum(name.startswith("loss") for name in before) == stretchy.evaluations
    assert_same(measure_importance(elastic(encoder), settings=SETTINGS, workers=ONE, cache=tmp_path), stretchy)
    assert jobs_in(tmp_path) == before


def test_the_path_of_an_elastic_model_is_nothing_to_one_that_is_not(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))
    options = CompileOptions(
        ModelOptions(tiny_dir, max_length=16),
        TargetOptions("odroid-n2plus"),
        importance=ImportanceOptions(tokens=40, jobs=1),
        planner=PlannerOptions("greedy"),
    )
    made = plan_model(options)
    shape = made[Importance].presence.shape
    path = SubmodelPath(tuple(np.ndindex(shape)), np.ones(shape))
    save(replace(made[Importance], path=path), tmp_path / "importance.json")
    read = replace(options.importance, file=tmp_path / "importance.json")
    again = plan_model(replace(options, importance=read))
    assert again[Problem].path is None and again[Decided].default.layers == made[Decided].default.layers


def test_the_published_ranking(classifier: QuantizedModel) -> None:
    settings = replace(SETTINGS, method="sti", tokens=200)
    ranked = measure_importance(classifier, labelled(), settings, workers=ONE)
    assert ranked.method == "sti" and ranked.level == 2 and ranked.evaluations == 5
    assert sorted(ranked.gain[..., -1].ravel().tolist()) == [0.25, 0.5, 0.75, 1.0]
    assert not ranked.gain[..., 0].any() and not ranked.presence.any()
    assert ranked.rho is None
    assert ranked.metric is not None and 0 <= ranked.metric <= 1
    plain = measure_importance(classifier, replace(labelled(), kind="unlabelled", targets=None), settings, workers=ONE)
    best = np.unravel_index(plain.gain[..., -1].argmax(), (2, 2))
    assert plain.raw[(*best, -1)] == plain.raw[..., -1].min()
    assert plain.objective == "kl" and plain.metric is None
    stretchy = measure_importance(elastic(classifier), labelled(), settings, workers=ONE)
    assert (stretchy.presence > stretchy.gain.sum()).all()


def test_labels_give_a_metric(classifier: QuantizedModel) -> None:
    settings = replace(SETTINGS, tokens=1000, plans=4)
    with_labels = measure_importance(classifier, labelled(), settings, workers=ONE)
    assert with_labels.objective == "cross entropy" and with_labels.metric is not None
    assert with_labels.metric * 16 == pytest.approx(round(with_labels.metric * 16))
    assert with_labels.calibration.startswith("random words: 16 of 16 examples") and "classification" in (
        with_labels.calibration
    )
    agreement = measure_importance(classifier, labelled(), replace(settings, objective="kl"), workers=ONE)
    assert agreement.objective == "kl" and agreement.metric == with_labels.metric
    assert agreement.key != with_labels.key


def test_similarity_gives_a_metric(encoder: QuantizedModel) -> None:
    texts = tuple((a, b) for (a, _), (b, _) in zip(labelled().texts, labelled().texts[::-1], strict=True))
    examples = Examples("similarity", texts, np.arange(16.0), "pairs")
    similar = measure_importance(encoder, examples, replace(SETTINGS, tokens=400, plans=0), workers=ONE)
    assert similar.objective == "cosine" and similar.metric is not None and abs(similar.metric) <= 1 + ROUNDING


class _Stopped(Exception):
    """What a user's Ctrl-C stands for."""


def test_a_stopped_profile_goes_on(
    found: Importance, encoder: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 3:
            raise _Stopped

    with pytest.raises(_Stopped):
        measure_importance(encoder, settings=SETTINGS, workers=ONE, cache=tmp_path, progress=stop)
    before = jobs_in(tmp_path)
    assert 0 < len(before) and len(set(before)) == len(before)
    (log,) = tmp_path.glob("*.jsonl")
    with log.open("a") as file:
        file.write('{"job": "loss 2,2,2,2/2,2,')  # the write that a crash cut short

    ran: list[str] = []
    really = jobs._run

    def count(evaluator: Evaluator, job: LossJob | ErrorJob) -> Any:
        ran.append(job.name)
        return really(evaluator, job)

    monkeypatch.setattr(jobs, "_run", count)
    steps: list[tuple[int, int]] = []
    again = measure_importance(
        encoder, settings=SETTINGS, workers=ONE, cache=tmp_path, progress=lambda *step: steps.append(step)
    )
    assert_same(again, found)
    assert not set(ran) & set(before) and len(set(ran)) == len(ran)
    entries = EvaluationLog(tmp_path, log.stem).results
    assert set(entries) == set(ran) | set(before)
    assert sum(name.startswith("loss") for name in entries) == found.evaluations
    assert steps[0][0] > 0 and steps[-1][0] == steps[-1][1] and steps == sorted(steps)

    ran.clear()
    assert_same(measure_importance(encoder, settings=SETTINGS, workers=ONE, cache=tmp_path), found)
    assert not ran


def test_other_weights_are_other_evaluations(encoder: QuantizedModel, tmp_path: Path) -> None:
    settings = replace(SETTINGS, method="sti", tokens=20)
    measure_importance(encoder, settings=settings, workers=ONE, cache=tmp_path)
    matrices = [[dict(part) for part in layer] for layer in encoder.matrices]
    changed = matrices[0][0]["up"]
    matrices[0][0]["up"] = replace(changed, scale=changed.scale * np.float32(1.5))
    other = replace(encoder, matrices=tuple(tuple(layer) for layer in matrices))
    measure_importance(other, settings=settings, workers=ONE, cache=tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_cache_that_cannot_be_written(encoder: QuantizedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot keep evaluations in .*name another folder"):
        measure_importance(encoder, settings=SETTINGS, workers=ONE, cache=tmp_path / "file")


def test_two_processes_find_the_same(found: Importance, encoder: QuantizedModel, tmp_path: Path) -> None:
    assert_same(measure_importance(encoder, settings=SETTINGS, workers=Workers(jobs=2), cache=tmp_path), found)
    assert len(jobs_in(tmp_path)) == len(set(jobs_in(tmp_path)))


def test_a_cluster_finds_the_same(found: Importance, encoder: QuantizedModel, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        workers = cluster.scheduler_info["workers"]
        assert len(workers) == 2
        with distributed.Client(cluster, set_as_default=False) as client:
            assert len({os.getpid(), *client.run(os.getpid).values()}) == 3
        result = measure_importance(
            encoder, settings=SETTINGS, workers=Workers(dask=cluster.scheduler_address), cache=tmp_path / "log"
        )
    assert_same(result, found)
    assert len(jobs_in(tmp_path / "log")) == found.evaluations + 2  # and the local errors of two layers


def test_no_such_cluster(encoder: QuantizedModel) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(InputError, match="no Dask scheduler answers at nowhere://"):
        measure_importance(encoder, settings=SETTINGS, workers=Workers(dask="nowhere://127.0.0.1:1"))


def test_files_read_back(found: Importance, stretchy: Importance, tmp_path: Path) -> None:
    for profiled in (found, stretchy):
        save(profiled, tmp_path / "importance.json")
        again = load(tmp_path / "importance.json")
        assert_same(again, profiled)
        assert again.seconds == profiled.seconds
    assert [path.name for path in tmp_path.iterdir()] == ["importance.json"]


def test_files_of_something_else(found: Importance, stretchy: Importance, tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    save(stretchy, path)
    good = json.loads(path.read_text())
    damaged = [
        {name: value for name, value in good.items() if name != missing}
        for missing in ("format", "gain", "bits", "key", "additivity", "path")
    ]
    damaged += [
        good | change
        for change in (
            {"unknown": 1},
            {"format": 1},
            {"format": 3},
            {"gain": None},
            {"gain": [[1.0]]},
            {"presence": [[0.0]]},
            {"raw": [[[0.0]]]},
            {"raw_width": [[0.0]]},
            {"layer_factor": [1.0]},
            {"bits": [2, 3]},
            {"additivity": [{"rho": 1.0}]},
            {"path": {"value": good["path"]["value"]}},
            {"path": good["path"] | {"length": 8}},
            {"path": good["path"] | {"order": good["path"]["order"][1:]}},
            {"path": good["path"] | {"order": good["path"]["order"][::-1]}},
            {"path": {"order": [[0, 0]], "value": [[1.0]]}},
        )
    ]
    for content in (*map(json.dumps, damaged), "", "[]", "null", "{", json.dumps(good)[:-20]):
        path.write_text(content)
        with pytest.raises(InputError, match=r"importance\.json is not an importance file .*profile again"):
            load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not an importance file"):
        load(path)
    with pytest.raises(InputError, match=r"cannot read the importance file .*No such file"):
        load(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot write"):
        save(found, tmp_path / "missing" / "importance.json")
