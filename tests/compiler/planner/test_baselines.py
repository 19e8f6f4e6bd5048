"""Load-and-exec, the standard pipeline, everything resident."""

from dataclasses import replace

import pytest

from benchmarks.planner_study.synthetic import BERT_BASE, DEVICES, MINILM, problem_of
from stic.compiler.plan import Budget
from stic.compiler.planner import FIXED, PLANNERS, solve
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.simulate import check, simulate
from stic.runtime.errors import InfeasibleError, InputError


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("bits", [2, 6, 16])
def test_baselines_replay(name, bits):
    problem = problem_of(MINILM, DEVICES[1], 1, Budget())
    plan = solve(problem, name, bits)
    check(plan, problem, claim_of(plan, problem))
    assert plan.planner == name and plan.mean_bits == bits
    assert all(len(layer.bits) == MINILM.slices for layer in plan.layers)


def test_order_of_latency_and_memory():
    problem = problem_of(MINILM, DEVICES[0], 1, Budget())
    load, stream, held = (
        simulate(solve(problem, name, 6), problem) for name in ("load-and-exec", "pipeline", "preload")
    )
    assert held.latency_us < stream.latency_us < load.latency_us
    assert stream.peak_bytes < load.peak_bytes < held.peak_bytes
    assert held.io_bytes == 0 and held.stall_us == 0
    assert load.preload_bytes == stream.preload_bytes == 0


def test_elastic_models_keep_the_best_submodel_that_fits():
    free = problem_of(BERT_BASE, DEVICES[0], 1, Budget(), elastic=True)
    tight = replace(free, budget=Budget(200_000))
    plans = [solve(p, "pipeline", 2) for p in (free, tight)]
    shards = [sum(len(layer.bits) for layer in plan.layers) for plan in plans]
    assert 0 < shards[1] < shards[0] == 144
    assert len({len(layer.bits) for layer in plans[1].layers if layer.bits}) == 1
    check(plans[1], tight, claim_of(plans[1], tight))


def test_what_cannot_be():
    problem = problem_of(MINILM, DEVICES[0], 1, Budget(1000))
    with pytest.raises(InfeasibleError, match=r"pipeline at 4 bits needs [\d.]+ ms"):
        solve(problem, "pipeline", 4)
    with pytest.raises(InputError, match="asked for 7 bits"):
        solve(problem, "preload", 7)
    with pytest.raises(InputError, match="needs --bits"):
        solve(problem, "preload")
    with pytest.raises(InputError, match="does not take --bits"):
        solve(problem, "ilp", 4)
    with pytest.raises(InputError, match="choose one of"):
        solve(problem, "magic")
    assert PLANNERS[0] == "ilp"
