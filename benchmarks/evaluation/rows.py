"""All finished work of a case file as one result (see docs/evaluation.md for what its numbers mean)."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.evaluation import peers
from benchmarks.evaluation.cases import Case, PeerCase, SwitchCase
from benchmarks.evaluation.phases import Evaluation
from benchmarks.evaluation.plans import Pace, at_pace, bandwidth_of, claimed_bytes, facts
from benchmarks.evaluation.results import FORMAT
from benchmarks.evaluation.stored import stored
from benchmarks.kernels.place import machine, versions
from stic.targets.target import load

Json = dict[str, Any]


def result(evaluation: Evaluation) -> Json:
    """The content of the result file: rows of all cases that are finished or failed."""
    tasks = evaluation.prepared.values()
    rows = [_row(evaluation, case) for case in evaluation.cases.cases]
    rows += [_peer_row(evaluation, case) for case in evaluation.cases.peers]
    return {
        "format": FORMAT,
        "machine": _machine(evaluation),
        "versions": versions(),
        "command": ["python", "-m", "benchmarks.evaluation", *sys.argv[1:]],
        "notes": _notes(evaluation),
        "costs": {one.name: _costs(evaluation, one.name) for one in tasks},
        "full_model": {one.name: _accuracy(evaluation, evaluation.keys.model_accuracy(one)) for one in tasks},
        "store": {one.name: stored(one) | _upgrades(evaluation, one.name) for one in tasks},
        "switch": [row for case in evaluation.cases.switches for row in _switches(evaluation, case)],
        "rows": [row for row in rows if row is not None],
    }


def _row(evaluation: Evaluation, case: Case) -> Json | None:
    """The row of a planner's case; None where it was not measured."""
    answered, run = evaluation.answers[case], evaluation.cases.machine
    row: Json = {"case": answered.asked.to_json(run.tokens, run.threads)}
    if answered.plan is None or answered.timeline is None:
        return row | {"status": "infeasible", "message": answered.message}
    prepared = evaluation.prepared[case.task]
    row |= {
        "plan": facts(answered),
        "predicted_us": answered.timeline.latency_us,
        "margin": answered.plan.margin,
        "claimed_bytes": claimed_bytes(prepared, answered.plan),
    }
    keys = evaluation.latency_key(answered), evaluation.accuracy_key(answered)
    if message := _failure(evaluation, *keys):
        return row | {"status": "failed", "message": message}
    measured, accuracy = evaluation.finished.get("latency", keys[0]), _accuracy(evaluation, keys[1])
    if measured is None or accuracy is None:
        return None
    latency, deadline_us = measured["latency"], answered.asked.deadline_us
    missed = None if deadline_us is None else sum(time > deadline_us for time in latency["times_us"])
    row |= {"status": "ran", "latency": latency | {"missed": missed}, "memory": measured["memory"]}
    if (pace := measured.get("pace")) is not None:
        row |= {"pace": pace, "predicted_at_pace_us": at_pace(prepared, answered, Pace(**pace))}
    row["accuracy"] = accuracy | {"from": answered.digest}
    if "timeline" in measured and any(pattern.matches(case) for pattern in evaluation.cases.timelines):
        predicted = [asdict(event) for event in answered.timeline.events]
        row["timeline"] = {"predicted": predicted, "measured": measured["timeline"]}
    return row | _curve(evaluation, case, measured)


def _peer_row(evaluation: Evaluation, case: PeerCase) -> Json | None:
    prepared, run = evaluation.prepared[case.task], evaluation.cases.machine
    asked = {
        "grid": "peers", "task": case.task, "planner": case.name, "bits": None,
        "bytes_per_s": evaluation.peer_rate(case), "preload_bytes": None, "deadline_us": None, "deadline_ratio": None,
        "tokens": run.tokens, "threads": run.threads,
    }  # fmt: skip
    row: Json = {"case": asked, "mode": case.mode, "plan": None, "predicted_us": None}
    if (reason := peers.absent(case.name)) is not None:
        return row | {"status": "failed", "message": reason}
    keys = evaluation.peer_key(case), evaluation.keys.peer_accuracy(prepared, case.name)
    if message := _failure(evaluation, *keys):
        return row | {"status": "failed", "message": message}
    measured, accuracy = evaluation.finished.get("peer", keys[0]), _accuracy(evaluation, keys[1])
    if measured is None or accuracy is None:
        return None
    row |= {"status": "ran", "latency": measured["latency"], "memory": measured["memory"], "accuracy": accuracy}
    return row | _curve(evaluation, case, measured)


def _curve(evaluation: Evaluation, case: Case | PeerCase, measured: Json) -> Json:
    wanted = any(pattern.matches(case) for pattern in evaluation.cases.memory_curves)
    return {"memory_curve": measured["memory_curve"]} if wanted and measured.get("memory_curve") else {}


def _switches(evaluation: Evaluation, case: SwitchCase) -> list[Json]:
    key = evaluation.keys.switches(evaluation.prepared[case.task], evaluation.family(case))
    found: list[Json] = (evaluation.finished.get("switches", key) or {"rows": []})["rows"]
    return found


def _upgrades(evaluation: Evaluation, name: str) -> Json:
    found = evaluation.finished.get("upgrades", evaluation.keys.upgrades(evaluation.prepared[name]))
    return {} if found is None else {"upgrade": found["rows"]}


def _failure(evaluation: Evaluation, *keys: str) -> str:
    """Why one of a row's measurements failed; empty: none did."""
    return next((evaluation.failures[key] for key in keys if key in evaluation.failures), "")


def _accuracy(evaluation: Evaluation, key: Any) -> Json | None:
    return evaluation.finished.get("accuracy", key)


def _costs(evaluation: Evaluation, name: str) -> Json:
    prepared = evaluation.prepared[name]
    problem = prepared.problem
    cases: list[Case | PeerCase] = [*evaluation.cases.cases, *evaluation.cases.peers]
    rates = {bandwidth_of(prepared, c.bytes_per_s) for c in cases if c.task == name and c.bytes_per_s is not None}
    return {
        "compute_us": prepared.compute_us,
        "layer_us": prepared.layer_us,
        "layer_fp32_bytes": prepared.layer_fp32_bytes,
        "ratio": {str(rate): prepared.ratio(rate) for rate in sorted(rates)},
        "io": asdict(problem.io),
        "compute": asdict(problem.compute),
        "fixed_bytes": problem.fixed_bytes,
        "elastic": problem.elastic,
        "calibration": prepared.calibrated_on,
    }


def _machine(evaluation: Evaluation) -> Json:
    found, place = machine(load("host")), evaluation.place
    return {
        "cpu": found["cpu"],
        "cores": found["cpus"],
        "memory": f"{found['ram_bytes'] / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "storage": _storage(place.device) or "no block device whose reads can be limited",
        "requests": _requests(evaluation.cases.machine.requests_per_s),
        "load average": os.getloadavg()[0],
    }


def _requests(limit: int | None) -> str:
    return "as many as storage serves" if limit is None else f"emulated: at most {limit} a second"


def _storage(device: str | None) -> str | None:
    """A disk's name and model, as the kernel has them."""
    if device is None:
        return None
    block = Path(f"/sys/dev/block/{device}").resolve()
    model = block / "device" / "model"
    return f"{block.name} {model.read_text().strip()}" if model.exists() else block.name


def _notes(evaluation: Evaluation) -> list[str]:
    machine = evaluation.cases.machine
    notes = list(evaluation.place.reasons)
    if machine.dev_rows is not None:
        notes.append(f"accuracy is that of the first {machine.dev_rows} rows of each evaluation file")
    return notes
