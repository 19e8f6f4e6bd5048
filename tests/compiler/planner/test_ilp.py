"""The integer program against brute force, greedy, and its own claims."""

import itertools
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.planner_study.synthetic import BERT_BASE, DEVICES, Geometry, problem_of
from stic.compiler.memory.check import verify_extents
from stic.compiler.memory.placement import place_extents
from stic.compiler.plan import Budget, SubmodelPath
from stic.compiler.planner import FIXED, PLANNERS, greedy, optimal, solve
from stic.compiler.planner.closed_form import CostTable, claim, claim_of, objective, within
from stic.compiler.simulate import check, simulate
from stic.runtime.errors import InfeasibleError
from stic.runtime.layout import Shape

SLOW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def tiny(seed, layers=2, slices=2, bits=(2, 4, 16), elastic=False, nested=True, budget=None, speed=0.05):
    geometry = Geometry("tiny", Shape.layer(128, slices, 1, 32, 128), layers, 200)
    device = replace(DEVICES[seed % 3], macs_per_s=DEVICES[seed % 3].macs_per_s * speed)
    return problem_of(geometry, device, seed, budget or Budget(), elastic, 16, bits, nested)


def along_path(problem, seed):
    """The elastic problem with a random path of submodels, whose values are its presence."""
    rng = np.random.default_rng(seed)
    layers, slices = problem.presence.shape
    taken = [0] * layers
    order = []
    for k in rng.permutation(np.repeat(np.arange(layers), slices)).tolist():
        order.append((k, taken[k]))
        taken[k] += 1
    value = problem.presence * rng.uniform(0.5, 2, problem.presence.shape)
    return replace(problem, path=SubmodelPath(tuple(order), value)).along_path


def prefixes(problem):
    """Widths by layer of the submodels on the problem's path."""
    layers = [k for k, _ in problem.path.order]
    return {tuple(layers[:n].count(k) for k in range(problem.store.blocks)) for n in range(1, len(layers) + 1)}


def narrower(problem, latency, memory):
    """The problem with this share of the latency of the whole model at the lowest bits, and memory as above."""
    budget = budget_between(problem, 0.5, memory)
    return replace(
        problem, budget=replace(budget, latency_us=int(latency * _uniform(problem, problem.bits[0]).latency_us))
    )


def widths_of(plan):
    return tuple(len(layer.bits) for layer in plan.layers)


def budget_between(problem, latency, memory, preload=None):
    """A budget at given shares of the way from the least to the most that any plan takes."""
    small, large = (_uniform(problem, bits) for bits in (problem.bits[0], problem.bits[-1]))
    latency_us = (
        None if latency is None else int(small.latency_us * 0.8 + latency * (large.latency_us - small.latency_us * 0.8))
    )
    low = problem.fixed_bytes
    memory_bytes = None if memory is None else int(low + memory * (large.peak_bytes - low))
    return Budget(latency_us, memory_bytes, preload)


def _uniform(problem, bits):
    table = CostTable(problem)
    width = problem.store.most_slices
    costs = [table.layer(k, (bits,) * width, (0,) * width) for k in range(problem.store.blocks)]
    return claim(problem, costs, False, problem.store.blocks)


def layer_choices(problem):
    """Every (bits, resident) that a layer may have."""
    width, nested = problem.store.most_slices, problem.store.nested
    widths = range(width + 1) if problem.elastic else [width]
    for m in widths:
        for bits in itertools.combinations_with_replacement(reversed(problem.bits), m):
            holds = [[r for r in ((0, *range(2, b + 1)) if nested and b <= 8 else (0, b))] for b in bits]
            for resident in itertools.product(*holds):
                parts = ([r for b, r in zip(bits, resident, strict=True) if (b > 8) == full] for full in (True, False))
                if all(list(part) == sorted(part, reverse=True) for part in parts):
                    yield bits, resident


def brute_force(problem):
    """The best objective over all plans that the program may choose from; None if none fits."""
    table = CostTable(problem)
    depth = problem.store.blocks
    choices = [[(c, table.layer(k, *c)) for c in layer_choices(problem)] for k in range(depth)]
    values = [[_value(problem, k, bits) for (bits, _), _ in options] for k, options in enumerate(choices)]
    nested = None if problem.path is None else prefixes(problem)
    best = None
    for picked in itertools.product(*(range(len(options)) for options in choices)):
        widths = tuple(len(choices[k][i][0][0]) for k, i in enumerate(picked))
        if not any(widths) or (nested is not None and widths not in nested):
            continue
        value = sum(values[k][i] for k, i in enumerate(picked))
        if best is not None and value <= best:
            continue
        costs = [choices[k][i][1] for k, i in enumerate(picked)]
        tables = (False, True) if problem.table_may_stay else (False,)
        settings_ = itertools.product(tables, {depth, 0, *(r for r in (1, 2) if r < depth - 1)})
        if any(within(problem, claim(problem, costs, held, ahead)) for held, ahead in settings_):
            best = value
    return best


