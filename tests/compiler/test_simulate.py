"""The replay against formulas, and what it must notice."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner_study.synthetic import DEVICES, Geometry, problem_of
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.simulate import EMBEDDING, HEAD, ReplayError, check, simulate
from stic.runtime.layout import Shape

TINY = Geometry("tiny", Shape.layer(64, 3, 1, 16, 64), 4, 500)


def problem(nested=True, speed=1.0):
    device = replace(DEVICES[0], macs_per_s=DEVICES[0].macs_per_s * speed)
    return problem_of(TINY, device, 1, Budget(), length=32, nested=nested)


@st.composite
def plans(draw, nested=True):
    layers = []
    for _ in range(4):
        bits = tuple(sorted(draw(st.lists(st.sampled_from((2, 3, 4, 8, 16)), max_size=3)), reverse=True))
        held, top = [], 16
        for b in bits:
            choices = [r for r in ((0, 2, 3, 8) if b <= 8 and nested else (0, b)) if r <= min(b, top)]
            held.append(draw(st.sampled_from(choices)))
            top = held[-1] if b <= 8 or held[-1] == 0 else top
            top = 8 if b > 8 else top
            if b > 8 and held[-1] == 0:
                top = 8
        full = [h for h, b in zip(held, bits, strict=True) if b > 8]
        held[: len(full)] = sorted(full, reverse=True)
        layers.append(LayerPlan(bits, tuple(held)))
    proof = Proof("heuristic", 0.0, None, 0.0)
    ahead, overlap = draw(st.integers(0, 4)), draw(st.booleans())
    return Plan("test", tuple(layers), draw(st.booleans()), ahead, overlap, Budget(), 0.0, proof)


@settings(max_examples=150, deadline=None)
@given(plans(), st.sampled_from((0.001, 0.02, 1.0)))
def test_replay_equals_the_closed_form(plan, speed):
    p = problem(speed=speed)
    check(plan, p, claim_of(plan, p))


@settings(max_examples=60, deadline=None)
@given(plans(nested=False), st.sampled_from((0.001, 0.02)))
def test_replay_equals_the_closed_form_for_independent_copies(plan, speed):
    p = problem(nested=False, speed=speed)
    check(plan, p, claim_of(plan, p))


@settings(max_examples=60, deadline=None)
@given(plans(), st.sampled_from((0.001, 0.02, 1.0)))
def test_without_waiting_the_finish_is_the_largest_aib_row(plan, speed):
    p = problem(speed=speed)
    plan = replace(plan, read_ahead=4, overlap=True)
    timeline = simulate(plan, p)
    io = {k: 0.0 for k in range(-1, 4)}
    busy = {k: 0.0 for k in range(-1, 4)}
    for event in timeline.events:
        if event.kind == "io":
            io[event.layer] += event.end_us - event.start_us
        elif event.kind == "compute" and event.layer != HEAD:
            busy[event.layer] += event.end_us - event.start_us
    rows = [sum(io[i] for i in range(-1, k + 1)) + sum(busy[j] for j in range(k, 4)) for k in range(-1, 4)]
    assert timeline.latency_us == pytest.approx(p.compute.submit_us + max(rows) + p.compute.head_us)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_lanes_never_do_two_things_at_once(plan):
    timeline = simulate(plan, problem(speed=0.02))
    for kinds in (("io",), ("compute", "stall")):
        lane = [e for e in timeline.events if e.kind in kinds]
        assert all(a.end_us <= b.start_us + 1e-6 for a, b in pairwise(lane))
    compute = [e for e in timeline.events if e.kind == "compute"]
    assert compute[0].layer == EMBEDDING and compute[-1].layer == HEAD
    assert max(size for _, size in timeline.held) <= timeline.working_bytes
    assert timeline.held[-1][1] == 0


UNIFORM = Plan(
    "test", (LayerPlan((4, 4, 4), (0, 0, 0)),) * 4, False, 1, True, Budget(), 0.0, Proof("heuristic", 0.0, None, 0.0)
)


def test_reading_ahead_never_hurts_and_loading_first_is_slowest():
    p = problem(speed=0.02)
    times = [simulate(replace(UNIFORM, read_ahead=r), p).latency_us for r in (0, 1, 2, 3)]
    assert times == sorted(times, reverse=True)
    assert simulate(replace(UNIFORM, overlap=False), p).latency_us >= times[0]


@pytest.mark.parametrize("field", ["latency_us", "peak_bytes", "preload_bytes", "working_bytes", "io_bytes"])
def test_a_wrong_claim_is_refused(field):
    p = problem()
    claim = claim_of(UNIFORM, p)
    with pytest.raises(ReplayError):
        check(UNIFORM, p, replace(claim, **{field: getattr(claim, field) * 2 + 1}))


def test_a_broken_budget_is_refused():
    p = problem()
    claim = claim_of(UNIFORM, p)
    for budget in (Budget(int(claim.latency_us) - 1), Budget(None, claim.peak_bytes - 1)):
        with pytest.raises(ReplayError, match="above its budget"):
            check(replace(UNIFORM, budget=budget), p, claim)
    held = replace(UNIFORM, layers=(LayerPlan((4,), (4,)),) * 4, budget=Budget(None, None, 0))
    with pytest.raises(ReplayError, match="preload_bytes"):
        check(held, p, claim_of(held, p))
