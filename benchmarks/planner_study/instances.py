"""The random instances: study.toml's ranges, drawn, as problems that some plan is known to solve."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planner_study.gains import Measured, draw
from benchmarks.planner_study.synthetic import BERT_BASE, BERT_LARGE, MINILM, Device, problem_of
from stic.compiler.plan import Budget, Claim, Problem
from stic.compiler.planner.branch import READ_AHEAD
from stic.compiler.planner.closed_form import CostTable, LayerCost, claim

GEOMETRIES = {g.name: g for g in (BERT_BASE, BERT_LARGE, MINILM)}
UP = 1 + 1e-9  # floating point may not make the least budget infeasible


@dataclass(frozen=True, eq=False)
class Instance:
    """One problem, and what was drawn for it."""

    number: int
    facts: dict[str, Any]
    problem: Problem

    @property
    def name(self) -> str:
        """For people."""
        f, form = self.facts, "elastic" if self.facts["elastic"] else "whole"
        budget = f"{f['latency_us'] / 1000:.0f} ms, {f['limit_bytes'] / 1e6:.1f} MB {f['kind']}"
        return f"{self.number:3} {f['geometry']} {form}, {f['bytes_per_s'] / 1e6:.0f} MB/s, {budget}"


def read(path: Path) -> dict[str, Any]:
    """The study's settings."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def instance(number: int, study: dict[str, Any], sources: tuple[Measured, ...]) -> Instance:
    """Instance `number`: the same for the same settings, whichever others there are."""
    rng = np.random.default_rng((study["seed"], number))
    turns = list(product(study["geometries"], study["elastic"], study["kinds"]))
    geometry_name, elastic, kind = turns[number % len(turns)]
    geometry = GEOMETRIES[geometry_name]
    source = _one([s for s in sources if s.path is not None or not elastic], rng)
    ranges = study["device"]
    facts = {name: _between(ranges[name], rng) for name in ("bytes_per_s", "request_us", "row_us", "macs_per_s")}
    device = Device("drawn", **facts)
    tokens = _one(ranges["tokens"], rng)
    gain, path = draw(source, geometry.layers, geometry.slices, rng, **study["gains"])
    made = problem_of(geometry, device, number, Budget(), elastic, tokens, source.bits)
    problem = replace(made, gain=gain, path=path if elastic else None).along_path
    budget, ends = _budget(problem, kind, study["budget"], rng)
    chosen = {"geometry": geometry.name, "elastic": elastic, "kind": kind, "gains": source.name, "tokens": tokens}
    limits = {"latency_us": budget.latency_us, "limit_bytes": budget.memory_bytes or budget.preload_bytes}
    return Instance(number, chosen | facts | limits | ends, replace(problem, budget=budget))


def _one(choices: Any, rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _between(ends: Sequence[float], rng: np.random.Generator) -> float:
    """Log-uniform."""
    least, most = ends
    return float(least * (most / least) ** rng.uniform()) if most > least else float(least)


def _budget(
    problem: Problem, kind: str, settings: dict[str, Any], rng: np.random.Generator
) -> tuple[Budget, dict[str, float]]:
    """A budget between what barely fits and what fits everything, and those two ends.

    The shortest deadline is that of the smallest model with everything resident: all shards at the lowest bits, of
    an elastic model a small submodel. The longest is that of the whole model at full precision with nothing resident.
    The least memory is what the smallest model takes at the deadline drawn; the most is all that the whole model can
    hold.
    """
    depth, width = problem.store.blocks, problem.store.most_slices
    whole, small = [width] * depth, [width] * depth
    if problem.path is not None:
        kept = [k for k, _ in problem.path.order[: round(settings["least_share"] * depth * width)]]
        small = [kept.count(k) for k in range(depth)]
    table = CostTable(problem)
    low, high = problem.bits[0], problem.bits[-1]
    shortest = _held(problem, table, small, low, sum(small), kind == "memory", depth)
    longest = _held(problem, table, whole, high, 0, False, depth)
    deadline = math.ceil(UP * _between((shortest.latency_us, longest.latency_us), rng))
    fitting = [c for c in _ways(problem, table, small, low, kind) if c.latency_us <= deadline]
    most = _held(problem, table, whole, high, sum(whole), kind == "memory", depth)
    ends = {"shortest_us": shortest.latency_us, "longest_us": longest.latency_us}
    if kind == "memory":
        least_bytes, most_bytes = min(c.peak_bytes for c in fitting), most.peak_bytes
        budget = Budget(deadline, math.ceil(_between((least_bytes, most_bytes), rng)), None)
    else:
        most_bytes = most.preload_bytes
        least_bytes = max(min(c.preload_bytes for c in fitting), most_bytes / 10 ** settings["decades"])
        budget = Budget(deadline, None, math.ceil(_between((least_bytes, most_bytes), rng)))
    return budget, ends | {"least_bytes": least_bytes, "most_bytes": most_bytes}


def _ways(problem: Problem, table: CostTable, widths: list[int], bits: int, kind: str) -> Iterator[Claim]:
    """Claims of plans of this submodel at these bits; resident are shards from layer 0 upward, from none to all."""
    depth = problem.store.blocks
    for held in range(sum(widths) + 1):
        if kind == "preload":
            yield _held(problem, table, widths, bits, held, False, depth)
            continue
        for read_ahead, table_resident in product((depth, *READ_AHEAD), (False, True)):
            yield _held(problem, table, widths, bits, held, table_resident, read_ahead)


def _held(
    problem: Problem, table: CostTable, widths: list[int], bits: int, held: int, table_resident: bool, read_ahead: int
) -> Claim:
    """The claim of a plan at uniform bits whose first `held` shards are resident."""
    costs: list[LayerCost] = []
    for k, m in enumerate(widths):
        here = min(m, held)
        held -= here
        costs.append(table.layer(k, (bits,) * m, (bits,) * here + (0,) * (m - here)))
    return claim(problem, costs, table_resident, read_ahead)
