"""The planner `ilp`: greedy first, then the search, then what the budget left open; or why nothing fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from stic.compiler.plan import Budget, Plan, Problem, Proof
from stic.compiler.planner import greedy
from stic.compiler.planner.closed_form import claim_of, objective
from stic.compiler.planner.ilp import Aim
from stic.compiler.planner.search import GAP_LIMIT, TIE, Answer, Search
from stic.compiler.quantities import quote_bytes, quote_time
from stic.runtime.errors import InfeasibleError

OPEN_S = 3.0  # to make small what the budget leaves open: this long, or as long as quality took, if the limit allows
START_SHARE = 0.25  # of the time limit, for greedy: with memory limited it tries 80 variants
Progress = Callable[[float, float, float], None]  # (seconds, objective, bound)


def solve(
    problem: Problem, time_limit_s: float = 10.0, workers: int = 2, gap_limit: float = GAP_LIMIT, enough: float = 0.0,
    progress: Progress | None = None,
) -> Plan:  # fmt: skip
    """Plan by integer programming.

    Greedy goes first and gets START_SHARE of the time. The search starts from its plan, so that the answer is never
    worse, and there is one even where time is short.

    The answer is "optimal" if its gap is proved to be within `gap_limit`. The search also ends at a gap of `enough`, if
    that is larger: the last tenths of a percent take nearly all the time.

    A budget may leave latency or memory open. Then quality is maximised first, memory made small second, and latency
    third; of a decoder, the first token second, the next token third, and memory last. What comes after quality takes
    OPEN_S together, or as long as quality took. A plan within `gap_limit` of the bound is as
    good as optimal, so a better one gives up the difference for them: near full precision that saves megabytes.

    The proof is of quality. `progress` hears of quality too, whenever objective or bound changes: seconds since the
    call, objective (-inf: no plan yet), bound. It is called from the search's threads, one call at a time.

    Raises InfeasibleError, which names the least memory and latency that would do.
    """
    began = time.perf_counter()
    start = greedy.solve(problem, until=began + START_SHARE * time_limit_s)
    if problem.prompt and start is not None:
        enough *= _share_lost(problem, start)
    left_open = _left_open(problem)
    share = 0.6 if left_open else 1.0

    def heard(value: float, bound: float) -> None:
        if progress is not None:
            progress(time.perf_counter() - began, value, bound)

    search = Search(problem, "quality", workers, gap_limit, start, enough=enough, progress=heard)
    answer = search.run(began + share * time_limit_s)
    plan = answer.plan
    if plan is None and answer.proved:
        raise InfeasibleError(what_would_do(problem, time_limit_s, workers))
    if plan is None:
        raise InfeasibleError(
            f"no plan for {_words(problem)} was found in {time_limit_s:g} s, and none was ruled out; "
            "allow the solver more time"
        )
    quality = objective(plan.layers, problem)
    if answer.bound is not None and answer.bound > 0:
        least = answer.bound / (1 + gap_limit - 2 * TIE)  # of an optimal plan, also after ties are rounded
        quality = min(quality, least if start is None else max(least, start.proof.objective))
    now = time.perf_counter()
    until = min(began + time_limit_s, now + max(OPEN_S, now - began))
    held = problem.budget
    for i, aim in enumerate(left_open):
        if i:  # what was made small before stays so
            held = _held(held, left_open[i - 1], plan, problem)
        search = Search(replace(problem, budget=held), aim, workers, gap_limit, plan, quality, enough)
        plan = search.run(now + (i + 1) / len(left_open) * (until - now)).plan or plan
    value = objective(plan.layers, problem)
    if start is not None:
        assert value >= start.proof.objective - 2 * TIE * abs(start.proof.objective), "worse than the greedy plan"
    bound = None if answer.bound is None else max(answer.bound, value)
    notes = tuple(f"{_noun(aim, problem)} was left open: made small after quality" for aim in left_open)
    if plan is start:
        notes += (f"the search found nothing better than greedy ({'; '.join(start.notes)})",)
    status = "optimal" if answer.proved else "feasible" if bound is not None else "heuristic"
    proof = Proof(status, value, bound, time.perf_counter() - began, max(gap_limit, enough))
    return replace(plan, planner="ilp", budget=problem.budget, notes=notes, proof=proof)


def _share_lost(problem: Problem, plan: Plan) -> float:
    """Share of the largest possible objective that a plan gives up.

    A decoder's gains count from bits at which hardly anything is left of the model. What a plan is judged by is the
    loss that remains, so the gap that is enough is a share of that.
    """
    most = float(problem.gain.max(axis=2).sum())
    return max(0.0, 1 - plan.proof.objective / most) if most > 0 else 1.0


def _left_open(problem: Problem) -> tuple[Aim, ...]:
    """What is made small after quality, the dearest first."""
    budget = problem.budget
    asked: dict[Aim, int | None] = {"memory": budget.memory_bytes, "latency": budget.latency_us}
    if problem.prompt:
        asked = {"first token": budget.first_token_us, "latency": budget.latency_us, "memory": budget.memory_bytes}
    return tuple(aim for aim, value in asked.items() if value is None)


def _held(budget: Budget, aim: Aim, plan: Plan, problem: Problem) -> Budget:
    """A budget that gives up nothing of what `plan` has of an aim."""
    claim, share = claim_of(plan, problem), 1 - problem.margin
    if aim == "memory":
        return replace(budget, memory_bytes=claim.peak_bytes)
    if aim == "latency":
        return replace(budget, latency_us=math.ceil(claim.latency_us / share))
    return replace(budget, first_token_us=math.ceil(claim.first_token_us / share))


def _noun(aim: Aim, problem: Problem) -> str:
    return "next token" if problem.prompt and aim == "latency" else aim


def least(problem: Problem, aim: Aim, time_limit_s: float, workers: int) -> Answer:
    """Search for the plan with the least of an aim, whatever its quality."""
    began = time.perf_counter()
    start = greedy.solve(problem, until=began + START_SHARE * time_limit_s)
    return Search(problem, aim, workers, 1e-3, start).run(began + time_limit_s)


def what_would_do(problem: Problem, time_limit_s: float, workers: int) -> str:
    """The sentence for a budget that nothing meets. Figures are rounded up, so that each is itself enough."""
    budget = problem.budget

    def found(aim: Aim, eased: Budget) -> Answer:
        return least(replace(problem, budget=eased), aim, time_limit_s / 2, workers)

    parts = []
    if budget.memory_bytes is not None:
        eased = replace(budget, memory_bytes=None)
        answer = found("memory", eased)
        parts.append(_part("memory", _limits(eased, problem) or "at any latency", answer, _mib(answer.value)))
    for aim, eased in _eased_times(problem):
        answer, where = found(aim, eased), _limits(eased, problem) or "with any memory"
        parts.append(_part(_noun(aim, problem), where, answer, _ms(answer.value / (1 - problem.margin))))
    return f"no plan fits {_words(problem)}: {', '.join(parts)}"


def _eased_times(problem: Problem) -> list[tuple[Aim, Budget]]:
    """Each time that is limited, and the budget without that limit."""
    budget, found = problem.budget, list[tuple[Aim, Budget]]()
    if budget.first_token_us is not None:
        found.append(("first token", replace(budget, first_token_us=None)))
    if budget.latency_us is not None:
        found.append(("latency", replace(budget, latency_us=None)))
    return found


def _limits(budget: Budget, problem: Problem) -> str:
    """What a least figure is held to; empty: to nothing."""
    named = [("memory", budget.memory_bytes), ("first token", budget.first_token_us)]
    given = [name for name, value in (*named, (_noun("latency", problem), budget.latency_us)) if value is not None]
    return f"at this {' and '.join(given)}" if given else ""


def _part(what: str, where: str, answer: Answer, figure: str) -> str:
    if answer.plan is not None:
        return f"the least {what} {where} is {'' if answer.proved else 'at most '}{figure}"
    return (
        f"no {what} is enough {where}" if answer.proved else f"how much {what} is enough {where} was not found in time"
    )


def _words(problem: Problem) -> str:
    budget = problem.budget
    parts = []
    if budget.memory_bytes is not None:
        parts.append(quote_bytes(budget.memory_bytes))
    if budget.first_token_us is not None:
        parts.append(f"a first token in {quote_time(budget.first_token_us)}")
    if budget.latency_us is not None:
        us = quote_time(budget.latency_us)
        parts.append(f"a next token in {us}" if problem.prompt else us)
    words = " at ".join(parts) if not problem.prompt else " and ".join(parts)
    if budget.preload_bytes is None:
        return words or "this model"
    return f"{words or 'this model'} with {quote_bytes(budget.preload_bytes)} of preload buffer"


def _up(value: float) -> str:
    """Rounded up to a tenth, or to a thousandth below ten."""
    if not math.isfinite(value):
        return ""
    parts = 10 if abs(value) >= 10 else 1000
    return f"{math.ceil(value * parts - 1e-6) / parts:.10g}"


def _mib(size: float) -> str:
    return f"{_up(size / 2**20)} MiB"


def _ms(us: float) -> str:
    return f"{_up(us / 1000)} ms"
