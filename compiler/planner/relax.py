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

import numpy as np
from ortools.math_opt import model_pb2
from ortools.math_opt.python import mathopt
from ortools.sat.python import cp_model

UNBOUNDED = 1 << 61
SAFETY = 1e-7  # share of a bound given away to floating point
WIDE = 1 << 24  # variables that may be larger are clocks in nanoseconds: solvers see them continuous, in CLOCK_UNIT
CLOCK_UNIT = 1 << 20
LARGE = 4000  # variables; more are worth preprocessing before they are relaxed
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
        are scaled to at most 1, since they mix nanoseconds, blocks and counts. Clocks are counted in milliseconds or
        so: HiGHS takes coefficients up to 1e-9 (its option small_matrix_value) for zero, which is what a nanosecond is
        beside a second.
        """
        proto: Any = model.Proto()
        domains = [list(v.domain) for v in proto.variables]
        self.units = [CLOCK_UNIT if d[-1] - d[0] > WIDE else 1 for d in domains]
        self.domains = [(d[0] / unit, d[-1] / unit) for d, unit in zip(domains, self.units, strict=True)]
        self.row_ids: list[int] = [] if base is None else list(base.row_ids)
        self.columns: list[int] = [] if base is None else list(base.columns)
        self.weights: list[float] = [] if base is None else list(base.weights)
        self.low: list[float] = [] if base is None else list(base.low)
        self.high: list[float] = [] if base is None else list(base.high)
        for i in range(len(self.low), len(proto.constraints)):
            self._add(proto.constraints[i])
        if proto.has_objective():
            # CP-SAT minimises internally: coefficients and offset are negated where the program maximises.
            names = list(proto.objective.vars)
            weights = [w * self.units[i] for i, w in zip(names, list(proto.objective.coeffs), strict=True)]
            self.scale = float(max(map(abs, weights), default=1))
            self.offset, self.factor = proto.objective.offset, proto.objective.scaling_factor or 1.0
            self._model = self._translated(dict(zip(names, weights, strict=True)))

    def _translated(self, objective: dict[int, float]) -> model_pb2.ModelProto:
        """The model without the bounds and kinds of its variables."""
        model = model_pb2.ModelProto()
        model.variables.ids.extend(range(len(self.domains)))
        model.linear_constraints.ids.extend(range(len(self.low)))
        model.linear_constraints.lower_bounds.extend(self.low)
        model.linear_constraints.upper_bounds.extend(self.high)
        names = sorted(objective)
        model.objective.linear_coefficients.ids.extend(names)
        model.objective.linear_coefficients.values.extend(objective[i] / self.scale for i in names)
        order = np.lexsort((self.columns, self.row_ids))
        model.linear_constraint_matrix.row_ids.extend(np.asarray(self.row_ids)[order].tolist())
        model.linear_constraint_matrix.column_ids.extend(np.asarray(self.columns)[order].tolist())
        model.linear_constraint_matrix.coefficients.extend(np.asarray(self.weights)[order].tolist())
        return model

    def _add(self, row: Any) -> None:
        if row.has_linear():
            names, weights, domain = list(row.linear.vars), list(row.linear.coeffs), list(row.linear.domain)
            low, high = domain[0], domain[-1]
        else:
            names, low, high = list(row.bool_or.literals), 1, UNBOUNDED
            weights = [1] * len(names)
        weights = [w * self.units[i] for i, w in zip(names, weights, strict=True)]
        scale = float(max((abs(w) for w in weights), default=1))
        self.row_ids += [len(self.low)] * len(names)
        self.columns += names
        self.weights += [w / scale for w in weights]
        self.low.append(low / scale if low > -UNBOUNDED else float("-inf"))
        self.high.append(high / scale if high < UNBOUNDED else float("inf"))

    def solve(self, fixed: dict[int, int], time_limit_s: float, integral: bool = False, gap: float = 0.0) -> Outcome:
        """Solve with variables fixed by index: the relaxation, or the program itself to a relative `gap`."""
        model = model_pb2.ModelProto()
        model.CopyFrom(self._model)
        model.variables.lower_bounds.extend(fixed.get(i, low) for i, (low, _) in enumerate(self.domains))
        model.variables.upper_bounds.extend(fixed.get(i, high) for i, (_, high) in enumerate(self.domains))
        model.variables.integers.extend(integral and unit == 1 for unit in self.units)
        parameters = mathopt.SolveParameters(time_limit=timedelta(seconds=max(0.01, time_limit_s)))
        if integral:
            parameters.relative_gap_tolerance = gap
        else:
            # Faster here than GLOP's defaults: the rows are sparse and the basis stays small.
            parameters.glop.use_dual_simplex = True
            parameters.glop.use_preprocessing = len(self.domains) > LARGE
        program = mathopt.Model.from_model_proto(model)
        solver = mathopt.SolverType.HIGHS if integral else mathopt.SolverType.GLOP
        with _QUIET:
            result = mathopt.solve(program, solver, params=parameters)
        finished = result.termination.reason == mathopt.TerminationReason.OPTIMAL
        least = result.best_objective_bound() if integral or finished else float("-inf")
        found = result.has_primal_feasible_solution() and (integral or finished)
        bound = None
        if least > float("-inf"):
            bound = ((least - SAFETY * abs(least)) * self.scale + self.offset) * self.factor
        values = None
        if found:
            values = [v * u for v, u in zip(result.variable_values(list(program.variables())), self.units, strict=True)]
        return Outcome(result.termination.reason in INFEASIBLE, finished, bound, values)
