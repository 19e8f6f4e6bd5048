"""Placement of extents and regions, and the separate code that verifies both."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from benchmarks.planner_study.synthetic import Geometry, store_of
from stic.compiler.memory.check import (
    MemoryPlanError,
    verify_extents,
    verify_family,
    verify_regions,
    verify_state,
    verify_weights,
)
from stic.compiler.memory.gpu import SCORES_BYTES, gpu_bytes, gpu_state
from stic.compiler.memory.placement import Placement, Sizes, fixed_bytes, place_extents, regions
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.runtime.format import BLOCK, REGIONS
from stic.runtime.gpu_format import GPU_REGIONS
from stic.runtime.layout import Shape, pad

SLICES = 3
SHAPE = Shape.layer(48, SLICES, 1, 24, 40)
NESTED = store_of(Geometry("tiny", SHAPE, 5, 100), seed=1)
COPIES = store_of(Geometry("tiny", SHAPE, 5, 100), seed=1, nested=False)


def make(layers, read_ahead=1, overlap=True):
    return Plan("test", tuple(layers), False, read_ahead, overlap, Budget(), 0.0, Proof("heuristic", 0, None, 0))


@st.composite
def layer_plans(draw, nested=True):
    bits = tuple(sorted(draw(st.lists(st.sampled_from((2, 3, 5, 8, 16)), max_size=SLICES)), reverse=True))
    full = sum(b > 8 for b in bits)
    held_full = draw(st.integers(0, full))
    top = 8
    resident = [16] * held_full + [0] * (full - held_full)
    for b in bits[full:]:
        choices = [r for r in (0, 2, 3, 4, 5, 8) if r <= min(b, top)] if nested else [r for r in (0, b) if r <= top]
        resident.append(draw(st.sampled_from(choices)))
        top = resident[-1]
    return LayerPlan(bits, tuple(resident))


@st.composite
def plans(draw, nested=True):
    layers = draw(st.lists(layer_plans(nested), min_size=5, max_size=5))
    return make(layers, draw(st.integers(0, 6)), draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(plans())
def test_placements_verify(plan):
    placement = place_extents(plan, NESTED)
    verify_extents(plan, NESTED, placement)
    assert sum(x.bytes for x in placement.resident) == placement.preload_bytes
    if not plan.overlap or plan.read_ahead >= 4:
        assert placement.working_bytes == sum(x.bytes for x in placement.streamed)
        assert all(x.wait_block == -1 for x in placement.streamed)


@settings(max_examples=30, deadline=None)
@given(plans(nested=False))
def test_placements_of_independent_copies_verify(plan):
    verify_extents(plan, COPIES, place_extents(plan, COPIES))


FAULTS = {  # what is put in an extent's place, and what the check says of it
    "outside": (lambda x, p: [replace(x, destination=p.working_bytes)], "leaves its region"),
    "unaligned": (lambda x, p: [replace(x, destination=x.destination + 64)], "is not aligned"),
    "missing": (lambda x, p: [], "not exactly what the plan needs"),
    "twice": (lambda x, p: [x, x], "out of load order"),
    "shorter": (lambda x, p: [replace(x, bytes=0)], "does not hold slice"),
    "other slice": (lambda x, p: [replace(x, first=(x.first + 1) % SLICES)], "slice|not exactly"),
    "future": (lambda x, p: [replace(x, wait_block=x.block)], "waits for"),
}


@pytest.mark.parametrize("fault", FAULTS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(plans(), st.data())
def test_faults_in_placements_are_caught(fault, plan, data):
    placement = place_extents(plan, NESTED)
    streamed = list(placement.streamed)
    assume(streamed)
    i = data.draw(st.integers(0, len(streamed) - 1))
    wrong, sentence = FAULTS[fault]
    broken = replace(placement, streamed=(*streamed[:i], *wrong(streamed[i], placement), *streamed[i + 1 :]))
    with pytest.raises(MemoryPlanError, match=sentence):
        verify_extents(plan, NESTED, broken)


def without_waiting(plan):
    """A plan's placement with reads that wait for nothing, and whether some of them share bytes."""
    placement = place_extents(plan, NESTED)
    eager = replace(placement, streamed=tuple(replace(x, wait_block=-1) for x in placement.streamed))
    spans = [(x.destination, x.destination + x.bytes) for x in placement.streamed]
    return eager, any(a[0] < b[1] and b[0] < a[1] for i, b in enumerate(spans) for a in spans[:i])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(layer_plans(), min_size=5, max_size=5), st.integers(0, 2))
