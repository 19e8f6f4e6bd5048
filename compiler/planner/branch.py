"""Parts of the search space: a program under fixings, and boxes around solutions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from stic.compiler.plan import Plan
from stic.compiler.planner.ilp import Program
from stic.compiler.planner.relax import Relaxer
from stic.compiler.planner.solution import hint


@dataclass
class Branch:
    """A program under fixings: the first layer that streams is one of first .. until - 1.

    `until` = depth + 1 stands for depth and none at all.
    """

    program: Program
    relaxer: Relaxer
    read_ahead: int
    resident: int  # the table
    first: int
    until: int
    bound: float = math.inf
    relaxed: list[float] = field(default_factory=list)
    exhausted: bool = False

    def fixed(self) -> dict[int, int]:
        """Fixed variables by index."""
        out = {self.program.rho.index: self.resident}
        out |= {x.index: 0 for x in self.program.streams[: self.first]}
        out |= {x.index: 0 for x in self.program.started[: self.first]}
        return out | {x.index: 1 for x in self.program.started[self.until - 1 :]}


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
