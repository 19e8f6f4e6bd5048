"""A made-up result of the evaluation, to test its report with: plausible figures, of nothing that was measured."""

import itertools
import math
import random
from typing import Any

MIB = 1 << 20
PLANNERS = ("ilp", "greedy", "pipeline-4", "preload-6")
EXAMPLES = 872
LAYER_BYTES = 7_087_872  # float32, hidden 384
LAYER_US = 3_500.0
PAPER_BYTES_PER_S = round(LAYER_BYTES / (LAYER_US * 339 / 95) * 1e6)


def made_up(
    tasks: tuple[str, ...] = ("sst2",),
    rates: tuple[int, ...] = (100_000_000, PAPER_BYTES_PER_S),
    deadlines: tuple[float, ...] = (0.6, 1.5, 4.0),
    preloads: tuple[int, ...] = (MIB, 4 * MIB),
    planners: tuple[str, ...] = PLANNERS,
    seed: int = 1,
) -> dict[str, Any]:
    """A result of the evaluation, with plausible figures."""
    chance = random.Random(seed)
    compute_us = 6 * LAYER_US
    rows = []
    for task, rate, ratio, preload, name in itertools.product(tasks, rates, deadlines, preloads, planners):
        planner, _, bits = name.rpartition("-") if name[-1].isdigit() else (name, "", "")
        if bits and preload != preloads[0]:
            continue
        case = {"grid": "main", "task": task, "planner": planner, "bits": int(bits) if bits else None,
                "bytes_per_s": rate, "preload_bytes": None if bits else preload, "deadline_us": int(ratio * compute_us),
                "deadline_ratio": ratio, "tokens": 512, "threads": 1}  # fmt: skip
        rows.append(_row(case, compute_us, chance))
    for task, name, mode in itertools.product(tasks, ("onnxruntime fp32", "onnxruntime int8"), ("resident", "cold")):
        for storage in rates if mode == "cold" else (None,):
            rows.append(_peer(task, name, mode, storage))
    costs = {
        task: {"compute_us": compute_us, "layer_us": LAYER_US, "layer_fp32_bytes": LAYER_BYTES,
               "ratio": {str(rate): LAYER_BYTES / rate * 1e6 / LAYER_US for rate in rates}, "io": {}}
        for task in tasks
    }  # fmt: skip
    step = {"from": 2, "to": 3, "bytes_read": 1_339_392, "plane_bytes": 1_339_392}
    store = {"nested_bytes": 11 * MIB, "six_copies_bytes": 66 * MIB, "of_them_float32_bytes": 40 * MIB,
             "ratio": 11 / 66, "upgrade": [step]}  # fmt: skip
    switch = {"bytes_per_s": rates[0], "from": "1 MiB", "to": "4 MiB", "switch_us": 90.0, "run_us": 30_000.0,
              "share_of_run": 0.003, "missing_bytes": 3 * MIB, "bytes_read": 3 * MIB + 4096}  # fmt: skip
    return {
        "format": 1,
        "machine": {"cpu": "made up", "cores": 2},
        "versions": {"stic": "0", "onnxruntime": "0"},
        "command": ["python", "-m", "benchmarks.evaluation", "full.toml"],
        "costs": costs,
        "full_model": {task: {"metric": "accuracy", "value": 0.885, "n": 872} for task in tasks},
        "store": {task: store for task in tasks},
        "switch": [switch | {"task": task} for task in tasks],
        "rows": rows,
    }