def test_overwriting_early_is_caught(layers, read_ahead):
    plan = make(layers, read_ahead)
    eager, reuse = without_waiting(plan)
    assume(reuse)
    with pytest.raises(MemoryPlanError, match="overwrites"):
        verify_extents(plan, NESTED, eager)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(plans())
def test_reads_that_share_no_bytes_need_not_wait(plan):
    eager, reuse = without_waiting(plan)
    assume(not reuse)
    verify_extents(plan, NESTED, eager)


def test_double_buffering_costs_the_largest_neighbouring_pair():
    wide, narrow = LayerPlan((8, 8, 8), (0, 0, 0)), LayerPlan((2,), (0,))
    plan = make([wide, narrow, narrow, wide, narrow], read_ahead=1)
    placement = place_extents(plan, NESTED)
    sizes = [sum(x.bytes for x in placement.streamed if x.block == k) for k in range(5)]
    assert placement.working_bytes == max(a + b for a, b in pairwise(sizes))


def test_nothing_waits_before_anything_was_overwritten():
    resident, streamed = LayerPlan((2, 2, 2), (2, 2, 2)), LayerPlan((2, 2, 2), (0, 0, 0))
    placement = place_extents(make([resident, resident, resident, streamed, streamed], read_ahead=0), NESTED)
    assert [x.wait_block for x in placement.streamed] == [-1, 3]


def test_unusable_copies_are_refused():
    with pytest.raises(ValueError, match="copies"):
        place_extents(make([LayerPlan((4,), (2,))] * 5), COPIES)


SIZES = st.builds(
    Sizes,
    shapes=st.tuples(
        st.builds(
            Shape.layer,
            st.integers(1, 100),
            st.integers(1, 8),
            st.integers(1, 3),
            st.integers(1, 40),
            st.integers(1, 200),
        )
    ),
    max_length=st.integers(1, 100),
    trunk_bytes=st.integers(1, 100_000),
    row_stride=st.sampled_from((64, 1024, 4096, 8192)),
    head_width=st.integers(0, 300),
    output_floats=st.integers(1, 1000),
    threads=st.integers(1, 4),
    lanes=st.integers(1, 2),
    row_lanes=st.integers(2, 8),
    stack_bytes=st.just(65536),
)


@settings(max_examples=80, deadline=None)
@given(SIZES, *[st.integers(0, 100).map(lambda n: n * BLOCK)] * 3, st.booleans())
def test_regions_verify_and_add_up(sizes, preload, working, table, weights_first):
    placed, arena = regions(sizes, preload, working, table, weights_first)
    assert tuple(placed) == REGIONS
    verify_regions(placed, arena)
    _, without = regions(sizes, 0, 0, 0)
    assert arena == without + preload + working + table
    assert placed["working"][0] + working == (preload + working if weights_first else arena)
    assert fixed_bytes(sizes, NESTED) > without
    tiles, z = -(-sizes.max_length // 16), sizes.shapes[0]
    assert placed["qkv"][1] == tiles * z.slices * 3 * pad(z.heads_per_slice * z.head_dim, 16) * 64
    keys, width = 16 * tiles, pad(z.head_dim, 16)
    assert placed["scratch"][1] == sizes.threads * (148 * keys + 2 * keys * width + 24 * width)


@settings(max_examples=60, deadline=None)
@given(st.lists(plans(), min_size=2, max_size=3))
def test_families_verify(family):
    sizes = Sizes((SHAPE,), 16, 100, 64, 0, 1, 1, 1, 1, 65536)
    placements = [place_extents(plan, NESTED) for plan in family]
    placed = [regions(sizes, one.preload_bytes, one.working_bytes, 0)[0] for one in placements]
    verify_family(placements, placed)
    arenas = [regions(sizes, one.preload_bytes, one.working_bytes, 0)[1] for one in placements]
    assert [arena - mine["preload"][0] for arena, mine in zip(arenas, placed, strict=True)] == [
        one.preload_bytes + one.working_bytes for one in placements
    ]


def test_faults_in_families_are_caught():
    sizes = Sizes((SHAPE,), 16, 100, 64, 0, 1, 1, 1, 1, 65536)
    plan = make([LayerPlan((4, 4, 4), (4, 4, 4))] * 5)
    placement = place_extents(plan, NESTED)
    placed, _ = regions(sizes, placement.preload_bytes, 0, 0)
    first, _ = regions(sizes, placement.preload_bytes, 0, 0, weights_first=True)
    for other in ({**placed, "preload": (0, 0)}, {**placed, "working": (0, 0)}, {**placed, "x": (BLOCK, 64)}):
        with pytest.raises(MemoryPlanError, match=r"elsewhere|not behind"):
            verify_family([placement] * 2, [placed, other])
    with pytest.raises(MemoryPlanError, match="behind the preload buffer"):
        verify_family([placement] * 2, [first, first])
    a, b, *rest = placement.resident
    swapped = replace(a, destination=b.destination), replace(b, destination=a.destination)
    for resident in ((b, a, *rest), (*swapped, *rest)):
        with pytest.raises(MemoryPlanError, match=r"out of order|is placed before"):
            verify_family([placement, replace(placement, resident=resident)], [placed] * 2)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from(("x", "y", "trunk", "context", "panel", "output")))
