"""The stages of the compiler, in order; this file alone knows the order.

A stage is a function from frozen values to a frozen value. `--until STAGE` stops after one, `--dump DIR` keeps what
each one has to say, as JSON.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stic.compiler import device, importance, task
from stic.compiler.assembly import Materials, assemble_package, collect
from stic.compiler.codegen import generate
from stic.compiler.export import export_model
from stic.compiler.frontend import load_model
from stic.compiler.model import Model
from stic.compiler.options import CompileOptions, Progress, silent
from stic.compiler.packager import write_package
from stic.compiler.plan import ComputeCost, IoCost, Plan, Problem, to_json
from stic.compiler.planner import solve
from stic.compiler.quantize import QuantizedModel, bytes_per_weight, quantize
from stic.compiler.sharding import ShardedModel, shard
from stic.compiler.simulate import Timeline, simulate
from stic.runtime.errors import InputError
from stic.targets.target import Target, load

STAGES = {
    "load": "read the graph and recognise the encoder in it",
    "shard": "order heads and neurons by importance and cut every layer into slices",
    "quantize": "fit codebooks and split every weight into nested bit planes",
    "profile": "measure what each bitwidth of each shard is worth",
    "device": "measure, or look up, what reading and computing cost on the target",
    "plan": "decide bitwidth, residence and load order of every shard",
    "check": "replay the plan without the planner's code and compare with its claim",
    "generate": "compile kernels for the target",
    "package": "write the package",
}
BITS = (2, 3, 4, 5, 6, 8)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CompileResult:
    """What the stages made, as far as they went; fields of later stages are None."""

    model: Model
    target: Target
    materials: Materials | None = None
    importance: importance.Importance | None = None
    problem: Problem | None = None
    plan: Plan | None = None
    timeline: Timeline | None = None
    package: Path | None = None


class _Stop(Exception):
    """Raised after the stage that `--until` names."""


class _Run:
    """Runs stages one after another: tells progress, writes dumps, stops where asked."""

    def __init__(self, options: CompileOptions, progress: Progress) -> None:
        if options.until is not None and options.until not in STAGES:
            raise InputError(f"there is no stage {options.until!r}; the stages are {', '.join(STAGES)}")
        self.options, self.progress = options, progress

    def stage(self, name: str, work: Callable[[Callable[[int, int], None]], T]) -> T:
        """Run one stage; `work` gets a callback for its own progress."""
        self.progress(name, 0, 0)
        value = work(lambda done, total: self.progress(name, done, total))
        return value

    def finished(self, name: str, summary: dict[str, Any]) -> None:
        """Note what a stage made; stop if this was the last one wanted."""
        if self.options.dump is not None:
            self.options.dump.mkdir(parents=True, exist_ok=True)
            number = list(STAGES).index(name)
            path = self.options.dump / f"{number}-{name}.json"
            path.write_text(json.dumps({"stage": name, "what": STAGES[name], **summary}, indent=1, default=str))
        if self.options.until == name:
            raise _Stop


def read_model(path: Path) -> Model:
    """Read MODEL: an .onnx file, or a Hugging Face directory, which is exported to a temporary file first."""
    if not path.is_dir():
        return load_model(path)
    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        onnx = Path(folder) / f"{path.name or 'model'}.onnx"
        export_model(path, onnx)
        model = load_model(onnx)
    tokenizer = path / "tokenizer.json"
    return replace(model, tokenizer=tokenizer if tokenizer.exists() else None, source=path)


def plan_model(options: CompileOptions, progress: Progress = silent) -> CompileResult:
    """Run the stages up to the checked plan; see `compile_model`."""
    return _compile(options, progress, write=False)


def compile_model(options: CompileOptions, progress: Progress = silent) -> CompileResult:
    """Compile a model into a package at `options.output`.

    Raises a kind of SticError for whatever the user can mend; the output is written whole or not at all.
    """
    return _compile(options, progress, write=True)


def _compile(options: CompileOptions, progress: Progress, write: bool) -> CompileResult:
    run = _Run(options, progress)
    target = load(options.target)
    threads = options.threads or target.threads
    lanes = options.lanes or device.DEFAULT_LANES
    model = run.stage("load", lambda _: read_model(options.model))
    result = CompileResult(model, target)
    try:
        run.finished("load", _describe(model))
        length = min(options.max_length, model.max_length)
        examples = _calibration(options, model)

        sharded = run.stage("shard", lambda _: _shard(options, model, examples, length))
        run.finished("shard", asdict(sharded.geometry))

        quantized = run.stage("quantize", lambda _: _quantize(options, sharded, examples, length))
        materials = collect(quantized, options.full_bits, length, threads, lanes)
        result = replace(result, materials=materials)
        run.finished("quantize", {"bits_per_weight": {b: 8 * bytes_per_weight(quantized, b) for b in BITS}})

        bits = BITS + ((options.full_bits,) if options.full_bits else ())
        worth = run.stage("profile", lambda tick: _importance(options, quantized, examples, length, bits, tick))
        result = replace(result, importance=worth)
        run.finished("profile", worth.summary())

        io, compute = run.stage("device", lambda tick: _costs(options, target, materials, threads, lanes, tick))
        run.finished("device", {"io": asdict(io), "compute": asdict(compute)})

        problem = _problem(options, materials, worth, io, compute, length)
        result = replace(result, problem=problem)
        plan = run.stage("plan", lambda _: solve(problem, options.planner, options.bits, options.time_limit_s))
        result = replace(result, plan=plan)
        run.finished("plan", to_json(plan))

        timeline = run.stage("check", lambda _: _check(plan, problem))
        result = replace(result, timeline=timeline)
        run.finished("check", {"latency_us": timeline.latency_us, "peak_bytes": timeline.peak_bytes})
        if write:
            package = _write(run, options, target, materials, result)
            result = replace(result, package=package)
    except _Stop:
        pass
    return result
