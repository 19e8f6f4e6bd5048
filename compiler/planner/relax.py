"""The linear relaxation of an integer program, by OR-Tools' GLOP: a bound, and a place to search near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ortools.linear_solver.python import model_builder
from ortools.sat.python import cp_model

UNBOUNDED = 1 << 61
SAFETY = 1e-7  # share of a bound given away to floating point


@dataclass(frozen=True)
class Relaxation:
    """Optimum of the relaxation."""

    bound: float  # in the program's objective: no solution is better
    values: list[float]  # by variable of the program


class Relaxer:
    """One program's relaxation, to be solved under several fixings of its variables."""

    def __init__(self, model: cp_model.CpModel) -> None:
        """Translate `model`, whose rows are all linear and unconditional; clauses become sums.

        Rows are scaled to at most 1, since they mix nanoseconds, blocks and counts.
        """
        proto: Any = model.Proto()
        self.lp = lp = model_builder.Model()
        self.domains = [(d[0], d[-1]) for d in (list(v.domain) for v in proto.variables)]
        self.variables = [lp.new_num_var(low, high, None) for low, high in self.domains]
        weighted_sum = model_builder.LinearExpr.weighted_sum
        for row in proto.constraints:
            if row.has_linear():
                names, weights, domain = list(row.linear.vars), list(row.linear.coeffs), list(row.linear.domain)
                low, high = domain[0], domain[-1]
            else:
                names, low, high = list(row.bool_or.literals), 1, UNBOUNDED
                weights = [1] * len(names)
            scale = float(max((abs(w) for w in weights), default=1))
            lp.add_linear_constraint(
                weighted_sum([self.variables[i] for i in names], [w / scale for w in weights]),
                low / scale if low > -UNBOUNDED else float("-inf"),
                high / scale if high < UNBOUNDED else float("inf"),
            )
        # CP-SAT minimises internally: coefficients and offset are negated where the program maximises.
        names, weights = list(proto.objective.vars), list(proto.objective.coeffs)
        self.scale = float(max(map(abs, weights), default=1))
        self.offset, self.factor = proto.objective.offset, proto.objective.scaling_factor or 1.0
        lp.minimize(weighted_sum([self.variables[i] for i in names], [w / self.scale for w in weights]))

    def solve(self, fixed: dict[int, int], time_limit_s: float) -> Relaxation | None:
        """The relaxation with variables fixed by index; None if infeasible. Raises TimeoutError."""
        for i, (low, high) in enumerate(self.domains):
            self.variables[i].lower_bound = fixed.get(i, low)
            self.variables[i].upper_bound = fixed.get(i, high)
        solver = model_builder.Solver("glop")
        solver.set_time_limit_in_seconds(time_limit_s)
        # Several times faster here than GLOP's defaults: the rows are sparse and the basis stays small.
        solver.set_solver_specific_parameters("use_dual_simplex: true use_preprocessing: false")
        status = solver.solve(self.lp)
        if status == model_builder.SolveStatus.INFEASIBLE:
            return None
        if status != model_builder.SolveStatus.OPTIMAL:
            raise TimeoutError(f"the relaxation did not finish in {time_limit_s:.1f} s")
        least = solver.objective_value * self.scale
        least -= SAFETY * abs(least)
        return Relaxation((least + self.offset) * self.factor, [float(solver.value(x)) for x in self.variables])
