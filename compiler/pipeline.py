"""The stages of the compiler, in order; this file alone knows the order.

A stage is a function from frozen values to a frozen value. Linear algebra runs on one thread: its matrices are small,
and threads that meet at every product cost more than they save; processes share the work instead. `--until STAGE` stops
after one stage, `--dump DIR` keeps what each one has to say, as JSON.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from stic.compiler.array_cache import Note
from stic.compiler.choice import Trial, best_plan, trial_on
from stic.compiler.device.lookup import device_costs
from stic.compiler.device.measure import DEFAULT_LANES
from stic.compiler.importance.examples import Batch, Examples
from stic.compiler.importance.file import load as load_importance
from stic.compiler.importance.jobs import Workers
from stic.compiler.importance.measure import Importance, ProfileSettings, sample
from stic.compiler.importance.measure import profile as measure_importance
from stic.compiler.importance.tokens import Tables
from stic.compiler.inputs import (
    calibration_examples,
    class_names,
    offered_bits,
    profile_settings,
    read_model,
    wanted_target,
)
from stic.compiler.memory.placement import place_extents
from stic.compiler.model import Model
from stic.compiler.options import CompileOptions, longest_input
from stic.compiler.package.assembly import Materials, Planned, assemble_package, claim, collect
from stic.compiler.package.kernels import GpuProgram, generate, generate_program
from stic.compiler.package.writer import check_output, write_package
from stic.compiler.plan import Plan, Problem, to_json
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.planner.costs import Costs, paced, with_rows
from stic.compiler.planner.family import plan_family
from stic.compiler.progress import Progress, silent
from stic.compiler.quantization.quantize import QuantizedModel, bytes_per_weight
from stic.compiler.sharding import ShardedModel, shard
from stic.compiler.simulate import ReplayError, Timeline, check, simulate
from stic.compiler.stage_cache import ordered_units, quantized_model, solved
from stic.runtime.errors import InputError
from stic.runtime.format import LEVEL_BITS
from stic.runtime.gpu_format import PROGRAM_FILE, Storage
from stic.runtime.native import cache_dir
from stic.schedules.pack import interleave
from stic.targets.target import Target
from stic.targets.toolchain import find_c_compiler

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
MOMENT_SEQUENCES = 256  # calibration sequences that input moments are taken from

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CompileResult:
    """What the stages made, as far as they went; fields of later stages are None."""

    model: Model
    target: Target
    materials: Materials | None = None
    importance: Importance | None = None
    problem: Problem | None = None
    trial: Trial | None = None  # None also where --trial-tokens 0 asks for none
    plan: Plan | None = None
    timeline: Timeline | None = None
    family: tuple[tuple[Plan, Timeline], ...] = ()  # all plans, this one first; empty: it is the only one
    package: Path | None = None
    notes: tuple[str, ...] = ()  # of the caches, for people


class _Stop(Exception):
    """Raised after the stage that `--until` names."""


class _Run:
    """Runs stages one after another: tells progress, writes dumps, stops where asked."""

    def __init__(self, options: CompileOptions, progress: Progress) -> None:
        if options.until is not None and options.until not in STAGES:
            raise InputError(f"there is no stage {options.until!r}; the stages are {', '.join(STAGES)}")
        self.options, self.progress = options, progress
        self.notes: list[str] = []

    def stage(self, name: str, work: Callable[[Callable[[int, int], None]], T]) -> T:
        """Run one stage; `work` gets a callback for its own progress."""
        self.progress(name, 0, 0)
        return work(lambda done, total: self.progress(name, done, total))

    def finished(self, name: str, summary: dict[str, Any]) -> None:
        """Note what a stage made; stop if this was the last one wanted."""
        if self.options.dump is not None:
            self.options.dump.mkdir(parents=True, exist_ok=True)
            number = list(STAGES).index(name)
            path = self.options.dump / f"{number}-{name}.json"
            path.write_text(json.dumps({"stage": name, "what": STAGES[name], **summary}, indent=1, default=str))
        if self.options.until == name:
            raise _Stop


def plan_model(options: CompileOptions, progress: Progress = silent) -> CompileResult:
    """Run the stages up to the checked plan; see `compile_model`."""
    with threadpool_limits(1):
        return _compile(options, progress, write=False)


def compile_model(options: CompileOptions, progress: Progress = silent) -> CompileResult:
    """Compile a model into a package at `options.output`.

    Raises a kind of SticError for whatever the user can mend; the output is written whole or not at all.
    """
    if options.output is None:
        raise InputError("compiling needs a directory for the package: name one with -o")
    with threadpool_limits(1):
        return _compile(options, progress, write=True)


def _compile(options: CompileOptions, progress: Progress, write: bool) -> CompileResult:
    run = _Run(options, progress)
    target = wanted_target(options)
    threads, lanes = options.threads or target.threads, options.lanes or DEFAULT_LANES
    if write:
        # What is bound to fail is worth knowing before minutes of measuring.
        find_c_compiler(target)
        check_output(options.output or Path())
    model = run.stage("load", lambda _: read_model(options.model, options.model_output))
    result = CompileResult(model, target)
    try:
        run.finished("load", _describe(model))
        length = longest_input(options.max_length, model.max_length)
        calibration = calibration_examples(options, model)
        bits = offered_bits(options)
        settings = profile_settings(options, model, bits, length)
        examples, batches = sample(calibration, model.tokenizer or Path(), length, settings, Tables.of(model))

        sharded = run.stage("shard", lambda _: _shard(options, model, batches, run.notes.append))
        run.finished("shard", asdict(sharded.geometry))

        quantized = run.stage("quantize", lambda tick: _quantize(options, sharded, batches, tick, run.notes.append))
        materials = collect(quantized, options.full_bits, length, threads, lanes, options.row_type)
        result = replace(result, materials=materials)
        run.finished("quantize", {"bits_per_weight": {b: 8 * bytes_per_weight(quantized, b) for b in LEVEL_BITS}})

        worth = run.stage("profile", lambda tick: _worth(options, quantized, examples, settings, tick))
        result = replace(result, importance=worth)
        run.finished("profile", {"rho": worth.rho, "metric": worth.metric, "calibration": worth.calibration})

        costs = run.stage("device", lambda tick: device_costs(options, target, materials, bits, tick, run.notes.append))
        if options.storage is not None:
            costs = paced(costs, options.storage)
        costs = with_rows(costs, model.hidden, options.row_type)
        on_gpu = {} if costs.gpu is None else {"gpu": asdict(costs.gpu), "hop_us": costs.hop_us}
        facts = {"io": asdict(costs.io), "compute": asdict(costs.compute), **on_gpu, "notes": costs.notes}
        run.finished("device", facts)

        problem = _problem(options, materials, worth, costs)
        trial = _trial(options, quantized, calibration, settings)
        result = replace(result, problem=problem, trial=trial)

        def solve(asked: Problem) -> Plan:
            return _plan(options, asked, costs, trial, run.notes.append)

        found = run.stage("plan", lambda tick: plan_family(problem, options.family, solve, tick))
        plans = found.plans
        run.notes += found.notes
        # What was left out of the family has no tables in the index.
        problem = replace(problem, fixed_bytes=materials.fixed_bytes(len(plans)))
        result = replace(result, problem=problem, plan=plans[0])
        run.finished("plan", _listed([to_json(plan) for plan in plans]))

        timelines = run.stage("check", lambda _: _check(plans, problem, materials, options.gpu_storage))
        family = tuple(zip(plans, timelines, strict=True)) if len(plans) > 1 else ()
        result = replace(result, timeline=timelines[0], family=family)
        run.finished("check", _listed([{"latency_us": t.latency_us, "peak_bytes": t.peak_bytes} for t in timelines]))
        if write:
            result = replace(result, package=_write(run, target, result))
    except _Stop:
        pass
    return replace(result, notes=tuple(run.notes))


def _describe(model: Model) -> dict[str, Any]:
    sizes = {name: getattr(model, name) for name in ("hidden", "heads", "head_dim", "ffn", "max_length", "elastic")}
    head = [f"{d.linear.weight.shape[0]} features, {d.activation}" for d in model.head.dense]
    return {"name": model.name, "layers": len(model.layers), **sizes, "pooling": model.head.pooling, "head": head}


def _shard(options: CompileOptions, model: Model, batches: tuple[Batch, ...], note: Note) -> ShardedModel:
    if model.elastic:
        return shard(model, options.slices)  # trained in the order it has
    return shard(model, options.slices, *ordered_units(model, batches, cache_dir() / "order", note))


def _quantize(
    options: CompileOptions,
    sharded: ShardedModel,
    batches: tuple[Batch, ...],
    tick: Callable[[int, int], None],
    note: Note,
) -> QuantizedModel:
    sequences = [ids[mask].astype(np.int64) for b in batches for ids, mask in zip(b.ids, b.mask, strict=True)]
    sequences = sequences[:: -(-len(sequences) // MOMENT_SEQUENCES)]
    return quantized_model(sharded, options.quantizer, sequences, cache_dir() / "quantized", tick, note)


def _worth(
    options: CompileOptions,
    quantized: QuantizedModel,
    examples: Examples,
    settings: ProfileSettings,
    tick: Callable[[int, int], None],
) -> Importance:
    if options.importance is None:
        workers, cache = Workers(options.jobs, options.cluster), cache_dir() / "importance"
        return measure_importance(quantized, examples, settings, None, workers, cache, tick)
    found, geometry = load_importance(options.importance), quantized.sharded.geometry
    if found.presence.shape != (geometry.layers, geometry.slices) or found.bits != settings.bits:
        raise InputError(
            f"{options.importance} covers {found.presence.shape[0]} layers of {found.presence.shape[1]} slices at"
            f" {found.bits} bits, but this model has {geometry.layers} of {geometry.slices} and the plan offers"
            f" {settings.bits}: run `stic profile` on it again"
        )
    return found


def _problem(options: CompileOptions, materials: Materials, worth: Importance, costs: Costs) -> Problem:
    elastic = materials.quantized.sharded.model.elastic
    return Problem(
        store=materials.store,
        bits=tuple(worth.bits),
        gain=worth.gain,
        presence=worth.presence,
        elastic=elastic,
        path=worth.path if elastic else None,
        io=costs.io,
        compute=costs.compute,
        length=materials.sizes.max_length,
        fixed_bytes=materials.fixed_bytes(1 + len(options.family)),
        table_bytes=len(materials.embeddings),
        budget=options.budget,
        margin=options.margin,
        gpu=costs.gpu,
        hop_us=costs.hop_us,
        gpu_bytes=0 if costs.gpu is None else materials.gpu_bytes(options.gpu_storage),
        row_type=materials.row_type,
        places=("gpu",) * materials.store.layers if options.place == "gpu" else (),
    )


def _trial(
    options: CompileOptions, quantized: QuantizedModel, calibration: Examples, settings: ProfileSettings
) -> Trial | None:
    """What the ilp's plan and greedy's are compared on; None: nothing, the ilp's is taken."""
    if not options.trial_tokens:
        return None
    more = replace(settings, tokens=options.trial_tokens)
    return trial_on(calibration, quantized, more, Workers(options.jobs, options.cluster), cache_dir() / "importance")


