"""An integer program as linear solvers see it: its relaxation (GLOP), or branch and bound on it (HiGHS).

CP-SAT finds little on long sums of small terms; where a relaxation is as tight as here, branch and bound on
it does. Both come with OR-Tools.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ortools.math_opt import model_pb2
from ortools.math_opt.python import mathopt
from ortools.sat.python import cp_model

UNBOUNDED = 1 << 61
SAFETY = 1e-7  # share of a bound given away to floating point
INFEASIBLE = (mathopt.TerminationReason.INFEASIBLE, mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED)


@dataclass(frozen=True)
class Outcome:
    """What a linear solver knows when it stops."""

    infeasible: bool
    finished: bool
    bound: float | None  # in the program's objective: no solution is better
    values: list[float] | None  # by variable of the program


class _Quiet:
    """Sends what C++ prints to nowhere: HiGHS 1.12 prints a line whenever it repairs a solution, whatever it is told.

    Several threads may be inside at once; the last one out restores standard output.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.kept = threading.Lock(), 0, -1

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                sys.stdout.flush()
                self.kept = os.dup(1)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.close(nowhere)
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                os.dup2(self.kept, 1)
                os.close(self.kept)


_QUIET = _Quiet()


class Relaxer:
    """One program's rows in floating point, to be solved under several fixings of its variables."""

    def __init__(self, model: cp_model.CpModel, base: Relaxer | None = None) -> None:
        """Translate `model`, whose rows are all linear and unconditional; clauses become sums.

        Where `base` is the translation of what `model` was extended from, only the rest is translated. Rows
        are scaled to at most 1, since they mix nanoseconds, blocks and counts.
        """
        proto: Any = model.Proto()
        self.domains = [(d[0], d[-1]) for d in (list(v.domain) for v in proto.variables)]
        self.row_ids: list[int] = [] if base is None else list(base.row_ids)
        self.columns: list[int] = [] if base is None else list(base.columns)
        self.weights: list[float] = [] if base is None else list(base.weights)
        self.low: list[float] = [] if base is None else list(base.low)
        self.high: list[float] = [] if base is None else list(base.high)
        for i in range(len(self.low), len(proto.constraints)):
            self._add(proto.constraints[i])
        if proto.has_objective():
            # CP-SAT minimises internally: coefficients and offset are negated where the program maximises.
            self.objective = (list(proto.objective.vars), list(proto.objective.coeffs))
            self.offset, self.factor = proto.objective.offset, proto.objective.scaling_factor or 1.0

    def _add(self, row: Any) -> None:
        if row.has_linear():
            names, weights, domain = list(row.linear.vars), list(row.linear.coeffs), list(row.linear.domain)
            low, high = domain[0], domain[-1]
        else:
            names, low, high = list(row.bool_or.literals), 1, UNBOUNDED
            weights = [1] * len(names)
        scale = float(max((abs(w) for w in weights), default=1))
        self.row_ids += [len(self.low)] * len(names)
        self.columns += names
        self.weights += [w / scale for w in weights]
        self.low.append(low / scale if low > -UNBOUNDED else float("-inf"))
        self.high.append(high / scale if high < UNBOUNDED else float("inf"))

    def solve(self, fixed: dict[int, int], time_limit_s: float, integral: bool = False, gap: float = 0.0) -> Outcome:
        """Solve with variables fixed by index: the relaxation, or the program itself to a relative `gap`."""
        names, weights = self.objective
        scale = float(max(map(abs, weights), default=1))
        model = model_pb2.ModelProto()
        model.variables.ids.extend(range(len(self.domains)))
        model.variables.lower_bounds.extend(fixed.get(i, low) for i, (low, _) in enumerate(self.domains))
        model.variables.upper_bounds.extend(fixed.get(i, high) for i, (_, high) in enumerate(self.domains))
        model.variables.integers.extend([integral] * len(self.domains))
        model.linear_constraints.ids.extend(range(len(self.low)))
        model.linear_constraints.lower_bounds.extend(self.low)
        model.linear_constraints.upper_bounds.extend(self.high)
        order = sorted(range(len(names)), key=names.__getitem__)
        model.objective.linear_coefficients.ids.extend(names[i] for i in order)
        model.objective.linear_coefficients.values.extend(weights[i] / scale for i in order)
        cells = sorted(zip(self.row_ids, self.columns, self.weights, strict=True))
        model.linear_constraint_matrix.row_ids.extend(c[0] for c in cells)
        model.linear_constraint_matrix.column_ids.extend(c[1] for c in cells)
        model.linear_constraint_matrix.coefficients.extend(c[2] for c in cells)
        parameters = mathopt.SolveParameters(time_limit=timedelta(seconds=max(0.01, time_limit_s)))
        if integral:
            parameters.relative_gap_tolerance = gap
        else:
            # Several times faster here than GLOP's defaults: the rows are sparse and the basis stays small.
            parameters.glop.use_dual_simplex = True
            parameters.glop.use_preprocessing = False
        program = mathopt.Model.from_model_proto(model)
        solver = mathopt.SolverType.HIGHS if integral else mathopt.SolverType.GLOP
        with _QUIET:
            result = mathopt.solve(program, solver, params=parameters)
        finished = result.termination.reason == mathopt.TerminationReason.OPTIMAL
        least = result.best_objective_bound() if integral or finished else float("-inf")
        found = result.has_primal_feasible_solution() and (integral or finished)
        bound = None
        if least > float("-inf"):
            bound = ((least - SAFETY * abs(least)) * scale + self.offset) * self.factor
        values = [float(v) for v in result.variable_values(list(program.variables()))] if found else None
        return Outcome(result.termination.reason in INFEASIBLE, finished, bound, values)