def _value(problem, k, bits):
    total = sum(problem.gain[k, s, problem.bits.index(b)] for s, b in enumerate(bits))
    return total + (problem.presence[k, : len(bits)].sum() if problem.elastic else 0.0)


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("latency", "memory"), [(0.3, 0.3), (0.2, 0.6), (0.5, 0.15), (0.4, None), (0.25, 0.25)])
def test_brute_force_agrees(elastic, nested, latency, memory):
    for seed in range(3):
        bits = (2, 4, 16) if seed % 2 else (2, 3, 5)
        problem = tiny(seed, bits=bits, elastic=elastic, nested=nested)
        preload = None if seed else 20 << 10
        problem = replace(problem, budget=budget_between(problem, latency, memory, preload))
        truth = brute_force(problem)
        if truth is None:
            with pytest.raises(InfeasibleError):
                optimal.solve(problem, 20, 1, 0.0)
            continue
        plan = optimal.solve(problem, 20, 1, 0.0)
        assert plan.proof.status == "optimal"
        assert plan.proof.objective == pytest.approx(truth, rel=1e-5)
        check(plan, problem, claim_of(plan, problem))
        verify_extents(plan, problem.store, place_extents(plan, problem.store))


@pytest.mark.parametrize(("latency", "memory"), [(0.5, 0.15), (0.6, 0.6), (0.7, 0.15), (0.9, 0.3)])
def test_brute_force_agrees_along_a_path(latency, memory):
    found = []
    for seed in range(4):
        problem = along_path(tiny(seed, 3, 2, (2, 3) if seed % 2 else (2, 16), elastic=True), seed)
        problem = narrower(problem, latency, memory)
        truth = brute_force(problem)
        if truth is None:
            with pytest.raises(InfeasibleError):
                optimal.solve(problem, 20, 1, 0.0)
            continue
        plan = optimal.solve(problem, 20, 1, 0.0)
        assert plan.proof.status == "optimal" and plan.proof.objective == pytest.approx(truth, rel=1e-5)
        assert widths_of(plan) in prefixes(problem)
        check(plan, problem, claim_of(plan, problem))
        found.append(widths_of(plan))
    assert set(found) - {(2, 2, 2)}, "no budget made the model narrower"


@pytest.mark.parametrize("seed", range(4))
def test_never_below_the_greedy_plan_along_the_path(seed):
    problem = along_path(tiny(seed, 3, 3, (2, 4, 8), elastic=True), seed)
    problem = narrower(problem, 0.6 + 0.1 * seed, 0.3)
    start = greedy.solve(problem)
    assert start is not None and widths_of(start) in prefixes(problem)
    plan = solve(problem, "ilp", time_limit_s=5, workers=1)
    assert widths_of(plan) in prefixes(problem)
    assert start.proof.objective * (1 - 1e-6) <= plan.proof.objective <= plan.proof.bound
    check(plan, problem, claim_of(plan, problem))
    verify_extents(plan, problem.store, place_extents(plan, problem.store))


def test_a_large_program_keeps_to_the_path():
    problem = narrower(along_path(tiny(0, 6, 8, (2, 3, 4, 6, 8), elastic=True), 0), 0.5, None)
    plan = optimal.solve(problem, 20, 1, enough=0.02)
    assert widths_of(plan) in prefixes(problem) and sum(widths_of(plan)) < 48
    assert plan.proof.near_enough
    check(plan, problem, claim_of(plan, problem))


@pytest.mark.parametrize("kind", ["whole", "elastic", "along a path"])
def test_the_gap_that_ends_the_search_is_that_of_what_bits_are_worth(kind):
    problem = tiny(1, bits=(2, 4), elastic=kind != "whole")
    if kind == "along a path":
        problem = replace(problem, path=along_path(problem, 1).path)  # presence and the path's values differ
    plan = solve(replace(problem, budget=budget_between(problem, 0.5, None)), "ilp", workers=1, enough=0.25)
    bits, kept = problem.gain[..., -1].sum(), problem.presence.sum()
    kept = {"whole": 0, "elastic": kept, "along a path": problem.path and problem.path.value.sum()}[kind]
    assert plan.proof.gap_limit == pytest.approx(0.25 * bits / (bits + kept))


