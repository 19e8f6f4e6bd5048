"""Planners where blocks differ in shape, slices and cost."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from stic.compiler.memory.check import verify_extents, verify_regions
from stic.compiler.memory.placement import DecoderSizes, Sizes, fixed_bytes, place_extents, regions
from stic.compiler.plan import BlockCost, Budget, ComputeCost, IoCost, LayerPlan, Plan, Problem, Proof
from stic.compiler.planner import solve
from stic.compiler.planner.closed_form import claim_of, objective, within
from stic.compiler.simulate import check, simulate
from stic.compiler.store import lay_out
from stic.runtime.errors import InfeasibleError
from stic.runtime.format import BLOCK
from stic.runtime.layout import Shape

BITS = (2, 4)
SHAPES = (
    Shape("attention", 64, 2, 2, 1, 32),
    Shape("feed_forward", 64, 3, neurons_per_slice=96, gated=True),
    Shape("attention", 64, 2, 2, 1, 32),
    Shape("vocabulary", 64, 1, rows_per_slice=300),
)
COSTS = (BlockCost(20.0, {2: 10.0, 4: 12.0}), BlockCost(5.0, {2: 30.0, 4: 45.0}), BlockCost(1.0, {2: 100.0, 4: 180.0}))


def problem(budget: Budget, nested: bool = True) -> Problem:
    """A decoder of four blocks; nothing behind a block's slices is worth anything."""
    store = lay_out(SHAPES, None, nested, 0, max_bits=4, group=64)
    rng = np.random.default_rng(3)
    gain = np.zeros((len(SHAPES), store.most_slices, len(BITS)))
    for block, slices in enumerate(store.slices):
        gain[block, :slices, 1] = np.sort(rng.uniform(1, 5, slices))[::-1]
    sizes = Sizes(SHAPES, 64, 4096, 128, 0, 0, 2, 2, 2, 1 << 16, DecoderSizes(16, 64, "int8", 1, 32))
    io = IoCost(10.0, 50e6, 1 << 18, 12.0)
    compute = ComputeCost(COSTS, 3.0, 2.0, 1.0)
    presence = np.zeros(gain.shape[:2])
    return Problem(
        store, BITS, gain, presence, False, io, compute, 1, fixed_bytes(sizes, store), 40 * BLOCK, budget
    )  # fmt: skip


def uniform(p: Problem, bits: int, resident: bool) -> Plan:
    layers = tuple(LayerPlan((bits,) * n, (bits * resident,) * n) for n in p.store.slices)
    return Plan("test", layers, False, 1, True, p.budget, p.margin, Proof("heuristic", 0.0, None, 0.0))


def budgets() -> list[Budget]:
    p = problem(Budget())
    slow, small = simulate(uniform(p, 4, False), p), simulate(uniform(p, 2, False), p)
    fast = simulate(uniform(p, 2, True), p)
    middle = round((slow.latency_us + fast.latency_us) / 2)
    return [
        Budget(round(1.2 * slow.latency_us), small.peak_bytes + 4 * BLOCK),
        Budget(middle, slow.peak_bytes + 6 * BLOCK),
        Budget(middle, None, 5 * BLOCK),
    ]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("number", range(3))
def test_plans_hold_what_they_claim(number: int, nested: bool) -> None:
    p = problem(budgets()[number], nested)
    found = {}
    for name in ("ilp", "greedy", "pipeline", "preload", "load-and-exec"):
        try:
            plan = solve(p, name, None if name in ("ilp", "greedy") else 2, time_limit_s=4.0)
        except InfeasibleError:
            continue
        check(plan, p, claim_of(plan, p))
        assert [len(block.bits) for block in plan.layers] == list(p.store.slices)
        placement = place_extents(plan, p.store)
        verify_extents(plan, p.store, placement)
        found[name] = objective(plan.layers, p)
    assert "ilp" in found and found["ilp"] >= max(found.values()) * (1 - 1e-6)


def test_the_ilp_is_the_best_of_all_plans() -> None:
    """Every choice of bits, nothing resident, under a deadline; only bits decide, and reading ahead freely is best."""
    base = problem(Budget(None, None, 0))
    slow, fast = (simulate(uniform(base, bits, False), base).latency_us for bits in (4, 2))
    p = replace(base, budget=Budget(round(0.4 * slow + 0.6 * fast), None, 0))
    rows = [[(4,) * n + (2,) * (m - n) for n in range(m + 1)] for m in p.store.slices]
    best = 0.0
    for chosen in product(*rows):
        layers = tuple(LayerPlan(bits, (0,) * len(bits)) for bits in chosen)
        plan = Plan("test", layers, False, 4, True, p.budget, p.margin, Proof("heuristic", 0.0, None, 0.0))
        if within(p, claim_of(plan, p)):
            best = max(best, objective(layers, p))
    plan = solve(p, "ilp", None, time_limit_s=8.0)
    assert best > 0 and objective(plan.layers, p) == pytest.approx(best)


def test_times_are_those_of_each_shape() -> None:
    p = problem(Budget())
    plan = uniform(p, 4, True)
    spans = [e.end_us - e.start_us for e in simulate(plan, p).events if e.kind == "compute"]
    want = [20 + 2 * 12, 5 + 3 * 45, 20 + 2 * 12, 1 + 180]
    assert spans == pytest.approx([3.0, *want, 2.0])


def test_costs_of_other_shapes_and_blocks_left_out_are_refused() -> None:
    p = problem(Budget())
    with pytest.raises(ValueError, match="costs of other shapes"):
        replace(p, compute=replace(p.compute, blocks=COSTS[:2]))
    with pytest.raises(ValueError, match="cannot be left out"):
        replace(p, elastic=True)


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_regions_of_a_decoder_verify(cache: str) -> None:
    sizes = Sizes(SHAPES, 64, 4096, 128, 0, 0, 2, 2, 2, 1 << 16, DecoderSizes(16, 64, cache, 1, 32))
    placed, arena = regions(sizes, BLOCK, 2 * BLOCK, 0)
    verify_regions(placed, arena)
    tokens, number = 64, 1 if cache == "int8" else 2
    head = number * tokens * 32 * 2 + (8 * tokens if cache == "int8" else 0)  # keys and values, and their scales
    assert placed["cache"][1] == 2 * 2 * head  # blocks of attention, key heads
    assert placed["ffn"][1] == 3 * 2 * 96 * 64 and placed["logits"][1] == 4 * 304 and placed["types"][1] == 0
    assert placed["token_scale"][1] == 64 * max(1, 2, 3 * 2)  # groups of a slice's 96 neurons, three times
