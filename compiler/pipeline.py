"""The compiler is a list of stages: this file holds the list, and runs it.

A stage is a function from what was made before to a frozen value. Linear algebra runs on one thread: its matrices are
small, and threads that meet at every product cost more than they save; processes share the work instead. `--until
STAGE` ends with a stage. `--dump DIR` keeps what each one has to say, as JSON, and what took time to make, so that
`--from STAGE` can begin there.
"""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from threadpoolctl import threadpool_limits

from stic.compiler import artifacts, stages
from stic.compiler.decoding.planning import decoder_planning, decoder_refining, with_limits
from stic.compiler.decoding.stages import decide as decide_decoder
from stic.compiler.forecast import PassCosts
from stic.compiler.importance.jobs import Workers
from stic.compiler.importance.measure import Importance
from stic.compiler.inputs import (
    decodes,
    measures_importance,
    offered_bits,
    read_model,
    wanted_target,
)
from stic.compiler.model import Model
from stic.compiler.options import BudgetOptions, CompileOptions, StageOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.package.writer import check_output
from stic.compiler.plan import Problem, to_json
from stic.compiler.planner.costs import Costs, costs_to_json
from stic.compiler.progress import Progress, silent
from stic.compiler.quantization.quantize import QuantizedModel, bytes_per_weight
from stic.compiler.sharding import ShardedModel
from stic.compiler.simulate import Timeline
from stic.compiler.stage import Made, Stage, Summary, Tell
from stic.compiler.stage_cache import UnitOrder
from stic.compiler.stages import Calibration, Decided, Kernels, Replays, Solver, Written
from stic.runtime.errors import InputError
from stic.runtime.format import LEVEL_BITS
from stic.targets.toolchain import find_c_compiler


def plan_model(options: CompileOptions, progress: Progress = silent) -> Made:
    """Run the stages up to the checked plan; see `compile_model`."""
    return _run(_planning_of(options), options.stages, progress, Made())


def compile_model(options: CompileOptions, progress: Progress = silent, made: Made | None = None) -> Made:
    """Compile a model into a package at `options.output`; returns what every stage made.

    What is in `made` already is not made again: it is from stages of the same options. Raises a kind of SticError for
    whatever the user can mend; the output is written whole or not at all.
    """
    if options.output is None:
        raise InputError("compiling needs a directory for the package: name one with -o")
    # What is bound to fail is worth knowing before minutes of measuring.
    find_c_compiler(wanted_target(options.target))
    check_output(options.output)
    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        refining = decoder_refining(options) if decodes(options.model.path) else []
        pipeline = [*_planning_of(options), *refining, *_packaging(options, options.output, Path(folder))]
        return _run(pipeline, options.stages, progress, made or Made())


def load(options: CompileOptions, progress: Progress = silent) -> Made:
    """Run the first stage alone, for what has to know the model before there are costs to plan with."""
    return _run(_planning_of(options)[:1], StageOptions(), progress, Made())


def _planning_of(options: CompileOptions) -> list[Stage]:
    """The stages to replayed plans, by what the model is."""
    if not decodes(options.model.path):
        options.decoder.check_none()
        return _planning(options)
    if options.model.max_length is not None:
        raise InputError(
            "--max-length is an encoder's: say with --context how many tokens a decoder's session can hold"
        )
    options = with_limits(options)
    return [*decoder_planning(options), *_deciding(options, partial(decide_decoder, options.planner))]


