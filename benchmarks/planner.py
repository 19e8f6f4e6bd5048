"""Planner study: ilp against greedy on a grid of instances of BERT-base geometry (planner_grid.json).

    python benchmarks/planner.py [--seconds 10] [--workers 2] [--part 1/4] [--out planner.json]

Prints a table and writes JSON: machine, settings, every instance with both objectives, bound, gap, seconds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from stic.compiler.memory_check import verify_extents
from stic.compiler.memory_plan import place_extents
from stic.compiler.plan import Budget, Problem
from stic.compiler.planner import greedy, solve
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.planner.synthetic import BERT_BASE, DEVICES, problem_of
from stic.compiler.simulate import check
from stic.runtime.errors import InfeasibleError

GRID = Path(__file__).with_name("planner_grid.json")


def instances() -> list[tuple[str, Problem]]:
    """(name, problem) of every instance of the grid."""
    devices = {d.name: d for d in DEVICES}
    out = []
    for block in json.loads(GRID.read_text())["blocks"]:
        times = [("ms", t) for t in block.get("latency_ms", [])] + [("x", r) for r in block.get("compute_ratio", [])]
        sizes = [("preload", v) for v in block.get("preload_mb", [])]
        sizes += [("memory", v) for v in block.get("memory_mib", [])]
        for name, seed, (unit, t), (kind, size) in itertools.product(block["devices"], block["seeds"], times, sizes):
            free = problem_of(BERT_BASE, devices[name], seed, Budget(), block["elastic"])
            c = free.compute
            layer_us = c.layer_us + BERT_BASE.slices * min(c.slice_us.values())
            least = c.embed_us + c.head_us + BERT_BASE.layers * layer_us
            latency_us = int(t * 1000 if unit == "ms" else t * least)
            memory, preload = (None, int(size * 1e6)) if kind == "preload" else (int(size * 2**20), None)
            budget = Budget(latency_us, memory, preload)
            title = f"{block['name']} {name} task {seed} {latency_us / 1000:.0f} ms {kind} {size}"
            out.append((title, problem_of(BERT_BASE, devices[name], seed, budget, block["elastic"])))
    return out


def study(name: str, problem: Problem, seconds: float, workers: int) -> dict[str, Any]:
    """Solve one instance by both planners; replay and verify what they answer."""
    began = time.perf_counter()
    yardstick = greedy.solve(problem)
    row: dict[str, Any] = {"instance": name, "greedy": yardstick and yardstick.proof.objective}
    row["greedy_seconds"] = time.perf_counter() - began
    try:
        plan = solve(problem, time_limit_s=seconds, workers=workers)
    except InfeasibleError as error:
        return row | {"status": "infeasible", "message": str(error)}
    check(plan, problem, claim_of(plan, problem))
    verify_extents(plan, problem.store, place_extents(plan, problem.store))
    proof = plan.proof
    return row | {
        "status": proof.status,
        "ilp": proof.objective,
        "bound": proof.bound,
        "gap": proof.gap,
        "seconds": proof.solve_seconds,
        "mean_bits": plan.mean_bits,
        "read_ahead": plan.read_ahead,
        "table_resident": plan.table_resident,
        "full_precision_shards": sum(layer.full for layer in plan.layers),
    }


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if row["status"] == "infeasible":
        return f"{row['instance']:48} {row['message']}"
    yardstick = f"{row['greedy']:9.3f}" if row["greedy"] is not None else "     none"
    gap = "   none" if row["gap"] is None else f"{100 * row['gap']:6.3f}%"
    return f"{row['instance']:48} {yardstick} {row['ilp']:9.3f} {gap} {row['status']:10} {row['seconds']:5.1f} s"


def summary(rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Figures over all feasible instances."""
    solved = [r for r in rows if r["status"] != "infeasible"]
    gaps = [r["gap"] for r in solved if r["gap"] is not None]
    gain = [r["ilp"] / r["greedy"] - 1 for r in solved if r["greedy"]]
    return {
        "instances": len(rows),
        "infeasible": len(rows) - len(solved),
        "greedy_found_none": sum(r["greedy"] is None for r in solved),
        "gap_median": statistics.median(gaps) if gaps else None,
        "gap_worst": max(gaps, default=None),
        "gap_within_half_percent": sum(g <= 0.005 for g in gaps) / max(1, len(solved)),
        "proved_optimal": sum(r["status"] == "optimal" for r in solved) / max(1, len(solved)),
        "gain_over_greedy_mean": statistics.fmean(gain) if gain else None,
        "gain_over_greedy_least": min(gain, default=None),
        "gain_over_greedy_most": max(gain, default=None),
        "seconds_most": max((r["seconds"] for r in solved), default=0.0),
        "time_limit_s": seconds,
    }


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part", default="1/1", help="i/n: every n-th instance, from the i-th")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    i, n = map(int, args.part.split("/"))
    rows = []
    print(f"{'instance':48} {'greedy':>9} {'ilp':>9} {'gap':>7} status     seconds")
    for name, problem in instances()[i - 1 :: n]:
        rows.append(study(name, problem, args.seconds, args.workers))
        print(line(rows[-1]), flush=True)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "ortools": importlib.metadata.version("ortools"),
        "workers": args.workers,
        "part": args.part,
        "summary": summary(rows, args.seconds),
        "rows": rows,
    }
    print(json.dumps(result["summary"], indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
