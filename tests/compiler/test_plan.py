"""Plans as values: what they refuse, and their JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.planner_study.synthetic import DEVICES, MINILM, problem_of
from stic.compiler.plan import Budget, IoCost, LayerPlan, Plan, Proof, SubmodelPath, dumps, from_json, to_json
from stic.runtime.errors import InputError

PLAN = Plan(
    "ilp",
    (LayerPlan((16, 4, 2), (16, 3, 0)), LayerPlan((), ())),
    True,
    1,
    True,
    Budget(1000, 2000, None),
    0.1,
    Proof("feasible", 9.0, 10.0, 0.5, 1e-4),
    ("a note",),
)


@pytest.mark.parametrize("loss", [None, 0.0625])
def test_json_round_trip(loss):
    plan = replace(PLAN, loss=loss)
    assert to_json(plan)["format"] == 3 and from_json(json.loads(dumps(plan))) == plan


def test_quality_is_minus_the_loss_or_the_objective_where_that_was_not_measured():
    assert PLAN.quality == 9.0 and replace(PLAN, loss=0.0625).quality == -0.0625


def test_places_survive_json():
    plan = replace(PLAN, layers=(replace(PLAN.layers[0], place="gpu"), PLAN.layers[1]))
    assert plan.on_gpu and not PLAN.on_gpu
    assert from_json(json.loads(dumps(plan))) == plan


@pytest.mark.parametrize("version", [1, 2])
def test_plans_from_before_there_were_places_or_losses_are_read(version):
    old = to_json(PLAN) | {"format": version}
    del old["loss"]
    for layer in old["layers"] if version == 1 else ():
        del layer["place"]
    assert from_json(old) == PLAN


def test_a_plan_without_what_its_format_has_is_refused():
    lossless = to_json(PLAN)
    del lossless["loss"]
    for change in ({}, {"format": 1}):  # 3 has a loss, 1 has no places
        with pytest.raises(InputError, match="not a plan"):
            from_json(lossless | change)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0},
        {"format": 4},
        {"format": 2},  # which has no loss
        {"surprise": 1},
        {"layers": [{"bits": [2]}]},
        {"layers": [{"bits": [2], "resident": [0]}]},
        {"layers": [{"bits": [2], "resident": [0], "place": "npu"}]},
        {"layers": [{"bits": [], "resident": [], "place": "gpu"}]},
    ],
)
def test_foreign_json_is_refused(change):
    with pytest.raises(InputError, match="not a plan"):
        from_json({**to_json(PLAN), **change})


@pytest.mark.parametrize(
    ("bits", "resident"),
    [
        ((2, 3), (0, 0)),  # bits rise with the slice
        ((4,), (5,)),  # more is resident than planned
        ((16,), (4,)),  # planes of a shard at full precision
        ((4, 4), (2, 3)),  # resident bits rise with the slice
        ((4,), ()),
    ],
)
def test_layers_that_cannot_be(bits, resident):
    with pytest.raises(ValueError, match=r"bits|length"):
        LayerPlan(bits, resident)


def test_derived_facts():
    assert PLAN.layers[0].full == 1
    assert PLAN.mean_bits == pytest.approx(22 / 3)
    assert PLAN.proof.gap == pytest.approx(0.1)
    assert Proof("heuristic", 1.0, None, 0.0).gap is None


def test_extents_are_read_in_requests():
    io = IoCost(request_us=10, bytes_per_s=1e6, request_bytes=4096, row_us=1)
    assert io.extent_us(8192) == pytest.approx(2 * 10 + 8192)
    assert io.extent_us(8193) == pytest.approx(3 * 10 + 8193)


def path(order, shape=(2, 2)):
    return SubmodelPath(tuple(order), np.ones(shape))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([(0, 0), (1, 0), (0, 1)], "every shard once"),
        ([(0, 0), (1, 0), (0, 1), (0, 1)], "every shard once"),
        ([(0, 0), (1, 0), (0, 1), (1, 1), (2, 0)], "every shard once"),
        ([(0, 0), (1, 1), (1, 0), (0, 1)], "in their order"),
    ],
)
def test_paths_that_cannot_be(order, message):
    with pytest.raises(ValueError, match=message):
        path(order)
    path([(1, 0), (0, 0), (0, 1), (1, 1)])


def test_only_an_elastic_model_has_a_path():
    order = list(np.ndindex(MINILM.layers, MINILM.slices))
    whole = path(order, (MINILM.layers, MINILM.slices))
    rigid, elastic = (problem_of(MINILM, DEVICES[0], 1, Budget(), elastic) for elastic in (False, True))
    with pytest.raises(ValueError, match="no submodels"):
        replace(rigid, path=whole)
    along = replace(elastic, path=whole).along_path
    assert (along.presence == 1).all() and along.path is whole and elastic.along_path is elastic