def _planning(options: CompileOptions) -> list[Stage]:
    """The stages from a model to plans that were replayed."""
    target, bits = wanted_target(options.target), offered_bits(options.shards.full_bits, options.planner.bits)
    workers = Workers(options.importance.jobs, options.importance.cluster)
    folder = Path.cwd() if options.output is None else options.output.absolute().parent
    row_type = options.shards.row_type(options.planner.bits)

    def needs_gains(model: Model) -> bool:
        asked_for = options.stages.until == "importance"
        return measures_importance(model.elastic, options.planner.name, asked_for, options.importance)

    def needs_text(model: Model) -> bool:
        """Units are ordered by it unless the model is elastic, and nested codes are fitted to it."""
        return not model.elastic or options.shards.quantizer == "nested" or needs_gains(model)

    return [
        Stage(
            "load",
            "read the graph and recognise the encoder in it",
            lambda made, tell: read_model(options.model.path, options.model.output),
            lambda made: _of_model(made[Model]),
        ),
        Stage(
            "calibrate",
            "draw calibration examples and turn them into tokens",
            lambda made, tell: stages.calibrate(
                made[Model], options.model, options.importance, bits, needs_text(made[Model]), tell
            ),
            lambda made: _of_calibration(made[Calibration]),
        ),
        Stage(
            "order",
            "order heads and neurons by importance",
            lambda made, tell: stages.order(made[Model], made[Calibration], tell),
            lambda made: {"ordered": made[UnitOrder].heads is not None},
            artifacts.ORDER,
        ),
        Stage(
            "shard",
            "cut every layer into slices",
            lambda made, tell: stages.cut(made[Model], made[UnitOrder], options.shards.slices),
            lambda made: asdict(made[ShardedModel].geometry),
            last_use=(Model,),  # the weights as they were read are held no longer
        ),
        Stage(
            "quantize",
            "fit codebooks and split every weight into nested bit planes",
            lambda made, tell: stages.quantize(made[ShardedModel], made[Calibration], options.shards.quantizer, tell),
            lambda made: {"bits_per_weight": {b: 8 * bytes_per_weight(made[QuantizedModel], b) for b in LEVEL_BITS}},
            artifacts.codes(options.shards.quantizer),
        ),
        Stage(
            "gather",
            "lay out what every plan shares: the store, the trunk, the embedding rows",
            lambda made, tell: stages.gather(
                made[QuantizedModel], made[Calibration], options.shards.full_bits, row_type, target, options.target
            ),
            lambda made: {
                "shards_bytes": made[Materials].store.total_bytes,
                "fixed_bytes": made[Materials].fixed_bytes(),
            },
        ),
        Stage(
            "importance",
            "measure what each bitwidth of each shard is worth",
            lambda made, tell: stages.value(
                made[QuantizedModel],
                made[Calibration],
                options.importance,
                needs_gains(made[ShardedModel].model),
                workers,
                tell,
            ),
            lambda made: _of_importance(made[Importance]),
            artifacts.IMPORTANCE,
        ),
        Stage(
            "device",
            "measure, or look up, what reading and computing cost on the target",
            lambda made, tell: stages.cost(target, made[Materials], options.target, bits, folder, tell),
            lambda made: costs_to_json(made[Costs]),
            artifacts.COSTS,
        ),
        Stage(
            "problem",
            "put together all that a planner may know",
            lambda made, tell: stages.pose(
                made[Materials], made[Importance], made[Costs], options.target, options.budget, options.planner.margin
            ),
            lambda made: {"shards": int(made[Problem].presence.size), "bits": made[Problem].bits},
        ),
        Stage(
            "solver",
            "make ready who decides, and what the plans of several planners are compared on",
            lambda made, tell: stages.solver(
                made[QuantizedModel], made[Calibration], made[Costs].notes, options.planner, workers, tell
            ),
            lambda made: {"planner": options.planner.name, "trial": made[Solver].trial is not None},
        ),
        *_deciding(options),
    ]


Decide = Callable[[Problem, Solver, Materials, BudgetOptions, Tell], Decided]


def _deciding(options: CompileOptions, decide: Decide = stages.decide) -> list[Stage]:
    """The stages from a problem to plans that were replayed; `decide` says what is special about a model."""
    precision = options.target.gpu_precision
    return [
        Stage(
            "plan",
            "decide bitwidth, residence and load order of every shard",
            lambda made, tell: decide(made[Problem], made[Solver], made[Materials], options.budget, tell),
            lambda made: _listed([to_json(plan) for plan in made[Decided].plans]),
            artifacts.PLANS,
        ),
        Stage(
            "check",
            "replay the plans without the planner's code and compare with its claims",
            lambda made, tell: stages.replay(
                made[Decided], made[Materials], precision, made[PassCosts] if PassCosts in made else None
            ),
            lambda made: _listed([_of_timeline(timeline) for timeline in made[Replays].timelines]),
        ),
    ]


