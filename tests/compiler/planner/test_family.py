"""Several budgets planned as one family: what is kept, what is left out, and what all plans share."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner_study.synthetic import DEVICES, Geometry, problem_of
from stic.compiler.plan import Budget, LayerPlan, Plan, Problem
from stic.compiler.planner import greedy, solve
from stic.compiler.planner.closed_form import claim_of, within
from stic.compiler.planner.family import Family, plan_family, words
from stic.runtime.errors import InfeasibleError, InputError
from stic.runtime.layout import Shape

GEOMETRY = Geometry("tiny", Shape.layer(128, 4, 1, 32, 128), 4, 2000)


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


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_plan_of_a_family_that_meets_the_main_budget_beats_its_default(data: st.DataObject) -> None:
    """With a planner that does not always find the best plan, as none does, and trials that judge otherwise."""
    tried = data.draw(st.booleans(), label="tried")
    shares = st.floats(0.3, 1.0)

    def careless(asked: Problem) -> Plan:
        memory = asked.budget.memory_bytes
        assert memory is not None
        less = asked.fixed_bytes + round((memory - asked.fixed_bytes) * data.draw(shares))
        plan = replace(planned(replace(asked, budget=replace(asked.budget, memory_bytes=less))), budget=asked.budget)
        bound = max(plan.proof.objective, 1e-6) * data.draw(st.floats(1.0, 1.2))
        status = data.draw(st.sampled_from(["optimal", "feasible", "heuristic"]))
        proof = replace(plan.proof, status=status, bound=None if status == "heuristic" else bound)
        return replace(plan, proof=proof, loss=data.draw(st.floats(0.0, 1.0)) if tried else None)

    p = problem()
    sizes = st.integers(p.fixed_bytes + p.store.total_bytes // 8, p.fixed_bytes + p.store.total_bytes)
    budgets = data.draw(st.lists(st.builds(Budget, st.integers(800_000, 2_000_000), sizes), min_size=2, max_size=4))
    p = replace(p, budget=budgets[0])
    found = family(p, *budgets[1:])
    default, *others = found.plans
    assert within(p, claim_of(default, p)) and default.budget.memory_bytes == p.budget.memory_bytes
    assert all(plan.quality <= default.quality for plan in others if within(p, claim_of(plan, p)))
    assert default.proof.bound is None or default.proof.bound >= default.proof.objective


def test_a_better_plan_for_a_tighter_budget_becomes_the_default_and_says_so() -> None:
    p = problem(memory_bytes=roomy(problem()))
    main, tight = Budget(900_000, p.fixed_bytes + p.store.total_bytes), Budget(800_000, p.fixed_bytes + (1 << 18))
    p = replace(p, budget=main)

    def stuck(asked: Problem) -> Plan:
        plan = planned(replace(asked, budget=tight))
        loss, status = (0.5, "optimal") if asked.budget == main else (0.2, "feasible")
        if asked.budget == main:
            plan = replace(plan, layers=tuple(LayerPlan((2,) * len(k.bits), (0,) * len(k.bits)) for k in plan.layers))
        proof = replace(plan.proof, status=status, bound=plan.proof.objective + 1)
        return replace(plan, budget=asked.budget, loss=loss, proof=proof)

    found = plan_family(p, [tight], stuck)
    assert [plan.loss for plan in found.plans] == [0.2] and found.plans[0].budget.memory_bytes == main.memory_bytes
    assert any("better than the one made for" in note for note in found.plans[0].notes)
    assert found.plans[0].layers == stuck(replace(p, budget=tight)).layers


@pytest.mark.parametrize("planner", ["ilp", "greedy"])
def test_planners_leave_a_table_out_that_may_not_stay(planner: str) -> None:
    p = problem(memory_bytes=roomy(problem()))
    assert solve(p, planner).table_resident and not solve(replace(p, table_streamed=True), planner).table_resident
