"""What the search does between the first plan and the last bound."""

import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.planner_study.synthetic import DEVICES, Geometry, problem_of
from stic.compiler.plan import Budget, SubmodelPath
from stic.compiler.planner import greedy, optimal
from stic.compiler.planner.branch import roots
from stic.compiler.planner.closed_form import CostTable, claim, claim_of, objective
from stic.compiler.planner.search import Search
from stic.compiler.simulate import check
from stic.runtime.layout import Shape

GEOMETRY = Geometry("small", Shape.layer(128, 12, 1, 32, 128), 6, 200)
BITS = (2, 3, 4, 5, 6, 8)


def small(memory_bytes=None, preload_bytes=None):
    """A problem at one and a half times the latency of everything at 2 bits, and half the memory unless it is given."""
    device = replace(DEVICES[0], macs_per_s=2e9)
    problem = problem_of(GEOMETRY, device, 0, Budget(), False, 16, BITS)
    table = CostTable(problem)
    low, high = (
        claim(problem, [table.layer(k, (b,) * 12, (0,) * 12) for k in range(6)], False, 1) for b in (BITS[0], BITS[-1])
    )
    if preload_bytes is None and memory_bytes is None:
        memory_bytes = (low.peak_bytes + high.peak_bytes) // 2
    return replace(problem, budget=Budget(int(1.5 * low.latency_us), memory_bytes, preload_bytes))


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_tells_objective_and_bound_as_they_change(workers):
    problem = small()
    heard = []
    plan = optimal.solve(problem, 60, workers, enough=0.02, progress=lambda *now: heard.append(now))
    seconds, values, bounds = (list(column) for column in zip(*heard, strict=True))
    assert seconds == sorted(seconds)
    assert values == sorted(values) and bounds == sorted(bounds, reverse=True)
    assert len({now[1:] for now in heard}) == len(heard) > 1
    assert values[0] == pytest.approx(greedy.solve(problem).proof.objective)
    assert (values[-1], bounds[-1]) == pytest.approx((plan.proof.objective, plan.proof.bound))


def test_the_cover_bounds_every_branch():
    branches, cover = roots(small(), "quality", None)
    bounds = [b.relaxer.solve(b.fixed(), 20).bound for b in branches]
    known = [bound for bound in bounds if bound is not None]
    assert len(known) > 1 and cover is not None
    assert cover.solve({}, 20).bound >= max(known) * (1 - 1e-6)


def test_one_relaxation_rules_out_a_memory_that_is_too_small_for_any_plan():
    problem = small()
    found = Search(replace(problem, budget=replace(problem.budget, memory_bytes=problem.fixed_bytes)), "quality")
    branches, cover = roots(found.problem, "quality", None)
    assert len(branches) > 1 and cover is not None and cover.solve({}, 20).infeasible
    answer = found.run(time.perf_counter() + 60)
    assert answer.plan is None and answer.proved


def test_memory_that_was_left_open_starts_from_every_read_ahead():
    problem = small(preload_bytes=0)
    start = greedy.solve(problem)
    assert start is not None and start.read_ahead == 6
    search = Search(problem, "memory", start=start, floor=start.proof.objective)
    assert search.best is not None and search.best.layers == start.layers and search.best.read_ahead < 6
    assert claim_of(search.best, problem).peak_bytes < claim_of(start, problem).peak_bytes
    check(search.best, problem, claim_of(search.best, problem))


def test_what_was_left_open_takes_no_longer_than_quality_or_a_few_seconds(monkeypatch):
    monkeypatch.setattr(optimal, "OPEN_S", 0.0)
    problem = small(preload_bytes=20 << 10)
    ends = []
    run = Search.run

    def watched(search, deadline):
        ends.append((search.aim, deadline))
        return run(search, deadline)

    monkeypatch.setattr(Search, "run", watched)
    plan = optimal.solve(problem, 1000, 2, enough=0.05)
    (_, first), (aim, second) = ends
    assert aim == "memory" and second < first
    assert plan.proof.objective == pytest.approx(objective(plan.layers, problem))


def test_relaxed_submodels_are_cut_between_two_of_them():
    """A relaxation keeps a part of a shard with all of its bits; no branch may keep it after the cut."""
    problem = small(preload_bytes=0)
    order = tuple(np.ndindex(6, 12))
    value = np.linspace(2, 1, 72).reshape(6, 12) * problem.gain.max()
    path = SubmodelPath(order, value)
    budget = replace(problem.budget, latency_us=problem.budget.latency_us // 2)
    problem = replace(problem, elastic=True, path=path, presence=value, budget=budget)
    (root,), _ = roots(problem, "quality", None)
    found = root.relaxer.solve(root.fixed(), 20)
    assert found.values is not None and found.bound is not None
    root.relaxed = found.values
    fewer, more = root.cut()
    assert (fewer.least, more.most) == (root.least, root.most) and more.least == fewer.most + 1
    bounds = [b.relaxer.solve(b.fixed(), 20).bound for b in (fewer, more)]
    assert max(bound for bound in bounds if bound is not None) < found.bound * (1 - 1e-6)
    plan = optimal.solve(problem, 60, 2, 0.0)
    kept = [k for k, _ in order[: sum(len(layer.bits) for layer in plan.layers)]]
    assert [len(layer.bits) for layer in plan.layers] == [kept.count(k) for k in range(6)]
    assert plan.proof.gap is not None and plan.proof.gap < 1e-4
