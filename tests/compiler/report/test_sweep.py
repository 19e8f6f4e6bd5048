import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from benchmarks.planner_study.synthetic import DEVICES, MINILM, problem_of
from stic.compiler.plan import Budget, Plan
from stic.compiler.planner.greedy import solve as greedy
from stic.compiler.progress import silent
from stic.compiler.report.report import sweep_table
from stic.compiler.report.sweep import draw, grid_around, on_front, sweep_plans
from stic.runtime.errors import InfeasibleError

LATENCIES = (50_000, 200_000)
MEMORIES = (1 << 20, 12 << 20, 16 << 20)


def solve(problem) -> Plan:
    plan = greedy(problem)
    if plan is None:
        raise InfeasibleError("no plan fits")
    return plan


@pytest.fixture(scope="module")
def points():
    problem = problem_of(MINILM, DEVICES[1], 1, Budget())
    return sweep_plans(problem, solve, LATENCIES, MEMORIES, silent)


def test_every_budget_gets_an_answer(points):
    assert [(p.latency_us, p.memory_bytes) for p in points] == [(t, m) for t in LATENCIES for m in MEMORIES]
    assert any(p.plan is None for p in points) and any(p.plan is not None for p in points)
    for point in (p for p in points if p.plan is not None):
        assert point.predicted_us <= point.latency_us and point.peak_bytes <= point.memory_bytes


def test_infeasible_points_are_plain_data(points):
    facts = next(p for p in points if p.plan is None).to_json()
    assert facts["status"] == "infeasible" and facts["objective"] is None and facts["memory_bytes"] == 1 << 20


def test_the_front_holds_no_beaten_point(points):
    front = on_front(points)
    assert front and all(p.plan is not None for p in front)
    first = min(front, key=lambda p: (p.latency_us, p.memory_bytes))
    dearer = replace(first, latency_us=first.latency_us + 1, memory_bytes=first.memory_bytes + 1)
    assert dearer not in on_front((*points, dearer))


def test_table_and_picture(points, tmp_path):
    table = sweep_table(points)
    assert table.row_count == len(LATENCIES) and len(table.columns) == 1 + len(MEMORIES)
    draw(points, tmp_path / "sweep.svg")
    assert ElementTree.parse(tmp_path / "sweep.svg").getroot().tag.endswith("svg")


def test_grid_lies_around_what_works():
    grid = grid_around(1000.0)
    assert 1000 in grid and min(grid) < 1000 < max(grid)