def _packaging(options: CompileOptions, output: Path, folder: Path) -> list[Stage]:
    """The stages from replayed plans to a package; kernels are compiled in `folder`."""
    target, precision = wanted_target(options.target), options.target.gpu_precision
    return [
        Stage(
            "generate",
            "compile kernels for the target",
            lambda made, tell: stages.generate(made[Materials], made[Decided].default, target, precision, folder),
            lambda made: {"bytes": made[Kernels].sizes},
        ),
        Stage(
            "package",
            "write the package",
            lambda made, tell: stages.write(
                made[Materials],
                made[Decided],
                made[Replays],
                target,
                made[Kernels],
                options.shards.keep_planes,
                output,
                tell,
            ),
            lambda made: {"output": str(made[Written].path), "claimed_bytes": made[Written].claimed_bytes},
        ),
    ]


def _run(pipeline: Sequence[Stage], options: StageOptions, progress: Progress, made: Made) -> Made:
    """Run the stages that are wanted, one after another: tell progress, write and read dumps."""
    names = [stage.name for stage in pipeline]
    for name in (options.until, options.start):
        if name is not None and name not in names:
            raise InputError(f"there is no stage {name!r}; the stages are {', '.join(names)}")
    start = 0 if options.start is None else names.index(options.start)
    end = len(names) if options.until is None else names.index(options.until) + 1
    notes = list(made.notes)
    with threadpool_limits(1):
        for number, stage in enumerate(pipeline[made.stages : end], made.stages):
            progress(stage.name, 0, 0)
            tell = Tell(partial(progress, stage.name), notes.append)
            if number < start and stage.artifact is not None and options.dump is not None:
                made = made.after(stage, stage.artifact.load(made, options.dump / stage.artifact.file))
                continue
            made = made.after(stage, stage.work(made, tell))
            _release_memory()
            if options.dump is not None:
                _dump(stage, number, made, options.dump)
    return replace(made, notes=tuple(notes))


def _release_memory() -> None:
    """Collect cycles, and let the C library return what is free; its heap would keep the peak of every stage.

    Where the C library has no such call, the second part is left out.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # glibc alone has it; Windows takes no name of None
        ctypes.CDLL(None).malloc_trim(0)


def _dump(stage: Stage, number: int, made: Made, folder: Path) -> None:
    """Keep what a stage made: a summary, and its artifact where there is one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"stage": stage.name, "what": stage.sentence, **stage.summary(made)}, indent=1, default=str)
        (folder / f"{number:02}-{stage.name}.json").write_text(text, encoding="utf-8")
        if stage.artifact is not None:
            stage.artifact.save(made, folder / stage.artifact.file)
    except OSError as error:
        raise InputError(f"{folder} cannot keep what stage {stage.name} made: {error.strerror or error}") from error


def _of_model(model: Model) -> Summary:
    sizes = {name: getattr(model, name) for name in ("hidden", "heads", "head_dim", "ffn", "max_length", "elastic")}
    head = [f"{d.linear.weight.shape[0]} features, {d.activation}" for d in model.head.dense]
    return {"name": model.name, "layers": len(model.layers), **sizes, "pooling": model.head.pooling, "head": head}


def _of_calibration(calibration: Calibration) -> Summary:
    tokens = sum(batch.tokens for batch in calibration.batches)
    return {"source": calibration.examples.source, "examples": len(calibration.sampled), "tokens": tokens}


def _of_importance(importance: Importance) -> Summary:
    return {"rho": importance.rho, "metric": importance.metric, "calibration": importance.calibration}


def _of_timeline(timeline: Timeline) -> Summary:
    return {"latency_us": timeline.latency_us, "peak_bytes": timeline.peak_bytes}


def _listed(summaries: Sequence[Summary]) -> Summary:
    """What there is to say of the first plan, and of all of them where there are several."""
    return {**summaries[0], **({"family": summaries} if len(summaries) > 1 else {})}
