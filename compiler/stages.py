"""What each stage of the compiler does: functions between frozen values. `pipeline` puts them in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from stic.compiler.choice import Trial, best_plan, trial_on
from stic.compiler.device.lookup import device_costs
from stic.compiler.device.workload import DEFAULT_LANES
from stic.compiler.forecast import Forecast, PassCosts, forecast
from stic.compiler.importance.examples import Batch, Examples
from stic.compiler.importance.file import load as load_importance
from stic.compiler.importance.jobs import Workers
from stic.compiler.importance.measure import Importance, ImportanceSettings, measure_importance, sample, worthless
from stic.compiler.importance.tokens import Tables
from stic.compiler.inputs import (
    calibration_examples,
    importance_settings,
    input_length,
    reading_of,
    without_tokenizer,
)
from stic.compiler.memory.placement import place_extents
from stic.compiler.model import Model
from stic.compiler.offers import Quantizer
from stic.compiler.options import BudgetOptions, ImportanceOptions, ModelOptions, PlannerOptions, TargetOptions
from stic.compiler.package import kernels
from stic.compiler.package.assembly import Materials, Planned, assemble_package, claim, collect
from stic.compiler.package.kernels import GpuProgram
from stic.compiler.package.writer import write_package
from stic.compiler.plan import Plan, Problem
from stic.compiler.planner import FIXED
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.planner.costs import Costs, paced, with_rows
from stic.compiler.planner.family import plan_family
from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.sharding import ShardedModel
from stic.compiler.simulate import ReplayError, Timeline, check, simulate
from stic.compiler.stage import Tell
from stic.compiler.stage_cache import UnitOrder, ordered_units, quantized_model, sharded_model, solved
from stic.runtime.errors import InputError
from stic.runtime.gpu_format import PROGRAM_FILE, GpuPrecision, Place
from stic.runtime.native import cache_dir
from stic.schedules.pack import interleave
from stic.targets.target import Target

MOMENT_SEQUENCES = 256  # calibration sequences that input moments are taken from


@dataclass(frozen=True, eq=False)
class Calibration:
    """Texts that importance is measured on: all there are, and the sample that is run."""

    examples: Examples
    tokenizer: Path | Tokenizer
    sampled: Examples
    batches: tuple[Batch, ...]
    settings: ImportanceSettings


@dataclass(frozen=True, eq=False)
class Solver:
    """Who answers a problem, also for other budgets than its own: a sweep asks the same one as a compilation."""

    solve: Callable[[Problem], Plan]  # raises InfeasibleError where there is no plan
    trial: Trial | None  # what the plans of ilp and greedy are compared on; None: nothing was wanted


@dataclass(frozen=True, eq=False)
class Decided:
    """The plans of a package, and the problem that they solve."""

    problem: Problem
    plans: tuple[Plan, ...]  # at least one; the first is the default

    @property
    def default(self) -> Plan:
        """The plan that is used unless a budget is given."""
        return self.plans[0]


@dataclass(frozen=True, eq=False)
class Replays:
    """Every plan of a family, replayed without the planner's code."""

    timelines: tuple[Timeline, ...]
    forecasts: tuple[Forecast, ...] = ()  # of a decoder: of each plan


