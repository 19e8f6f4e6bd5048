"""Several budgets planned as one family: what is kept, what is left out, and what all plans share."""

from dataclasses import replace

import pytest

from stic.compiler.plan import Budget, Plan, Problem
from stic.compiler.planner import greedy, solve
from stic.compiler.planner.closed_form import claim_of, within
from stic.compiler.planner.family import Family, plan_family, words
from stic.compiler.planner.synthetic import DEVICES, Geometry, problem_of
from stic.runtime.errors import InfeasibleError, InputError
from stic.runtime.format import Shape

GEOMETRY = Geometry("tiny", Shape(128, 1, 32, 128), 4, 4, 2000)


def problem(memory_bytes: int | None = None, latency_us: int | None = None, vocabulary: int = 2000) -> Problem:
    device = replace(DEVICES[0], macs_per_s=DEVICES[0].macs_per_s * 0.05)
    budget = Budget(latency_us, memory_bytes)
    return problem_of(replace(GEOMETRY, vocabulary=vocabulary), device, 1, budget, length=16, bits=(2, 4, 8))


def planned(p: Problem) -> Plan:
    plan = solve(p, "greedy")
    return replace(plan, proof=replace(plan.proof, solve_seconds=0.0))


def roomy(p: Problem) -> int:
    """Memory with which everything is resident, the word table included."""
    return p.fixed_bytes + p.store.total_bytes + p.table_bytes + (1 << 16)


def family(p: Problem, *also: Budget) -> Family:
    found = plan_family(p, also, planned)
    assert all(within(replace(p, budget=plan.budget), claim_of(plan, p)) for plan in found.plans)
    assert len({plan.table_resident for plan in found.plans}) == 1
    return found


def test_without_further_budgets_it_is_the_plan() -> None:
    p = problem(memory_bytes=roomy(problem()))
    assert family(p) == Family((planned(p),), ())
    assert family(p, p.budget) == Family((planned(p),), ())


def test_each_budget_has_its_plan_and_the_default_is_first() -> None:
    p = problem()
    sizes = [p.fixed_bytes + (p.store.total_bytes >> shift) for shift in (1, 2, 3)]
    budgets = [Budget(1_000_000, size) for size in sizes]
    found = family(replace(p, budget=budgets[1]), budgets[0], budgets[2])
    assert [plan.budget for plan in found.plans] == [budgets[1], budgets[0], budgets[2]]
    assert found.plans[1].proof.objective >= found.plans[0].proof.objective >= found.plans[2].proof.objective


def test_a_budget_that_nothing_meets_is_left_out_with_the_sentence() -> None:
    p = problem(memory_bytes=roomy(problem()))
    found = family(p, replace(p.budget, latency_us=1))
    assert found.plans == (planned(p),)
    assert len(found.notes) == 1 and "no plan for 1us," in found.notes[0] and "finds no plan" in found.notes[0]


def test_where_nothing_meets_the_main_budget_there_is_no_family() -> None:
    p = problem(memory_bytes=1)
    with pytest.raises(InfeasibleError):
        plan_family(p, [Budget(None, roomy(p))], planned)


@pytest.mark.parametrize(("main_us", "also_us"), [(900_000, 800_000), (800_000, 900_000)])
def test_equal_plans_are_kept_once_for_the_tightest_deadline(main_us: int, also_us: int) -> None:
    p = problem(roomy(problem()), main_us)
    found = family(p, replace(p.budget, latency_us=also_us))
    assert [plan.budget.latency_us for plan in found.plans] == [800_000]
    assert len(found.notes) == 1 and "is that for" in found.notes[0]


def test_a_plan_without_a_deadline_promises_no_less_than_one_with() -> None:
    p = problem(roomy(problem()))
    found = family(p, replace(p.budget, latency_us=900_000))
    assert [plan.budget.latency_us for plan in found.plans] == [None]


def test_the_word_table_stays_under_all_plans_or_none() -> None:
    p = problem(memory_bytes=roomy(problem()))
    assert planned(p).table_resident
    found = family(p, Budget(None, p.fixed_bytes + p.store.total_bytes // 4))
    assert len(found.plans) == 2 and not found.plans[0].table_resident
    assert any("read by row under every plan" in note for note in found.notes)
    both = family(p, Budget(900_000, roomy(p)), Budget(None, roomy(p) + (1 << 20)))
    assert all(plan.table_resident for plan in both.plans)


def test_a_default_that_needs_the_word_table_keeps_it() -> None:
    p = problem(memory_bytes=roomy(problem()))
    held = claim_of(planned(p), p).latency_us
    rows = greedy.solve(replace(p, budget=Budget(None, roomy(p)), table_streamed=True))
    assert rows is not None and claim_of(rows, p).latency_us > held
    p = replace(p, budget=replace(p.budget, latency_us=int(held) + 1))
    found = family(p, Budget(None, p.fixed_bytes + p.store.total_bytes // 4))
    assert [plan.budget for plan in found.plans] == [p.budget] and found.plans[0].table_resident
    assert len(found.notes) == 1 and "does not hold the word table" in found.notes[0]


def test_a_further_budget_that_needs_the_word_table_is_left_out() -> None:
    p = problem(memory_bytes=roomy(problem()))
    held = claim_of(planned(p), p).latency_us
    small = replace(p, budget=Budget(None, p.fixed_bytes + p.store.total_bytes // 4))
    found = family(small, Budget(int(held) + 1, roomy(p)))
    assert [plan.budget for plan in found.plans] == [small.budget]
    assert any("without holding the word table" in note for note in found.notes)


def test_layers_on_a_gpu_are_refused() -> None:
    p = problem(memory_bytes=roomy(problem()))
    on_gpu = replace(planned(p), layers=tuple(replace(layer, place="gpu") for layer in planned(p).layers))
    with pytest.raises(InputError, match="--place cpu"):
        plan_family(p, [Budget(900_000, roomy(p))], lambda _: on_gpu)
    assert plan_family(p, [], lambda _: on_gpu).plans == (on_gpu,)


def test_budgets_are_written_as_they_are_given() -> None:
    assert words(Budget(40_000, 4 << 20)) == "40ms,4MiB"
    assert words(Budget(40_000)) == "40ms," and words(Budget(None, 4 << 20)) == ",4MiB"


@pytest.mark.parametrize("planner", ["ilp", "greedy"])
def test_planners_leave_a_table_out_that_may_not_stay(planner: str) -> None:
    p = problem(memory_bytes=roomy(problem()))
    assert solve(p, planner).table_resident and not solve(replace(p, table_streamed=True), planner).table_resident
