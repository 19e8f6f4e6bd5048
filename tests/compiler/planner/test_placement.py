"""Layers on the CPU and on a GPU: shortest paths against all placements, plans against their replay."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner_study.synthetic import DEVICES, Geometry, problem_of
from stic.compiler.plan import Budget, ComputeCost, LayerPlan, Plan, Problem, Proof
from stic.compiler.planner import placement, solve
from stic.compiler.planner.closed_form import CostTable, busy, claim_of, objective, within
from stic.compiler.planner.placement import best_places
from stic.compiler.simulate import ReplayError, check, simulate
from stic.runtime.errors import InfeasibleError
from stic.runtime.format import BLOCK
from stic.runtime.layout import Shape

TINY = Geometry("tiny", Shape.layer(64, 3, 1, 16, 64), 4, 500)
BITS = (2, 4, 8, 16)
GPU_BYTES = 100 * BLOCK
DEVICE = replace(DEVICES[2], macs_per_s=2e9)  # storage that rarely makes compute wait
PLACES = st.sampled_from(("cpu", "gpu"))


def problem(elastic=False, hand_over_us=40.0, gpu=0.5):
    """A small problem whose GPU takes `gpu` times as long as the CPU."""
    p = problem_of(TINY, DEVICE, 1, Budget(), elastic, length=32, bits=BITS)
    cost = p.compute
    there = ComputeCost((cost.layer.scaled(gpu),), gpu * cost.embed_us, cost.head_us)
    return replace(p, gpu=there, hand_over_us=hand_over_us, gpu_bytes=GPU_BYTES)


def with_slices(p, slice_us):
    """The problem with other times of slices on the GPU."""
    return replace(p, gpu=replace(p.gpu, blocks=(replace(p.gpu.layer, slice_us=slice_us),)))


@st.composite
def layers_of(draw, depth=4):
    """Kept bits of each layer; some are left out."""
    rows = st.lists(st.sampled_from(BITS), max_size=3).map(lambda bits: tuple(sorted(bits, reverse=True)))
    return tuple(draw(rows) for _ in range(depth))


def plan_of(layers, places, read_ahead=1, overlap=True, resident=False):
    decided = tuple(
        LayerPlan(bits, bits if resident else (0,) * len(bits), place if bits else "cpu")
        for bits, place in zip(layers, places, strict=True)
    )
    proof = Proof("heuristic", 0.0, None, 0.0)
    return Plan("test", decided, False, read_ahead, overlap, Budget(), 0.0, proof)


def compute_us(p, layers, places):
    """Embedding, layers, hand-overs and head of a placement."""
    table = CostTable(p)
    pairs = enumerate(zip(layers, places, strict=True))
    costs = [table.layer(k, bits, (0,) * len(bits), place) for k, (bits, place) in pairs]
    return busy(p, costs).total_us


@settings(max_examples=150, deadline=None)
@given(layers_of(), st.tuples(*[PLACES] * 4), st.integers(0, 4), st.booleans(), st.booleans())
def test_replay_equals_the_closed_form(layers, places, read_ahead, overlap, resident):
    p, plan = problem(), plan_of(layers, places, read_ahead, overlap, resident)
    timeline = check(plan, p, claim_of(plan, p))
    used = [place for bits, place in zip(layers, places, strict=True) if bits]
    table = [e.place for e in timeline.events if e.kind == "compute"]
    assert table == [(used or ["cpu"])[0], *used, "cpu"]
    base = replace(plan, layers=tuple(replace(layer, place="cpu") for layer in plan.layers))
    assert timeline.peak_bytes - simulate(base, p).peak_bytes == (GPU_BYTES if "gpu" in used else 0)


@pytest.mark.parametrize(("places", "hand_overs"), [("cccc", 0), ("gggg", 1), ("cgcc", 2), ("gcgc", 3), ("ccgg", 2)])
def test_every_change_of_place_costs_a_hand_over(places, hand_overs):
    named = tuple({"c": "cpu", "g": "gpu"}[c] for c in places)
    layers = ((4, 4, 4),) * 4
    near, far = (compute_us(problem(hand_over_us=us), layers, named) for us in (0.0, 1000.0))
    assert far - near == pytest.approx(1000 * hand_overs)


@settings(max_examples=150, deadline=None)
@given(layers_of(), st.floats(0.2, 3.0), st.sampled_from((0.0, 5.0, 60.0, 5000.0)), st.dictionaries(
    st.sampled_from(BITS), st.floats(0.1, 4.0)))  # fmt: skip
def test_shortest_paths_are_the_best_of_all_placements(layers, gpu, hand_over_us, odd):
    p = problem(gpu=gpu, hand_over_us=hand_over_us)
    assert p.gpu is not None
    p = with_slices(p, {b: us * odd.get(b, 1.0) for b, us in p.gpu.layer.slice_us.items()})
    found = best_places(p, layers)
    assert len(found) == len(layers)
    least = min(compute_us(p, layers, places) for places in product(("cpu", "gpu"), repeat=len(layers)))
    assert compute_us(p, layers, found) == pytest.approx(least)


def budget_between(p, share):
    """A latency between the fastest and the slowest uniform plan on the CPU."""
    times = [claim_of(plan_of(((b,) * 3,) * 4, ("cpu",) * 4), p).latency_us for b in (2, 16)]
    return Budget(int(times[0] + share * (times[1] - times[0])))


@pytest.mark.parametrize("planner", ["ilp", "greedy", "pipeline"])
@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("places", [("gpu",) * 4, ("cpu", "gpu", "gpu", "cpu"), ("gpu", "cpu", "gpu", "cpu")])
def test_planners_take_a_placement_as_given(planner, elastic, places):
    p = problem(elastic=elastic)
    p = replace(p, budget=replace(budget_between(p, 0.5), memory_bytes=p.fixed_bytes + GPU_BYTES + (1 << 20)))
    p = replace(p, places=places)
    plan = solve(p, planner, 4 if planner == "pipeline" else None, 3.0)
    check(plan, p, claim_of(plan, p))
    assert all(layer.place == place for layer, place in zip(plan.layers, places, strict=True) if layer.bits)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 50), st.tuples(*[PLACES] * 2), st.floats(0.2, 1.5), st.sampled_from((0.0, 300.0, 3000.0)))
def test_an_elastic_model_s_optimum_is_that_of_all_plans(seed, places, gpu, hand_over_us):
    """Left-out layers change which hand-overs there are: the program must count those of the layers kept."""
    tiny = Geometry("two", Shape.layer(64, 2, 1, 16, 64), 2, 500)
    p = problem_of(tiny, DEVICE, seed, Budget(), True, length=32, bits=(2, 8))
    cost = p.compute
    there = ComputeCost((cost.layer.scaled(gpu),), gpu * cost.embed_us, cost.head_us)
    p = replace(p, gpu=there, hand_over_us=hand_over_us, gpu_bytes=GPU_BYTES, places=places)
    layers = [(), (2,), (8,), (2, 2), (8, 2), (8, 8)]
    plans = [
        plan_of(pair, places, read_ahead=2, resident=resident)
        for pair in product(layers, repeat=2)
        for resident in (False, True)
        if any(pair)
    ]
    middle = sorted(claim_of(plan, p).latency_us for plan in plans)[len(plans) // 2]
    p = replace(p, budget=Budget(int(middle), p.fixed_bytes + GPU_BYTES + p.store.total_bytes))
    best = max(objective(plan.layers, p) for plan in plans if within(p, claim_of(plan, p)))
    found = solve(p, "ilp", time_limit_s=5.0)
    check(found, p, claim_of(found, p))
    assert found.proof.objective >= best - 1e-6 * abs(best)
    assert found.proof.bound is not None and found.proof.bound >= best - 1e-6 * abs(best)


def test_a_faster_gpu_gets_the_layers_and_a_slower_one_none():
    fast, slow = problem(gpu=0.2), problem(gpu=2.0)
    budget = budget_between(fast, 0.2)
    on_gpu, on_cpu = (solve(replace(p, budget=budget), "greedy") for p in (fast, slow))
    assert {layer.place for layer in on_gpu.layers} == {"gpu"} and {layer.place for layer in on_cpu.layers} == {"cpu"}
    assert on_gpu.proof.objective > on_cpu.proof.objective
    assert any("every layer on the GPU" in note for note in on_gpu.notes)
    assert any("nothing is faster there" in note for note in on_cpu.notes)


def test_layers_are_split_where_bits_decide_it():
    """Full precision is fast on this GPU, everything else is not: a plan of both is best in both places."""
    p = problem(hand_over_us=1.0)
    assert p.gpu is not None
    p = with_slices(p, {b: us * (0.1 if b > 8 else 8) for b, us in p.compute.layer.slice_us.items()})
    assert best_places(p, ((16, 16, 16), (16, 16, 16), (2, 2, 2), (2, 2, 2))) == ("gpu", "gpu", "cpu", "cpu")
    budget = budget_between(p, 0.5)
    plan = solve(replace(p, budget=budget), "ilp", time_limit_s=8.0)
    check(plan, replace(p, budget=budget), claim_of(plan, p))
    for place in ("cpu", "gpu"):
        forced = solve(replace(p, budget=budget, places=(place,) * 4), "ilp", time_limit_s=4.0)
        assert plan.proof.objective >= forced.proof.objective * (1 - 1e-6)


def test_memory_for_the_gpu_keeps_layers_off_it():
    p = problem(gpu=0.2)
    room = p.fixed_bytes + p.store.total_bytes + p.table_bytes
    tight = replace(p, gpu_bytes=room, budget=Budget(None, room))
    plan = solve(tight, "greedy")
    assert not plan.on_gpu and check(plan, tight, claim_of(plan, tight))
    assert solve(replace(tight, gpu_bytes=0), "greedy").on_gpu


def test_where_nothing_fits_both_places_are_named():
    p = replace(problem(), budget=Budget(1))
    with pytest.raises(InfeasibleError, match=r"on the CPU: .*; on the GPU: "):
        solve(p, "greedy")


def test_places_need_costs_and_one_for_each_layer():
    p = problem()
    with pytest.raises(ValueError, match="3 places for 4 blocks"):
        replace(p, places=("cpu",) * 3)
    with pytest.raises(ValueError, match="it has no costs"):
        replace(p, gpu=None, places=("gpu",) * 4)
    with pytest.raises(ValueError, match="it has no costs"):
        simulate(plan_of(((4,),) * 4, ("gpu",) * 4), replace(p, gpu=None))


def test_a_claim_that_forgets_a_hand_over_is_refused():
    p, plan = problem(), plan_of(((4,),) * 4, ("cpu", "gpu", "cpu", "cpu"), resident=True)
    short = claim_of(plan, replace(p, hand_over_us=0.0))
    with pytest.raises(ReplayError, match="its replay takes"):
        check(plan, p, short)


def test_the_time_limit_is_shared_by_the_placements():
    p, limits = problem(), []

    def note(asked: Problem, seconds: float) -> Plan:
        limits.append(seconds)
        return solve(asked, "greedy")

    placement.solve(p, note, 8.0)
    assert len(limits) >= 2 and limits[0] <= 2.0 and sum(limits[:1]) <= 8.0
