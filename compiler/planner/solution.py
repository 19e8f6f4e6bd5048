"""Plans as values of an integer program's variables, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ortools.sat.python import cp_model

from stic.compiler.plan import LayerPlan, Plan
from stic.compiler.planner.closed_form import runs
from stic.compiler.planner.ilp import Program, Term
from stic.runtime.format import BLOCK, FULL, LEVEL_BITS


def hint(p: Program, model: cp_model.CpModel, plan: Plan) -> None:
    """Give `model`, a copy of the program's, a known plan to start from; clocks follow by propagation."""
    bits = p.problem.bits
    add = model.add_hint
    add(p.rho, plan.table_resident)
    for k, layer in enumerate(plan.layers):
        counts = {level: rest for level, *rest in runs(layer.bits, layer.resident, p.problem.store.nested)}
        for s, row in enumerate(p.y[k]):
            for j, x in enumerate(row if s == 0 or row is not p.y[k][0] else ()):
                if not isinstance(x, int):
                    add(x, s < len(layer.bits) and layer.bits[s] >= bits[j])
        on = False
        for r in p.runs[k]:
            base, split, stop = counts.get(r.level, _nothing(p, layer, r.level))
            for s, x in enumerate(r.split):
                if x is not r.base[s]:
                    add(x, s < split)
            on |= stop > split
            add(r.e, stop > split)
            size = (r.last[stop] - r.first[split]) * BLOCK if stop > split else 0
            if r.requests is not r.e:
                add(r.requests, -(-size // p.problem.io.request_bytes))
            for variable, name in r.saved:
                if name == "d":
                    add(variable, split > base)
                else:
                    same, at = (stop == split, stop) if name == "s" else (split == base, split)
                    add(variable, same and r.last[at] > r.first[at])
        add(p.streams[k], on)


def _nothing(p: Program, layer: LayerPlan, level: int) -> list[int]:
    """Counts of a level that no shard of the layer has: its (empty) run starts behind what lies above it."""
    above = layer.full if p.problem.store.nested and level != FULL else 0
    return [above, above, above]


def decode(p: Program, value_of: Callable[[Any], int]) -> tuple[tuple[LayerPlan, ...], bool]:
    """(layers, table_resident) of a solution, given by the value of each variable."""
    problem = p.problem

    def value(x: Term) -> int:
        return x if isinstance(x, int) else int(value_of(x))

    layers = []
    for k, rows in enumerate(p.y):
        bits = [problem.bits[sum(map(value, row)) - 1] for row in rows if value(row[0])]
        held = [0] * len(bits)
        for r in p.runs[k]:
            b = max(problem.bits) if r.level == FULL else LEVEL_BITS[r.level]
            for s in range(len(bits)):
                if value(r.split[s]) > value(r.base[s]):
                    held[s] = max(held[s], b)
        layers.append(problem.decided(k, tuple(bits), tuple(held)))
    return tuple(layers), bool(value(p.rho))