def _plan(options: CompileOptions, problem: Problem, costs: Costs, trial: Trial | None, note: Note) -> Plan:
    how = (options.time_limit_s, options.gap, cache_dir() / "plans", note)
    if trial is not None and (options.planner, options.bits) == ("ilp", None):
        plan = best_plan(problem, trial, *how)
    else:
        plan = solved(problem, options.planner, options.bits, *how)
    return replace(plan, notes=(*plan.notes, *costs.notes))


def _listed(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """What there is to say of the first plan, and of all of them where there are several."""
    return {**summaries[0], **({"family": summaries} if len(summaries) > 1 else {})}


def _check(plans: tuple[Plan, ...], problem: Problem, materials: Materials, storage: Storage) -> list[Timeline]:
    """Replay each plan against the planner's claim, and against the memory that the packager will lay out."""
    timelines = []
    for plan in plans:
        timeline = check(plan, problem, claim_of(plan, problem))
        laid_out = claim(materials, plan, place_extents(plan, materials.store), storage, len(plans))
        if laid_out != timeline.peak_bytes:
            raise ReplayError(f"the replay holds {timeline.peak_bytes} bytes, the package will hold {laid_out}")
        timelines.append(timeline)
    return timelines


def _holds_on_cpu(plan: Plan, problem: Problem) -> bool:
    """Whether a plan meets its deadline with all layers on the CPU, as where the GPU fails; memory only shrinks."""
    moved = replace(plan, layers=tuple(replace(layer, place="cpu") for layer in plan.layers))
    latency_us = plan.budget.latency_us
    return latency_us is None or simulate(moved, problem).latency_us <= latency_us * (1 - plan.margin)


def _replayed(plan: Plan, timeline: Timeline) -> Planned:
    """A plan with what its replay says, as a package holds it."""
    return Planned(plan, round(timeline.latency_us), tuple(asdict(event) for event in timeline.events))


def _write(run: _Run, target: Target, result: CompileResult) -> Path:
    """Compile the kernels and write the package."""
    materials, plan, timeline, output = result.materials, result.plan, result.timeline, run.options.output
    problem, storage = result.problem, run.options.gpu_storage
    assert materials is not None and plan is not None and timeline is not None and output is not None
    assert problem is not None
    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        kernels, text = Path(folder) / "kernels.so", Path(folder) / PROGRAM_FILE

        def compiled() -> GpuProgram | None:
            generate(materials.kernel_shape, target, kernels)
            if not plan.on_gpu or target.gpu is None:
                return None
            return generate_program(materials.kernel_shape, target.gpu.style, storage, interleave(target), text)

        program = run.stage("generate", lambda _: compiled())
        sizes = {path.name: path.stat().st_size for path in (kernels, text) if path.exists()}
        run.finished("generate", {"bytes": sizes})
        default = _replayed(plan, timeline)
        parts = assemble_package(
            materials,
            plan,
            target,
            kernels,
            predicted_us=default.predicted_us,
            timeline=default.timeline,
            labels=class_names(result.model),
            program=program,
            fallback=_holds_on_cpu(plan, problem),
            also=tuple(_replayed(*one) for one in result.family[1:]),
            keep_planes=run.options.keep_planes,
        )
        run.stage("package", lambda tick: write_package(parts, output, tick))
        run.finished("package", {"output": str(output), "claimed_bytes": parts.claimed_bytes})
    return output