def test_overlapping_regions_are_caught(sizes, name):
    placed, arena = regions(sizes, BLOCK, BLOCK, 0)
    placed["quantized"] = (placed[name][0], max(64, placed["quantized"][1]))
    with pytest.raises(MemoryPlanError):
        verify_regions(placed, arena)


def test_a_region_outside_the_arena_is_caught():
    placed, arena = regions(Sizes((SHAPE,), 16, 100, 64, 0, 1, 1, 1, 1, 65536), 0, 0, 0)
    with pytest.raises(MemoryPlanError, match="leaves"):
        verify_regions({**placed, "output": (arena, 64)}, arena)


@settings(max_examples=80, deadline=None)
@given(SIZES, st.sampled_from(("float16", "float32")))
def test_a_gpu_s_state_verifies_and_is_counted(sizes, storage):
    state = gpu_state(sizes, storage)
    assert tuple(state.regions) == GPU_REGIONS
    verify_state(state.regions, state.state_bytes)
    tiles = -(-sizes.max_length // 16)
    assert 1 <= state.scores_tiles <= tiles and state.state_bytes % BLOCK == 0
    (shape,) = sizes.shapes
    heads = shape.slices * shape.heads_per_slice
    scores = state.regions["scores"][1]
    assert scores == 4 * heads * state.scores_tiles * 16 * 16 * tiles
    assert state.scores_tiles == 1 or scores <= SCORES_BYTES
    held = gpu_bytes(sizes, NESTED, storage)
    assert held % BLOCK == 0 and held > state.state_bytes + sizes.trunk_bytes
    smaller = gpu_state(replace(sizes, shapes=(replace(shape, slices=1),)), storage)
    assert smaller.state_bytes <= state.state_bytes


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from(("x", "y", "qkv", "context", "scores", "rows", "quantized")))
def test_overlapping_state_is_caught(sizes, name):
    state = gpu_state(sizes, "float16")
    moved = {**state.regions, "token_sum": (state.regions[name][0], BLOCK)}
    with pytest.raises(MemoryPlanError, match="overlap"):
        verify_state(moved, state.state_bytes)


@pytest.mark.parametrize("fault", [(BLOCK // 2, 64), (1 << 40, 64), (0, 0)])
def test_state_outside_its_buffer_is_caught(fault):
    state = gpu_state(Sizes((SHAPE,), 16, 100, 64, 0, 1, 1, 1, 1, 65536), "float16")
    with pytest.raises(MemoryPlanError, match=r"not a multiple|leaves"):
        verify_state({**state.regions, "types": fault}, state.state_bytes)


def test_weights_apart_are_caught():
    placed, _ = regions(Sizes((SHAPE,), 16, 100, 64, 0, 1, 1, 1, 1, 65536), 3 * BLOCK, BLOCK, 0, weights_first=True)
    verify_weights(placed)
    for name, at in (("preload", BLOCK), ("working", 9 * BLOCK)):
        with pytest.raises(MemoryPlanError, match="apart"):
            verify_weights({**placed, name: (at, placed[name][1])})


def test_empty_placement():
    assert place_extents(make([LayerPlan((), ())] * 5), NESTED) == Placement((), (), 0, 0)