def _row(case: dict[str, Any], compute_us: float, chance: random.Random) -> dict[str, Any]:
    """Streaming takes its bytes; what is planned for a budget takes what the deadline allows, greedy a little less."""
    name, bits, rate = case["planner"], case["bits"], case["bytes_per_s"]
    planned = bits is None
    width = min(1.0, 0.9 * case["deadline_ratio"])
    full = 10_616_832 * width
    afforded = 8 * (0.8 * case["deadline_us"] / 1e6 * rate + (case["preload_bytes"] or 0)) / full
    mean = bits or min(8.0, afforded * (1.0 if name == "ilp" else 0.7))
    streamed = 0 if name == "preload" else max(0, mean / 8 * full - (case["preload_bytes"] or 0))
    own_us = max(compute_us * width, streamed / rate * 1e6) + 2000
    if mean < 1.5 or (planned and own_us > case["deadline_us"]):
        return {"case": case, "status": "infeasible", "message": "no plan fits", "plan": None}
    value = 0.885 - 0.5 * math.exp(-mean) - 0.15 * (1 - width) ** 2
    grid = [[max(2, round(mean))] * max(1, round(12 * width)) for _ in range(6)]
    grid[0][0] += name == "greedy"
    times = [own_us * (1.0 + chance.gauss(0.005, 0.01)) for _ in range(30)]
    claimed = int(5 * MIB + (mean / 8 * full if name == "preload" else case["preload_bytes"] or 0))
    row = {
        "case": case, "status": "ran", "predicted_us": own_us, "margin": 0.02, "claimed_bytes": claimed,
        "plan": {"digest": f"{name}{bits}{mean:.3f}{width}", "mean_bits": mean, "objective": mean, "bits": grid},
        "latency": _latency(times, "cgroup+paced"),
        "memory": {"rss_bytes": int(claimed * 0.97), "cgroup_peak_bytes": int(claimed * 0.93),
                   "cgroup_limit_bytes": claimed, "engine_bytes": int(claimed * 0.9)},
        "accuracy": _accuracy(value, chance),
        "pace": {"compute": 1.25, "rows": 0.75}, "predicted_at_pace_us": 1.1 * own_us,
    }  # fmt: skip
    if case["deadline_ratio"] == 1.5:
        row |= {"timeline": _timeline(own_us, compute_us * width), "memory_curve": [[0, MIB], [9000, claimed]]}
    return row


def _latency(times: list[float], throttle: str) -> dict[str, Any]:
    ordered = sorted(times)
    return {"times_us": times, "median_us": ordered[len(times) // 2], "p95_us": ordered[-2], "stall_us": 0.0,
            "throttle": throttle, "direct": True, "io_bytes": 4 * MIB}  # fmt: skip


def _timeline(end_us: float, compute_us: float) -> dict[str, Any]:
    step, work = end_us / 6, compute_us / 6
    io = [{"kind": "io", "layer": k, "level": 0, "start_us": k * step, "end_us": (k + 0.8) * step, "bytes": MIB}
          for k in range(6)]  # fmt: skip
    compute = [{"kind": "compute", "layer": k, "level": -1, "start_us": (k + 1) * step - work,
                "end_us": (k + 1) * step, "bytes": 0} for k in range(6)]  # fmt: skip
    measured = [event | {"start_us": 1.02 * event["start_us"], "end_us": 1.02 * event["end_us"]}
                for event in (*io, *compute)]  # fmt: skip
    return {"predicted": [*io, *compute], "measured": measured}


def _accuracy(value: float, chance: random.Random) -> dict[str, Any]:
    """The first examples are easy; at the border, chance decides."""
    right = [i < round(EXAMPLES * value) + chance.gauss(0, 8) for i in range(EXAMPLES)]
    bits = "".join(map(str, map(int, right))).ljust(-(-EXAMPLES // 8) * 8, "0")
    value = sum(right) / EXAMPLES
    half = 1.96 * math.sqrt(value * (1 - value) / EXAMPLES)
    return {"metric": "accuracy", "value": value, "n": EXAMPLES, "low": value - half, "high": value + half,
            "from": "x", "correct": f"{int(bits, 2):0{len(bits) // 4}x}"}  # fmt: skip


def _peer(task: str, name: str, mode: str, rate: int | None) -> dict[str, Any]:
    size = (90 if "fp32" in name else 24) * MIB
    own = 55_000 if "fp32" in name else 33_000
    median = own if rate is None else own + size / rate * 1e6
    return {
        "case": {"grid": "peers", "task": task, "planner": name, "bits": None, "bytes_per_s": rate,
                 "preload_bytes": None, "deadline_us": None, "deadline_ratio": None, "tokens": 512, "threads": 1},
        "mode": mode, "status": "ran", "plan": None, "predicted_us": None, "margin": None, "claimed_bytes": None,
        "latency": _latency([median] * 5, "cgroup"),
        "memory": {"rss_bytes": 60 * MIB + 2 * size, "cgroup_peak_bytes": 40 * MIB + 2 * size,
                   "cgroup_limit_bytes": None, "engine_bytes": None},
        "accuracy": _accuracy(0.885 if "fp32" in name else 0.88, random.Random(0)),
        "memory_curve": [[0, MIB], [300_000, 60 * MIB], [300_000 + median, 60 * MIB + 2 * size]],
    }  # fmt: skip
