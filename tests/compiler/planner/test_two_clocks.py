"""Planners under limits on a decoder's first and next token."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from stic.compiler.plan import Budget, ComputeCost, LayerPlan, Pass, Plan, Problem, Proof
from stic.compiler.planner import PLANNERS, solve
from stic.compiler.planner.closed_form import claim_of, objective, within
from stic.compiler.simulate import ReplayError, check, first_token_us, simulate
from stic.runtime.errors import InfeasibleError
from tests.compiler.planner.test_blocks import BITS, COSTS, problem, uniform

CHUNK = 16


def scaled(ratio: float, tokens: int) -> ComputeCost:
    """Of a pass that computes `ratio` times as long as one token."""
    return ComputeCost(tuple(cost.scaled(ratio) for cost in COSTS), 3.0 + tokens, 2.0, 1.0)


def prompt(chunks: int, slope: float) -> tuple[Pass, ...]:
    """Chunks whose compute grows evenly with their position."""
    return tuple(Pass(i * CHUNK, CHUNK, scaled(2 + slope * i, CHUNK), i == chunks - 1) for i in range(chunks))


def prompted(budget: Budget, chunks: int = 3, slope: float = 0.5) -> Problem:
    return replace(problem(budget), prompt=prompt(chunks, slope))


def everything(p: Problem) -> list[Plan]:
    """Every choice of bits and residence by whole blocks, at every read-ahead."""
    choices = [[(bits, held) for bits in BITS for held in (0, bits)] for _ in p.store.slices]
    plans = []
    for chosen in product(*choices):
        layers = tuple(LayerPlan((b,) * n, (h,) * n) for (b, h), n in zip(chosen, p.store.slices, strict=True))
        for ahead in range(len(layers)):
            plans.append(Plan("test", layers, False, ahead, True, p.budget, p.margin, Proof("heuristic", 0, None, 0)))
    return plans


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("overlap", [True, False])
def test_a_claim_is_its_replay_for_any_plan(chunks: int, overlap: bool) -> None:
    p = prompted(Budget(), chunks)
    rng = np.random.default_rng(chunks)
    plans = everything(p)
    for number in rng.integers(0, len(plans), 60):
        plan = replace(plans[number], overlap=overlap)
        timeline = check(plan, p, claim_of(plan, p))
        assert timeline.first_token_us == pytest.approx(sum(first_token_us(plan, p, (one,)) for one in p.prompt))


def test_a_chunk_before_the_last_ends_before_the_vocabulary() -> None:
    p = prompted(Budget(), 2, 0.0)
    plan = uniform(p, 4, False)
    early, last = (first_token_us(plan, p, (one,)) for one in p.prompt)
    vocabulary = simulate(plan, p).events[-2]
    assert vocabulary.layer == len(p.store.shapes) - 1
    assert last - early >= 2 * COSTS[-1].of((4,)) - 1e-6


def limits() -> list[Budget]:
    """Limits on the first token alone, the next alone, and both, with memory for a part of the model."""
    p = prompted(Budget())
    slow, fast = (simulate(uniform(p, bits, held), p) for bits, held in ((4, False), (2, True)))
    first = round(0.6 * slow.first_token_us + 0.4 * fast.first_token_us)
    after = round(0.6 * slow.latency_us + 0.4 * fast.latency_us)
    memory = (slow.peak_bytes + fast.peak_bytes) // 2
    return [Budget(None, memory, None, first), Budget(after, memory), Budget(after, memory, None, first)]


@pytest.mark.parametrize("number", range(3))
def test_the_ilp_is_at_least_as_good_as_every_planner_and_every_whole_plan(number: int) -> None:
    p = prompted(limits()[number])
    best = solve(p, "ilp", None, time_limit_s=4.0)
    check(best, p, claim_of(best, p))
    reached = [objective(plan.layers, p) for plan in everything(p) if within(p, claim_of(plan, p))]
    for name in PLANNERS:
        try:
            plan = solve(p, name, 2 if name in ("pipeline", "preload", "load-and-exec") else None, time_limit_s=1.0)
        except InfeasibleError:
            continue
        check(plan, p, claim_of(plan, p))
        reached.append(objective(plan.layers, p))
    assert objective(best.layers, p) >= max(reached) * (1 - 1e-6)


def test_what_is_left_open_is_made_small_the_first_token_before_the_next() -> None:
    best = solve(prompted(Budget()), "ilp", None, time_limit_s=6.0)
    p = prompted(Budget())
    assert all(bits == 4 for layer in best.layers for bits in layer.bits)
    found, held = claim_of(best, p), claim_of(replace(uniform(p, 4, True), table_resident=True), p)
    assert found.first_token_us == pytest.approx(held.first_token_us, rel=1e-3)
    assert found.latency_us <= held.latency_us * 1.001 and found.peak_bytes <= held.peak_bytes
    assert [note.split(" was")[0] for note in best.notes[:3]] == ["first token", "next token", "memory"]


def test_what_nothing_meets_is_answered_with_what_would_do() -> None:
    """Each figure of the sentence is itself enough."""
    tight = Budget(100, 1, None, 300)
    p = prompted(replace(tight, memory_bytes=claim_of(uniform(prompted(tight), 2, False), prompted(tight)).peak_bytes))
    with pytest.raises(InfeasibleError) as caught:
        solve(p, "ilp", None, time_limit_s=4.0)
    said = str(caught.value)
    assert "a first token in 300us and a next token in 100us" in said
    assert "least first token at this memory and next token" in said or "no first token is enough" in said
    eased = replace(p, budget=replace(p.budget, first_token_us=None, latency_us=None))
    with pytest.raises(InfeasibleError, match="the least memory"):
        solve(replace(eased, budget=Budget(None, 4096)), "ilp", None, time_limit_s=4.0)
    for limit in (Budget(None, None, None, 300), Budget(100)):
        with pytest.raises(
            InfeasibleError, match=r"least (first|next) token with any memory is (?P<ms>[0-9.]+) ms"
        ) as e:
            solve(replace(p, budget=limit), "ilp", None, time_limit_s=4.0)
        ms = float(str(e.value).rsplit("is ", 1)[1].removesuffix(" ms"))
        us = int(np.ceil(ms * 1000))
        eased_limit = Budget(None, None, None, us) if limit.first_token_us else Budget(us)
        assert solve(replace(p, budget=eased_limit), "ilp", None, time_limit_s=4.0)


def test_a_replay_above_the_limit_of_the_first_token_is_a_defect() -> None:
    p = prompted(Budget())
    plan = uniform(p, 4, False)
    late = replace(plan, budget=Budget(None, None, None, 10))
    with pytest.raises(ReplayError, match="first_token_us"):
        check(late, p, claim_of(plan, p))
    with pytest.raises(ReplayError, match="claims first_token_us"):
        check(plan, p, replace(claim_of(plan, p), first_token_us=1.0))


def test_whole_blocks_have_one_bitwidth_under_the_ilp_and_greedy() -> None:
    """And the ilp finds the best of all such plans, which it can be shown on an instance this small."""
    base = prompted(limits()[0])
    slices = np.array(base.store.slices)
    gain = np.zeros(base.gain.shape)
    for block, count in enumerate(slices):
        gain[block, :count, 1] = base.gain[block, :count, 1].mean()
    p = replace(base, gain=gain, whole=frozenset(range(len(slices) - 1)))
    best = max(objective(plan.layers, p) for plan in everything(p) if within(p, claim_of(plan, p)))
    for name in ("ilp", "greedy"):
        plan = solve(p, name, None, time_limit_s=4.0)
        check(plan, p, claim_of(plan, p))
        assert all(len(set(layer.bits)) == 1 for layer in plan.layers[:-1])
        assert name == "greedy" or objective(plan.layers, p) >= best * (1 - 1e-6)


def test_blocks_whose_bits_are_decided_keep_them_under_every_planner() -> None:
    last = len(problem(Budget()).store.slices) - 1
    p = replace(prompted(Budget()), held={last: 4})
    for name in PLANNERS:
        plan = solve(p, name, 2 if name in ("pipeline", "preload", "load-and-exec") else None, time_limit_s=1.0)
        assert set(plan.layers[last].bits) == {4}
