"""Plans as values: what they refuse, and their JSON."""

import json
from dataclasses import replace

import pytest

from stic.compiler.plan import Budget, IoCost, LayerPlan, Plan, Proof, dumps, from_json, to_json
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


def test_json_round_trip():
    assert from_json(json.loads(dumps(PLAN))) == PLAN


def test_places_survive_json():
    plan = replace(PLAN, layers=(replace(PLAN.layers[0], place="gpu"), PLAN.layers[1]))
    assert plan.on_gpu and not PLAN.on_gpu
    assert from_json(json.loads(dumps(plan))) == plan


def test_plans_from_before_there_were_places_are_read():
    old = to_json(PLAN) | {"format": 1}
    for layer in old["layers"]:
        del layer["place"]
    assert from_json(old) == PLAN


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"format": 1},  # which has no places
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