@SLOW
@given(st.integers(0, 50), st.booleans(), st.floats(0.1, 0.8), st.floats(0.1, 0.8))
def test_never_below_greedy_and_never_above_its_bound(seed, elastic, latency, memory):
    problem = tiny(seed, 3, 3, (2, 3, 4, 8), elastic)
    problem = replace(problem, budget=budget_between(problem, latency, memory))
    start = greedy.solve(problem)
    try:
        plan = optimal.solve(problem, 5, 1)
    except InfeasibleError:
        assert start is None
        return
    assert start is None or plan.proof.objective >= start.proof.objective * (1 - 1e-6)
    assert plan.proof.bound is not None and plan.proof.objective <= plan.proof.bound
    assert plan.proof.objective == pytest.approx(objective(plan.layers, problem))
    check(plan, problem, claim_of(plan, problem))
    verify_extents(plan, problem.store, place_extents(plan, problem.store))


@SLOW
@given(st.integers(0, 50), st.floats(0.2, 0.9), st.floats(0.2, 0.9), st.sampled_from(PLANNERS), st.floats(1, 100))
def test_no_planner_has_an_objective_above_the_bound_of_the_ilp(seed, latency, memory, planner, scale):
    """Although presence that is measured one layer at a time is on another scale than values along a path."""
    problem = tiny(seed, 3, 3, (2, 4), elastic=True)
    problem = replace(along_path(problem, seed), presence=scale * problem.presence)
    problem = replace(problem, budget=budget_between(problem, latency, memory))
    bits = 4 if planner in FIXED else None
    try:
        plan = solve(problem, planner, bits, workers=1)
    except InfeasibleError:
        return
    best = solve(problem, "ilp", workers=1)
    assert best.proof.bound is not None and plan.proof.objective <= best.proof.bound * (1 + 1e-6)
    if tuple(len(layer.bits) for layer in plan.layers) in prefixes(problem):
        assert plan.proof.objective == pytest.approx(objective(plan.layers, problem.along_path))
        assert not any("objective counts" in note for note in plan.notes)
    else:
        assert any("objective counts" in note for note in plan.notes)