@dataclass(frozen=True, eq=False)
class Kernels:
    """Compiled kernels, in a folder of their own."""

    library: Path  # kernels.so
    program: GpuProgram | None  # of a GPU, where a layer is placed on one

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by file name."""
        paths = (self.library, *(() if self.program is None else (self.program.path,)))
        return {path.name: path.stat().st_size for path in paths}


@dataclass(frozen=True)
class Written:
    """The package on disk."""

    path: Path
    claimed_bytes: int


def calibrate(
    model: Model,
    options: ModelOptions,
    importance: ImportanceOptions,
    bits: tuple[int, ...],
    needed: bool,
    tell: Tell,
) -> Calibration:
    """Draw calibration examples and turn them into tokens; `bits` are those that a plan may choose from.

    Where something rests on them, it is `needed` to say that they are random for want of a tokenizer.
    """
    length = input_length(options.max_length, model)
    examples, tokenizer = calibration_examples(model, importance.calibration)
    if needed and model.tokenizer is None:
        tell.note(without_tokenizer(model))
    settings = importance_settings(importance, model, bits, length)
    sampled, batches = sample(examples, tokenizer, length, settings, Tables.of(model))
    return Calibration(examples, tokenizer, sampled, batches, settings)


def order(model: Model, calibration: Calibration, tell: Tell) -> UnitOrder:
    """Order heads and neurons by importance; an elastic model keeps the order that it was trained in."""
    if model.elastic:
        return UnitOrder(None, None)
    return ordered_units(model, calibration.batches, cache_dir() / "order", tell.note)


def cut(model: Model, order: UnitOrder, slices: int | None) -> ShardedModel:
    """Cut every layer into slices; None: one for each head."""
    return sharded_model(model, slices, order)


def quantize(sharded: ShardedModel, calibration: Calibration, quantizer: Quantizer, tell: Tell) -> QuantizedModel:
    """Fit codebooks and split every weight into nested bit planes."""
    rows = [(ids, mask) for batch in calibration.batches for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    sequences = [ids[mask].astype(np.int64) for ids, mask in rows]
    sequences = sequences[:: -(-len(sequences) // MOMENT_SEQUENCES)]
    return quantized_model(sharded, quantizer, sequences, cache_dir() / "quantized", tell.tick, tell.note)


def gather(
    quantized: QuantizedModel,
    calibration: Calibration,
    full_bits: int,
    row_type: str,
    target: Target,
    options: TargetOptions,
) -> Materials:
    """Lay out what every plan shares: the store, the trunk, the embedding rows."""
    threads, lanes = options.threads or target.threads, options.lanes or DEFAULT_LANES
    reading = reading_of(quantized.sharded.model)
    return collect(quantized, full_bits, calibration.settings.max_length, threads, lanes, row_type, reading)


def value(
    quantized: QuantizedModel,
    calibration: Calibration,
    options: ImportanceOptions,
    needed: bool,
    workers: Workers,
    tell: Tell,
) -> Importance:
    """Measure what each bitwidth of each shard is worth, or read what was measured before.

    Where gains are not `needed`, since the planner uses none, nothing is measured and nothing is worth anything.
    """
    settings, geometry = calibration.settings, quantized.sharded.geometry
    if not needed and options.file is None:
        return worthless(geometry, settings)
    if options.file is None:
        coder, cache = calibration.tokenizer, cache_dir() / "importance"
        return measure_importance(quantized, calibration.sampled, settings, coder, workers, cache, tell.tick)
    found = load_importance(options.file)
    if found.presence.shape != (geometry.layers, geometry.slices) or found.bits != settings.bits:
        raise InputError(
            f"{options.file} covers {found.presence.shape[0]} layers of {found.presence.shape[1]} slices at"
            f" {found.bits} bits, but this model has {geometry.layers} of {geometry.slices} and the plan offers"
            f" {settings.bits}: run `stic importance` on it again"
        )
    return found


def cost(
    target: Target, materials: Materials, options: TargetOptions, bits: tuple[int, ...], folder: Path, tell: Tell
) -> Costs:
    """Measure, or look up, what reading and computing cost on the target; `folder` is on the storage to measure."""
    costs = device_costs(target, materials, options, bits, folder, tell.tick, tell.note)
    if options.storage is not None:
        costs = paced(costs, options.storage)
    return with_rows(costs, materials.sizes.hidden, materials.row_type)


def pose(
    materials: Materials,
    importance: Importance,
    costs: Costs,
    target: TargetOptions,
    budget: BudgetOptions,
    margin: float,
) -> Problem:
    """Put together all that a planner may know."""
    elastic = materials.contents.elastic
    on_gpu: tuple[Place, ...] = ("gpu",) if target.place == "gpu" else ()
    return Problem(
        store=materials.store,
        bits=tuple(importance.bits),
        gain=importance.gain,
        presence=importance.presence,
        elastic=elastic,
        path=importance.path if elastic else None,
        io=costs.io,
        compute=costs.compute,
        length=materials.sizes.max_length,
        fixed_bytes=materials.fixed_bytes(1 + len(budget.also)),
        table_bytes=len(materials.embeddings),
        budget=budget.main,
        margin=margin,
        gpu=costs.gpu,
        hand_over_us=costs.hand_over_us,
        gpu_bytes=0 if costs.gpu is None else materials.gpu_bytes(target.gpu_precision),
        row_type=materials.row_type,
        places=on_gpu * materials.store.blocks,
    )


def solver(
    quantized: QuantizedModel,
    calibration: Calibration,
    notes: tuple[str, ...],
    options: PlannerOptions,
    workers: Workers,
    tell: Tell,
) -> Solver:
    """Make ready who answers: the planner that was named; by default the ilp, on trial against greedy.

    `notes` are what there is to say of the costs that its plans rest on.
    """
    trial = None
    if options.trial_tokens and options.name not in FIXED:
        more = replace(calibration.settings, tokens=options.trial_tokens)
        cache = cache_dir() / "importance"
        trial = trial_on(calibration.examples, quantized, more, workers, cache, calibration.tokenizer)
    effort = (options.time_limit_s, options.gap, cache_dir() / "plans", tell.note)

    def solve(problem: Problem) -> Plan:
        if trial is not None and (options.name, options.bits) == ("ilp", None):
            plan = best_plan(problem, trial, *effort)
        else:
            plan = solved(problem, options.name, options.bits, *effort)
        return replace(plan, notes=(*plan.notes, *notes))

    return Solver(solve, trial)


def decide(problem: Problem, solver: Solver, materials: Materials, budget: BudgetOptions, tell: Tell) -> Decided:
    """Decide bitwidth, residence and load order of every shard, for each budget."""
    family = plan_family(problem, budget.also, solver.solve, tell.tick)
    for sentence in family.notes:
        tell.note(sentence)
    return decided(problem, materials, family.plans)


def decided(problem: Problem, materials: Materials, plans: tuple[Plan, ...]) -> Decided:
    """Plans with the problem as it is for so many: what was left out of a family has no tables in the index."""
    return Decided(replace(problem, fixed_bytes=materials.fixed_bytes(len(plans))), plans)


def replay(decided: Decided, materials: Materials, precision: GpuPrecision, passes: PassCosts | None) -> Replays:
    """Replay each plan against the planner's claim, and against the memory that the package will lay out.

    `passes` are a decoder's costs.
    """
    timelines = []
    for plan in decided.plans:
        timeline = check(plan, decided.problem, claim_of(plan, decided.problem))
        laid_out = claim(materials, plan, place_extents(plan, materials.store), precision, len(decided.plans))
        if laid_out != timeline.peak_bytes:
            raise ReplayError(f"the replay holds {timeline.peak_bytes} bytes, the package will hold {laid_out}")
        timelines.append(timeline)
    forecasts = () if passes is None else tuple(forecast(plan, decided.problem, passes) for plan in decided.plans)
    return Replays(tuple(timelines), forecasts)


def generate(materials: Materials, plan: Plan, target: Target, precision: GpuPrecision, folder: Path) -> Kernels:
    """Compile kernels for the target, into `folder`."""
    library, text = folder / "kernels.so", folder / PROGRAM_FILE
    kernels.generate(materials.kernel_shape, target, library)
    if not plan.on_gpu or target.gpu is None:
        return Kernels(library, None)
    shape, style = materials.encoder_shape, target.gpu.style
    return Kernels(library, kernels.generate_program(shape, style, precision, interleave(target), text))


def write(
    materials: Materials,
    decided: Decided,
    replays: Replays,
    target: Target,
    compiled: Kernels,
    keep_planes: bool,
    output: Path,
    tell: Tell,
) -> Written:
    """Write the package."""
    fallback = _holds_on_cpu(decided.default, decided.problem)
    forecasts = replays.forecasts or (None,) * len(decided.plans)
    planned = [_replayed(*one) for one in zip(decided.plans, replays.timelines, forecasts, strict=True)]
    parts = assemble_package(materials, planned, target, compiled.library, compiled.program, fallback, keep_planes)
    write_package(parts, output, tell.tick)
    return Written(output, parts.default.claimed_bytes)


def _holds_on_cpu(plan: Plan, problem: Problem) -> bool:
    """Whether a plan meets its deadline with all layers on the CPU, as where the GPU fails; memory only shrinks."""
    moved = replace(plan, layers=tuple(replace(layer, place="cpu") for layer in plan.layers))
    latency_us = plan.budget.latency_us
    return latency_us is None or simulate(moved, problem).latency_us <= latency_us * (1 - plan.margin)


def _replayed(plan: Plan, timeline: Timeline, forecast: Forecast | None) -> Planned:
    """A plan with what its replay says, as a package holds it."""
    events = tuple(asdict(event) for event in timeline.events)
    return Planned(plan, round(timeline.latency_us), events, forecast)
