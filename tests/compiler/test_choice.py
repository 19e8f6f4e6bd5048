"""Plans on trial: the one that loses less on calibration examples is kept, and says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.planner_study.synthetic import DEVICES, Geometry, problem_of
from stic.compiler import stage_cache
from stic.compiler.choice import Trial, assignment, best_plan, trial_on
from stic.compiler.importance.evaluate import Evaluator
from stic.compiler.importance.examples import built_in_examples
from stic.compiler.importance.jobs import LossJob
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.measure import Importance, ImportanceSettings
from stic.compiler.inputs import read_model
from stic.compiler.plan import Budget, LayerPlan, Plan, Problem, Proof, SubmodelPath
from stic.compiler.planner import solve
from stic.compiler.quantization.quantize import QuantizedModel, quantize
from stic.compiler.sharding import shard
from stic.compiler.stages import Decided, Solver
from stic.runtime.errors import InfeasibleError
from stic.runtime.layout import Shape
from tests.compiler.planning import planned
from tests.compiler.profiling import ONE, one_thread

__all__ = ["one_thread"]

GEOMETRY = Geometry("tiny", Shape.layer(128, 4, 1, 32, 128), 2, 200)  # as many layers and slices as the model
SETTINGS = ImportanceSettings(bits=(2, 3, 4, 5, 6, 8), tokens=200, max_length=16)


@pytest.fixture(scope="module")
def quantized(tiny_dir: Path) -> QuantizedModel:
    return quantize(shard(read_model(tiny_dir), 4))


@pytest.fixture
def trial(quantized: QuantizedModel, tmp_path: Path) -> Trial:
    return trial_on(built_in_examples(), quantized, SETTINGS, ONE, tmp_path / "importance")


def problem(layer_weight: tuple[float, float]) -> Problem:
    """A budget that is enough for 3 bits or so everywhere, and gains by which the layers matter so much."""
    device = replace(DEVICES[0], macs_per_s=DEVICES[0].macs_per_s * 0.05)
    made = problem_of(GEOMETRY, device, 1, Budget(), length=16, bits=SETTINGS.bits)
    gain = 1 - 4.0 ** -(np.array(made.bits) - 2.0)
    gains = np.array(layer_weight)[:, None, None] * np.broadcast_to(gain, made.gain.shape)
    memory_bytes = made.fixed_bytes + made.store.total_bytes // 2
    return replace(made, gain=gains, budget=Budget(7_000, memory_bytes), table_streamed=True)


def decided(p: Problem, trial: Trial, folder: Path) -> Plan:
    return best_plan(p, trial, 10.0, 0.0, folder / "plans", pytest.fail)


def loss_of(plan: Plan, trial: Trial) -> float:
    """Measured apart from the log."""
    return Evaluator(trial.setup.measurement).scores(assignment(plan, 4)).loss


def plan_at(bits: int, planner: str) -> Plan:
    layers = (LayerPlan((bits,) * 4, (0,) * 4),) * 2
    return Plan(planner, layers, False, 1, True, Budget(), 0.0, Proof("heuristic", float(bits), None, 0.0))


def test_gains_that_mislead_lose_to_greedy(trial: Trial, tmp_path: Path) -> None:
    p = problem((1.0, 1e-6))  # as if the second layer did nothing
    ilp, greedy = (solve(p, name) for name in ("ilp", "greedy"))
    found = decided(p, trial, tmp_path)
    assert found.layers == greedy.layers != ilp.layers
    assert loss_of(greedy, trial) < loss_of(ilp, trial)
    assert found.loss is not None and found.loss == pytest.approx(loss_of(greedy, trial))
    assert found.planner == "ilp" and found.quality == -found.loss
    assert found.proof.status == "heuristic" and found.proof.bound is None
    assert "the plan of planner greedy loses less than that of ilp" in found.notes[-1]
    assert f"{found.loss:.3g} against {loss_of(ilp, trial):.3g}" in found.notes[-1]


def test_gains_that_are_right_keep_the_plan_of_the_ilp(trial: Trial, tmp_path: Path) -> None:
    p = problem((1.0, 1.0))
    p = replace(p, budget=Budget(1_000_000, p.fixed_bytes + p.store.total_bytes // 4))
    ilp, greedy = (solve(p, name) for name in ("ilp", "greedy"))
    assert loss_of(ilp, trial) < loss_of(greedy, trial)
    found = decided(p, trial, tmp_path)
    assert found.layers == ilp.layers and found.notes == ilp.notes
    assert found.proof.status == "optimal" and found.loss == pytest.approx(loss_of(ilp, trial))


@pytest.mark.parametrize(("losses", "kept"), [((0.2, 0.1), 6), ((0.1, 0.1), 4), ((0.1, 0.2), 4)])
def test_of_plans_that_lose_as_much_the_first_is_kept(
    losses: tuple[float, float], kept: int, quantized: QuantizedModel, trial: Trial
) -> None:
    plans = [plan_at(4, "ilp"), plan_at(6, "greedy")]
    log = EvaluationLog(None, "")
    for plan, loss in zip(plans, losses, strict=True):
        log.results[LossJob(assignment(plan, 4)).name] = {"loss": loss, "metric": None}
    found = replace(trial, log=log).best(plans)
    assert found.layers[0].bits == (kept,) * 4 and found.planner == "ilp" and found.loss == min(losses)
    assert len(found.notes) == (kept == 6)


def test_losses_are_kept_between_trials(trial: Trial, tmp_path: Path, quantized: QuantizedModel) -> None:
    first = decided(problem((1.0, 1.0)), trial, tmp_path)
    (log,) = (tmp_path / "importance").glob("*.jsonl")
    before = log.read_bytes()
    again = trial_on(built_in_examples(), quantized, SETTINGS, ONE, tmp_path / "importance")
    assert decided(problem((1.0, 1.0)), again, tmp_path) == first
    assert log.read_bytes() == before


def test_a_plan_that_greedy_cannot_make_is_tried_alone(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem((1.0, 1.0))
    expected = decided(p, trial, tmp_path)

    def refused(asked: Problem, planner: str, *more: object, **options: object) -> Plan:
        if planner == "greedy":
            raise InfeasibleError("planner greedy finds no plan for this budget")
        return solve(asked, planner)

    monkeypatch.setattr(stage_cache, "solve", refused)
    found = decided(p, trial, tmp_path / "elsewhere")
    assert found.layers == expected.layers and found.loss == expected.loss


def test_what_nothing_fits_is_refused(trial: Trial, tmp_path: Path) -> None:
    p = problem((1.0, 1.0))
    with pytest.raises(InfeasibleError, match="the least memory"):
        decided(replace(p, budget=Budget(7_000, p.fixed_bytes)), trial, tmp_path)


def test_shards_left_out_are_left_out_on_trial(quantized: QuantizedModel, tmp_path: Path) -> None:
    model = replace(quantized.sharded.model, elastic=True)
    stretchy = replace(quantized, sharded=replace(quantized.sharded, model=model))
    trial = trial_on(built_in_examples(), stretchy, SETTINGS, ONE, tmp_path / "importance")
    p = problem((1.0, 1.0))
    order = (*((0, s) for s in range(4)), *((1, s) for s in range(4)))
    p = replace(p, elastic=True, path=SubmodelPath(order, np.ones((2, 4))), presence=np.ones((2, 4)))
    found = decided(replace(p, budget=Budget(None, p.fixed_bytes + p.store.total_bytes // 10)), trial, tmp_path)
    bits = assignment(found, 4)
    assert all(len(layer) == 4 for layer in bits) and 0 in bits[1]
    assert found.loss == pytest.approx(loss_of(found, trial))


def test_only_the_ilp_is_tried_and_not_without_tokens(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path))
    tried, untried = (planned(tiny_dir, planner={"trial_tokens": tokens}) for tokens in (100, 0))
    plan, trial = tried[Decided].default, tried[Solver].trial
    assert plan.loss is not None and plan.quality == -plan.loss
    assert trial is not None and trial.setup.objective == tried[Importance].objective
    assert untried[Solver].trial is None
    assert untried[Decided].default.loss is None and untried[Decided].default.planner == "ilp"
    for planner, bits in (("greedy", None), ("preload", 4)):
        other = planned(tiny_dir, planner={"name": planner, "bits": bits, "trial_tokens": 100})[Decided].default
        assert other.loss is None and other.planner == planner
