"""Plan families: plans of one model for several budgets, which a session of one package switches between.

The plans share everything but their decisions: store, trunk, and whether the word embedding table stays in memory. The
index of the package holds tables for each of them, which `Problem.fixed_bytes` counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stic.compiler.memory.placement import Placement, place_extents
from stic.compiler.options import ONE_ON_GPU
from stic.compiler.plan import Budget, LayerPlan, Plan, Problem, Proof
from stic.compiler.planner.closed_form import claim_of, within
from stic.compiler.quantities import format_time, quote_bytes, quote_time
from stic.compiler.store import Store
from stic.runtime.errors import InfeasibleError, InputError

Solve = Callable[[Problem], Plan]


@dataclass(frozen=True)
class Family:
    """Plans of one problem under several budgets."""

    plans: tuple[Plan, ...]  # first the default; no two do the same
    notes: tuple[str, ...]  # what was left out or changed, for people


def plan_family(
    problem: Problem,
    also: Sequence[Budget],
    solve: Solve,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Family:
    """Plan `problem` for its own budget, the default, and for each of `also`; `solve` is a planner.

    A budget of `also` that nothing meets is left out with a note. Plans that do the same are kept once, for the
    tightest of their deadlines. Where only some plans would hold the word table, none does. No plan that meets the
    problem's own budget is better than the default: one that was made for another budget takes its place if it is.

    Raises InfeasibleError where nothing meets the problem's own budget, InputError where a family would have layers on
    the GPU.
    """
    asked = tuple(dict.fromkeys((problem.budget, *also)))
    plans: list[Plan] = []
    notes: list[str] = []
    for number, budget in enumerate(asked):
        if len(asked) > 1:
            progress(number, len(asked))
        try:
            plan = solve(replace(problem, budget=budget))
        except InfeasibleError as error:
            if not plans:
                raise
            notes.append(f"there is no plan for {words(budget)}: {error}")
            continue
        if plan.on_gpu and len(asked) > 1:
            raise InputError(ONE_ON_GPU)
        plans.append(plan)
    if len({plan.table_resident for plan in plans}) > 1:
        plans = _one_table(problem, plans, solve, notes)
    plans[0] = _best_within(problem, plans)
    return Family(_distinct(plans, problem.store, notes), tuple(notes))


def _best_within(problem: Problem, plans: Sequence[Plan]) -> Plan:
    """The best of `plans` that meets the problem's own budget, as a plan for it; the first where none is better.

    A planner that stops early, or adds up gains that a trial does not confirm, can do better for a tighter budget than
    for a looser one. The bound stays that of the plan made for this budget: it covers all that meet it.
    """
    first = plans[0]
    others = [plan for plan in plans[1:] if within(problem, claim_of(plan, problem))]
    best = max((first, *others), key=lambda plan: plan.quality)
    if best is first:
        return first
    note = f"this is the plan for {words(best.budget)}, which is better than the one made for {words(first.budget)}"
    return replace(best, budget=first.budget, proof=_proof_of(best, first.proof), notes=(*best.notes, note))


def _proof_of(plan: Plan, known: Proof) -> Proof:
    """What `known`, the proof of another plan for the same budget, says of a plan."""
    value = plan.proof.objective
    if known.bound is None:
        return replace(known, objective=value)
    proof = replace(known, objective=value, bound=max(known.bound, value))
    if value < known.objective:  # it lost less in a trial, so its distance is not what ended the search
        proof = replace(proof, status="feasible")
    return replace(proof, gap_limit=max(known.gap_limit, proof.gap or 0.0))


def words(budget: Budget) -> str:
    """A budget as `--also` takes it: `40ms,4MiB`; what is left open is empty."""
    latency = "" if budget.latency_us is None else quote_time(budget.latency_us)
    memory = "" if budget.memory_bytes is None else quote_bytes(budget.memory_bytes)
    return f"{latency},{memory}"


def _one_table(problem: Problem, plans: Sequence[Plan], solve: Solve, notes: list[str]) -> list[Plan]:
    """Plans of which none holds the word table; or, where the default cannot do without it, those that hold it.

    A plan that reads the table by row although it might have held it stays the best one, and its bound stays true.
    """
    streamed = replace(problem, table_streamed=True)
    found: list[Plan] = []
    lost: list[str] = []
    for plan in plans:
        try:
            found.append(solve(replace(streamed, budget=plan.budget)) if plan.table_resident else plan)
        except InfeasibleError as error:
            if not found:
                notes += [
                    f"the plan for {words(other.budget)} is left out: it does not hold the word table, as that for"
                    f" {words(plan.budget)} has to"
                    for other in plans
                    if not other.table_resident
                ]
                return [other for other in plans if other.table_resident]
            lost.append(f"there is no plan for {words(plan.budget)} without holding the word table: {error}")
    note = "the word table is read by row under every plan, since not all of them can hold it"
    if plans[0].table_resident:
        after, before = (format_time(claim_of(plan, problem).latency_us) for plan in (found[0], plans[0]))
        note += f": that for {words(problem.budget)} takes {after} instead of {before}"
    notes += [note, *lost]
    return found


def _distinct(plans: Sequence[Plan], store: Store, notes: list[str]) -> tuple[Plan, ...]:
    """The plans that differ in what an engine does, each for the tightest deadline that it was made for."""
    groups: dict[tuple[tuple[LayerPlan, ...], bool, Placement], list[Plan]] = {}
    for plan in plans:
        groups.setdefault((plan.layers, plan.overlap, place_extents(plan, store)), []).append(plan)
    kept = []
    for first, *others in groups.values():
        notes += [f"the plan for {words(other.budget)} is that for {words(first.budget)}" for other in others]
        deadlines = [plan.budget.latency_us for plan in (first, *others)]
        # A plan without a deadline promises its prediction, which is within every deadline that it was made for.
        tightest = None if None in deadlines else min(us for us in deadlines if us is not None)
        kept.append(replace(first, budget=replace(first.budget, latency_us=tightest)))
    return tuple(kept)
