"""Linear solvers on integer programs."""

from dataclasses import replace

import pytest
from ortools.sat.python import cp_model

from benchmarks.planner_study.synthetic import DEVICES, Geometry, problem_of
from stic.compiler.plan import Budget
from stic.compiler.planner.branch import roots
from stic.compiler.planner.closed_form import CostTable, claim
from stic.runtime.layout import Shape

GEOMETRY = Geometry("tiny", Shape.layer(128, 2, 1, 32, 128), 4, 200)


def slow(seed, times, elastic=False):
    """A problem whose layers take seconds, within a memory that makes reads wait, and `times` the least latency."""
    device = replace(DEVICES[seed % 3], bytes_per_s=1e5, macs_per_s=1e6)
    problem = problem_of(GEOMETRY, device, seed, Budget(), elastic, 16, (2, 4))
    table = CostTable(problem)
    least = claim(problem, [table.layer(k, (2, 2), (0, 0)) for k in range(4)], False, 1)
    return replace(problem, budget=Budget(int(times * least.latency_us), int(least.peak_bytes * 1.1)))


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("times", [0.98, 1.1])
def test_branch_and_bound_agrees_with_cp_sat_where_clocks_run_for_seconds(times, elastic):
    """A nanosecond beside seconds is below what HiGHS takes for zero."""
    problem = slow(1, times, elastic)
    assert problem.budget.latency_us > 2_000_000
    for b in roots(problem, "quality", None)[0]:
        model = b.program.model.clone()
        for i, value in b.fixed().items():
            model.add(model.get_bool_var_from_proto_index(i) == value)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.catch_sigint_signal = False
        truth = solver.solve(model)
        found = b.relaxer.solve(b.fixed(), 20, integral=True)
        relaxed = b.relaxer.solve(b.fixed(), 20)
        assert found.infeasible == (truth == cp_model.INFEASIBLE)
        if not found.infeasible:
            assert found.bound == pytest.approx(solver.objective_value, rel=1e-5)
            assert relaxed.bound >= solver.objective_value * (1 - 1e-6)
