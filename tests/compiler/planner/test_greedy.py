"""STI's planner as published."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.planner_study.synthetic import BERT_BASE, DEVICES, MINILM, problem_of
from stic.compiler.plan import Budget, SubmodelPath
from stic.compiler.planner import greedy, solve
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.simulate import check
from stic.runtime.errors import InfeasibleError

CASES = [
    (MINILM, DEVICES[1], Budget(40_000, None, 1 << 20), False),
    (MINILM, DEVICES[1], Budget(40_000, 12 << 20, None), False),
    (BERT_BASE, DEVICES[0], Budget(200_000, None, 1 << 20), True),
    (BERT_BASE, DEVICES[1], Budget(None, 20 << 20, None), False),
    (BERT_BASE, DEVICES[1], Budget(150_000, None, 0), False),
]


@pytest.mark.parametrize(("geometry", "device", "budget", "elastic"), CASES)
@pytest.mark.parametrize("nested", [True, False])
def test_greedy_plans_replay_within_budget(geometry, device, budget, elastic, nested):
    problem = problem_of(geometry, device, 1, budget, elastic, nested=nested)
    plan = greedy.solve(problem)
    assert plan is not None and plan.proof.bound is None and plan.proof.status == "heuristic"
    check(plan, problem, claim_of(plan, problem))


def test_slack_buys_quality_where_nothing_can_be_preloaded():
    problem = problem_of(MINILM, DEVICES[0], 1, Budget(120_000, None, 0))
    assert greedy.solve(problem, (True,)) is not None
    assert greedy.solve(problem, (False,)) is None  # layer 0 would have to be there at once


def test_the_yardstick_takes_the_best_variant():
    problem = problem_of(MINILM, DEVICES[0], 2, Budget(120_000, None, 2 << 20))
    best, slack, eager = (solve(problem, name) for name in ("greedy", "greedy-slack", "greedy-no-slack"))
    assert best.proof.objective == max(slack.proof.objective, eager.proof.objective)
    assert slack.planner == "greedy-slack" and "with start slack" in slack.notes[0]


def test_when_its_time_is_up_it_has_tried_one_variant_that_fits():
    problem = problem_of(MINILM, DEVICES[0], 2, Budget(120_000, 12 << 20, None))
    best, first = greedy.solve(problem), greedy.solve(problem, until=0.0)
    assert best is not None and first is not None and first.proof.objective <= best.proof.objective
    check(first, problem, claim_of(first, problem))
    assert greedy.solve(replace(problem, budget=Budget(1, 1 << 20, None)), until=0.0) is None


@pytest.mark.parametrize("seed", range(3))
def test_where_memory_is_limited_the_first_variant_is_nearly_the_best(seed):
    problem = problem_of(BERT_BASE, DEVICES[seed], seed, Budget(400_000, 24 << 20), elastic=True)
    best, first = greedy.solve(problem), greedy.solve(problem, until=0.0)
    assert best is not None and first is not None
    assert first.proof.objective >= 0.95 * best.proof.objective


def test_preloading_is_from_the_bottom_in_slice_order():
    planes = (2, 3, 4, 5, 6, 8)  # a shard raised to full precision is no longer resident
    problem = problem_of(MINILM, DEVICES[0], 1, Budget(120_000, None, 1 << 20), bits=planes)
    plan = greedy.solve(problem)
    assert plan is not None
    held = [r > 0 for layer in plan.layers for r in layer.resident]
    assert held == sorted(held, reverse=True) and any(held)


def test_leaves_out_layers_of_least_presence():
    problem = problem_of(BERT_BASE, DEVICES[0], 1, Budget(150_000, None, 1 << 20), elastic=True)
    plan = greedy.solve(problem)
    assert plan is not None
    kept = [k for k, layer in enumerate(plan.layers) if layer.bits]
    width = len(plan.layers[kept[0]].bits)
    value = problem.presence[:, :width].sum(axis=1)
    assert 0 < len(kept) < 12
    assert min(value[kept]) >= max(v for k, v in enumerate(value) if k not in kept)


def with_path(problem):
    """A path that takes layers from the last to the first, each whole."""
    depth, width = problem.presence.shape
    order = tuple((k, s) for k in reversed(range(depth)) for s in range(width))
    return replace(problem, path=SubmodelPath(order, np.ones((depth, width))))


@pytest.mark.parametrize("name", ["greedy", "greedy-slack", "greedy-no-slack"])
def test_the_yardstick_does_not_know_the_path(name):
    problem = problem_of(MINILM, DEVICES[0], 1, Budget(70_000, None, 1 << 20), elastic=True)
    plain, along = (solve(p, name) for p in (problem, with_path(problem)))
    assert replace(along, proof=plain.proof, notes=plain.notes) == plain


def test_along_a_path_the_largest_submodel_in_time_is_kept():
    problem = with_path(problem_of(MINILM, DEVICES[0], 1, Budget(40_000, None, 1 << 20), elastic=True))
    plan = greedy.solve(problem)
    assert plan is not None
    widths = [len(layer.bits) for layer in plan.layers]
    whole = widths.count(MINILM.slices)
    assert 0 < whole < MINILM.layers and widths[-whole:] == [MINILM.slices] * whole and not any(widths[: -whole - 1])
    check(plan, problem, claim_of(plan, problem))


def test_nothing_fits():
    problem = problem_of(MINILM, DEVICES[0], 1, Budget(1000, None, 0))
    assert greedy.solve(problem) is None
    with pytest.raises(InfeasibleError, match="planner greedy"):
        solve(problem, "greedy")


def test_gains_that_disagree_with_slice_order_keep_prefixes():
    problem = problem_of(MINILM, DEVICES[0], 1, Budget(110_000, None, 1 << 20))
    reversed_gain = problem.gain[:, ::-1].copy()
    plan = greedy.solve(replace(problem, gain=reversed_gain))  # LayerPlan refuses bits that rise
    assert plan is not None