@SLOW
@given(st.integers(0, 50), st.floats(0.15, 0.6), st.floats(0.15, 0.6), st.booleans())
def test_more_never_hurts(seed, latency, memory, elastic):
    problem = tiny(seed, 2, 3, (2, 3, 4), elastic)
    small = replace(problem, budget=budget_between(problem, latency, memory))
    try:
        base = optimal.solve(small, 10, 1, 0.0)
    except InfeasibleError:
        return
    b = small.budget
    assert b.latency_us is not None and b.memory_bytes is not None
    for larger in (replace(b, latency_us=b.latency_us * 5 // 4), replace(b, memory_bytes=b.memory_bytes * 5 // 4)):
        plan = optimal.solve(replace(problem, budget=larger), 10, 1, 0.0)
        assert plan.proof.objective >= base.proof.objective * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_of_an_infeasible_budget_are_enough(seed):
    problem = tiny(seed, 3, 2, (2, 4))
    roomy = replace(problem, budget=budget_between(problem, 0.1, 0.6))
    least = re.search(
        r"least memory at this latency is ([\d.]+) MiB",
        _refusal(replace(roomy, budget=replace(roomy.budget, memory_bytes=1 << 20))),
    )
    assert least is not None
    enough = replace(roomy.budget, memory_bytes=int(float(least[1]) * 2**20))
    optimal.solve(replace(roomy, budget=enough), 10, 1)
    message = _refusal(replace(roomy, budget=replace(enough, latency_us=10)))
    assert "no memory is enough at this latency" in message
    least = re.search(r"least latency at this memory is ([\d.]+) ms", message)
    assert least is not None
    optimal.solve(replace(roomy, budget=replace(enough, latency_us=round(float(least[1]) * 1000))), 10, 1)


@pytest.mark.parametrize("seed", range(2))
def test_the_figures_of_an_infeasible_budget_are_enough_for_a_submodel(seed):
    problem = along_path(tiny(seed, 3, 2, (2, 4), elastic=True), seed)
    tight = replace(problem, budget=replace(budget_between(problem, 0.3, 0.3), memory_bytes=problem.fixed_bytes))
    message = _refusal(tight)
    least = re.search(r"least memory at this latency is ([\d.]+) MiB", message)
    assert least is not None and "no latency is enough at this memory" in message
    enough = replace(tight.budget, memory_bytes=int(float(least[1]) * 2**20))
    assert widths_of(optimal.solve(replace(problem, budget=enough), 10, 1)) in prefixes(problem)
    message = _refusal(replace(problem, budget=replace(enough, latency_us=10)))
    least = re.search(r"least latency at this memory is ([\d.]+) ms", message)
    assert least is not None
    plan = optimal.solve(replace(problem, budget=replace(enough, latency_us=round(float(least[1]) * 1000))), 10, 1)
    assert widths_of(plan) in prefixes(problem)


def _refusal(problem):
    with pytest.raises(InfeasibleError) as error:
        optimal.solve(problem, 10, 1)
    return str(error.value)


@pytest.mark.parametrize("latency", [None, 0.4])
def test_what_is_left_open_is_made_small_after_quality(latency):
    problem = tiny(1, 3, 2, (2, 4, 8))
    problem = replace(problem, budget=budget_between(problem, latency, None))
    plan = optimal.solve(problem, 10, 1, 0.0)
    assert plan.proof.status == "optimal"
    timeline = check(plan, problem, claim_of(plan, problem))
    if latency is None:
        assert {b for layer in plan.layers for b in layer.bits} == {8}
    with pytest.raises(InfeasibleError):  # with less memory this quality cannot be had
        tight = replace(problem, budget=replace(problem.budget, memory_bytes=timeline.peak_bytes - 8192))
        best = optimal.solve(tight, 10, 1, 0.0)
        if best.proof.objective < plan.proof.objective * (1 - 1e-5):
            raise InfeasibleError("quality is lower")


def test_what_is_beyond_as_good_as_optimal_is_given_up_for_memory(monkeypatch):
    monkeypatch.setattr(greedy, "solve", lambda problem, until: None)  # its plan is a floor
    problem = tiny(1, 3, 2, (2, 4, 8))
    gain = np.array(problem.gain)
    gain[:, :, 2] = gain[:, :, 1] * (1 + 5e-5)
    problem = replace(problem, gain=gain, budget=Budget())
    for gap_limit, bits in ((0.0, 8), (1e-4, 4)):
        plan = optimal.solve(problem, 10, 1, gap_limit)
        assert plan.proof.status == "optimal" and plan.proof.gap <= gap_limit + 1e-12  # a bound may be rounded
        assert {b for layer in plan.layers for b in layer.bits} == {bits}


def test_margin_is_kept():
    problem = tiny(1, 3, 3, (2, 4, 8))
    problem = replace(problem, budget=budget_between(problem, 0.5, 0.5), margin=0.1)
    plan = optimal.solve(problem, 5, 1)
    assert plan.margin == 0.1
    assert simulate(plan, problem).latency_us <= 0.9 * problem.budget.latency_us + 1e-3


def test_gains_may_fall():
    problem = tiny(2, 2, 2, (2, 3, 4))
    gain = np.array(problem.gain)
    gain[:, :, 1] = -1
    problem = replace(problem, gain=gain, budget=budget_between(problem, 0.8, 0.8))
    plan = optimal.solve(problem, 10, 1, 0.0)
    assert all(b != 3 for layer in plan.layers for b in layer.bits)


@pytest.mark.parametrize(
    ("budget", "elastic"), [(Budget(150_000, 25 << 20), False), (Budget(200_000, None, 1 << 20), True)]
)
def test_bert_base(budget, elastic):
    problem = problem_of(BERT_BASE, DEVICES[1 - elastic], 1, budget, elastic)
    plan = optimal.solve(problem, 8, 2)
    start = greedy.solve(problem)
    assert start is not None and plan.proof.objective >= start.proof.objective
    assert plan.proof.gap is not None and plan.proof.gap < 0.1  # benchmarks/planner_study: on an idle machine
    check(plan, problem, claim_of(plan, problem))
    verify_extents(plan, problem.store, place_extents(plan, problem.store))


def test_planning_leaves_ctrl_c_to_python() -> None:
    handler = signal.getsignal(signal.SIGINT)
    problem = tiny(1)
    optimal.solve(replace(problem, budget=budget_between(problem, 0.5, None)), 2.0, 2)
    assert signal.getsignal(signal.SIGINT) is handler


def test_near_enough_ends_the_search():
    problem = tiny(0, 6, 12, (2, 3, 4, 5, 6, 8), budget=None)
    problem = replace(problem, budget=budget_between(problem, 0.3, 0.3))
    start = greedy.solve(problem)
    plan = optimal.solve(problem, 60, 1, enough=0.05)
    assert plan.proof.near_enough and plan.proof.gap_limit == 0.05
    assert start is None or plan.proof.objective >= start.proof.objective * (1 - 1e-6)
    check(plan, problem, claim_of(plan, problem))
