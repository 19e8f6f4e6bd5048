"""Parts of the search space: a program under fixings, and boxes around solutions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from stic.compiler.plan import Plan, Problem
from stic.compiler.planner.budget_rows import finished
from stic.compiler.planner.ilp import Aim, Program, build
from stic.compiler.planner.relax import Relaxer
from stic.compiler.planner.solution import hint

READ_AHEAD = (2, 1, 0)  # tried besides reading ahead freely, where memory is limited
WHOLE = 1e-4  # of a shard; a relaxed number of shards this near a whole one is one


@dataclass(eq=False)
class Branch:
    """A program under fixings: the first layer that streams is one of first .. until - 1.

    `until` = depth + 1 stands for depth and none at all. Along a path of submodels, least .. most shards are kept.
    """

    program: Program
    relaxer: Relaxer
    read_ahead: int
    resident: int  # the table
    first: int
    until: int
    least: int = 1
    most: int = 1 << 30
    bound: float = math.inf
    relaxed: list[float] = field(default_factory=list)
    exhausted: bool = False

    def fixed(self) -> dict[int, int]:
        """Fixed variables by index."""
        out = {self.program.rho.index: self.resident}
        out |= {x.index: 0 for x in self.program.streams[: self.first]}
        out |= {x.index: 0 for x in self.program.started[: self.first]}
        out |= {x.index: 1 for x in self.program.started[self.until - 1 :]}
        joined = self._joined()
        return out | {x.index: 1 for x in joined[: self.least]} | {x.index: 0 for x in joined[self.most :]}

    def _joined(self) -> list[Any]:
        """Variables of the shards along the path."""
        path = self.program.problem.path
        return [] if path is None else [self.program.y[k][s][0] for k, s in path.order]

    def halved(self) -> list[Branch]:
        """Two branches for this one, by the first layer that streams; none where only one layer is left."""
        if self.until <= self.first + 1 or not self.program.started:
            return []
        middle = (self.first + self.until) // 2
        return [replace(self, until=middle), replace(self, first=middle)]

    def cut(self) -> list[Branch]:
        """Two branches for this one, of smaller and of larger submodels; none where the relaxed one is a submodel.

        A relaxation may keep a part of a shard, with bits as if it were whole. Neither branch lets it.
        """
        kept = sum(self.relaxed[x.index] for x in self._joined()) if self.relaxed else 0.0
        if abs(kept - round(kept)) < WHOLE:
            return []
        return [replace(self, most=math.floor(kept), relaxed=[]), replace(self, least=math.ceil(kept), relaxed=[])]


def roots(problem: Problem, aim: Aim, floor: float | None) -> tuple[list[Branch], Relaxer | None]:
    """Branches that together hold every plan (with a quality of at least `floor`), not relaxed yet, and a cover.

    Without a limit on memory, reading ahead freely is best. The table is decided before relaxing, since a relaxation
    would hold a part of it. The cover is a program whose bound holds for all branches, where there are several: it
    reads ahead freely and buffers as if it did not.
    """
    depth, budget = problem.store.blocks, problem.budget
    limited = budget.memory_bytes is not None or aim == "memory"
    free = math.inf if budget.memory_bytes is None else budget.memory_bytes - problem.fixed_bytes
    out: list[Branch] = []
    base = build(problem, floor)
    common = Relaxer(base.model)
    for read_ahead in (depth, *(r for r in READ_AHEAD if r < depth - 1 and limited)):
        program = finished(base, read_ahead, aim)
        relaxer = Relaxer(program.model, common)
        for resident in (0, 1) if problem.table_may_stay and problem.table_bytes <= free else (0,):
            for first, until in ((0, 1), (1, depth + 1)) if program.started else ((0, depth + 1),):
                out.append(Branch(program, relaxer, read_ahead, resident, first, until))
    cover = Relaxer(finished(base, depth, aim, 0).model, common) if len(out) > 1 else None
    return out, cover


def box(program: Program, around: list[float], width: int) -> dict[int, int]:
    """Fixings that keep every shard's fidelity and every resident run within `width` of a solution."""
    out: dict[int, int] = {}

    def fence(variables: list[Any]) -> None:
        count = sum(x if isinstance(x, int) else around[x.index] for x in variables)
        low, high = math.floor(count + 1e-6) - width, math.ceil(count - 1e-6) + width
        for i, x in enumerate(variables):
            if not isinstance(x, int) and not low <= i < high:
                out[x.index] = int(i < low)

    for rows in program.y:
        for row in rows:
            fence(row)
    for layer in program.runs:
        for r in layer:
            # Where nothing can be resident, `split` holds the very variables of `base`: y, fenced above.
            if any(a is not b for a, b in zip(r.split, r.base, strict=True)):
                fence(r.split)
    return out


def values_of(program: Program, plan: Plan) -> list[float]:
    """The plan's values of the program's variables (of those that `hint` sets)."""
    model = program.model.clone()
    model.clear_hints()
    hint(program, model, plan)
    proto = model.Proto()
    values = [0.0] * len(proto.variables)
    for i, v in zip(list(proto.solution_hint.vars), list(proto.solution_hint.values), strict=True):
        values[i] = float(v)
    return values
