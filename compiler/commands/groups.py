"""Groups of options: each hands a command one frozen value, so that no command passes on what it does not look at."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Literal, TypeVar, get_args

import click

from stic.compiler.commands.parameters import (
    FILE,
    LANES,
    LENGTH,
    NAME,
    PATIENCE,
    PROCESSES,
    SIZE,
    SLICES,
    STORAGE,
    THREADS,
    TIME,
    FurtherBudget,
)
from stic.compiler.offers import METHODS, QUANTIZERS, Method, Quantizer
from stic.compiler.options import (
    BudgetOptions,
    CompileOptions,
    ImportanceOptions,
    ModelOptions,
    Objective,
    Placing,
    PlannerOptions,
    ShardOptions,
    StageOptions,
    TargetOptions,
)
from stic.compiler.plan import Budget
from stic.compiler.planner import PLANNERS
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.gpu_format import GpuPrecision
from stic.runtime.session import GPU_USES, GpuUse, SessionOptions

Halves = Literal["fp16", "fp32"]  # how --gpu-precision spells float16 and float32
Command = TypeVar("Command", bound=Callable[..., object])
Decorator = Callable[[Callable[..., object]], Callable[..., object]]


def compose(*decorators: Decorator) -> Callable[[Command], Command]:
    """One decorator that applies several, so that --help lists their options in this order."""

    def decorate(command: Command) -> Command:
        decorated: Callable[..., object] = command
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        return decorated  # type: ignore[return-value]  # each of them keeps what it wraps

    return decorate


def gathered(name: str, make: Callable[..., object], *options: Decorator) -> Callable[[Command], Command]:
    """Give a command some options, and as its argument `name` the value that `make` builds of them.

    The parameters of `make` are the options' own names, or the names of values gathered further up.
    """
    fields = tuple(inspect.signature(make).parameters)

    def decorate(command: Callable[..., object]) -> Callable[..., object]:
        @wraps(command)
        def gathering(**values: object) -> object:
            value = make(**{field: values.pop(field) for field in fields})
            return command(**{name: value}, **values)

        return gathering

    return compose(*options, decorate)


def _model(model: Path, model_output: str | None, max_length: int | None) -> ModelOptions:
    return ModelOptions(model, model_output, max_length)


_model_output = click.option(
    "--model-output", type=NAME, metavar="NAME", help="Which of the graph's outputs is wanted; default: the first."
)
_max_length = click.option(
    "--max-length",
    type=click.IntRange(1),
    metavar="N",
    help="Longest input, in tokens; default: 128, or the model's positions where they are fewer.",
)
slices_option = click.option(
    "--slices", type=SLICES, metavar="M", help="Slices per layer; default: the number of heads."
)
threads_option = click.option("--threads", type=THREADS, metavar="K", help="Compute threads; default: the target's.")
lanes_option = click.option("--lanes", type=LANES, metavar="K", help="IO lanes; default: the target's.")
gpu_option = click.option(
    "--gpu",
    type=NAME,
    metavar="NAME|none",
    help="Put the GPU of target NAME beside the CPU of --target; default: the target's own, if it has one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")

model_group = gathered("model", _model, click.argument("model", type=FILE), _model_output, _max_length)


def _target(
    target: str,
    gpu: str | None,
    gpu_precision: Halves,
    place: Placing,
    threads: int | None,
    lanes: int | None,
    device_profile: Path | None,
    storage: EmulatedStorage | None,
) -> TargetOptions:
    precision: GpuPrecision = "float16" if gpu_precision == "fp16" else "float32"
    return TargetOptions(target, gpu, precision, place, threads, lanes, device_profile, storage)


target_group = gathered(
    "target",
    _target,
    click.option(
        "--target", type=NAME, required=True, metavar="NAME", help="A device stic knows (host, odroid-n2plus, ...)."
    ),
    gpu_option,
    click.option(
        "--gpu-precision",
        type=click.Choice(get_args(Halves)),
        default="fp16",
        show_default=True,
        help="Type of activations in the GPU's memory; sums are in fp32 either way.",
    ),
    click.option(
        "--place",
        type=click.Choice(get_args(Placing)),
        default="auto",
        show_default=True,
        help="Where layers run; auto: where the measured or estimated times say, layer by layer.",
    ),
    threads_option,
    lanes_option,
    click.option(
        "--device-profile",
        type=FILE,
        metavar="FILE",
        help="What `stic probe` wrote; default: probe this host, else the target file.",
    ),
    click.option(
        "--storage",
        type=STORAGE,
        metavar="RATE[,N]",
        help="Plan for storage of at most RATE bytes and N requests a second (100MB, or 300MB,25000);"
        " `stic run --emulate-storage` emulates it.",
    ),
)


def _budget(latency: int | None, memory: int | None, preload: int | None) -> BudgetOptions:
    return BudgetOptions(Budget(latency, memory, preload))


def _budgets(budget: BudgetOptions, further: tuple[tuple[int | None, int | None], ...]) -> BudgetOptions:
    """A main budget and further ones; what a further one leaves open is as in the main one."""
    main = budget.main
    also = tuple(
        replace(
            main,
            latency_us=main.latency_us if latency_us is None else latency_us,
            memory_bytes=main.memory_bytes if memory_bytes is None else memory_bytes,
        )
        for latency_us, memory_bytes in further
    )
    return BudgetOptions(main, also)


budget_group = gathered(
    "budget",
    _budget,
    click.option(
        "--latency",
        type=TIME,
        metavar="TIME",
        help="From submitting tokens to the output, preload buffer warm, all else cold. Left out: minimised.",
    ),
    click.option(
        "--memory",
        type=SIZE,
        metavar="SIZE",
        help="Everything the engine holds at its peak: trunk, buffers, activations, stacks. Left out: minimised.",
    ),
    click.option("--preload", type=SIZE, metavar="SIZE", help="Caps the preload buffer alone (the paper's |S|)."),
)
budgets_group = compose(
    budget_group,
    gathered(
        "budget",
        _budgets,
        click.option(
            "--also",
            "further",
            type=FurtherBudget(),
            multiple=True,
            metavar="TIME,SIZE",
            help="Hold a plan for this budget too (40ms,4MiB), for sessions to switch to; an empty part (40ms,) is as"
            " above. Repeat for several.",
        ),
    ),
)


def _shards(slices: int | None, quantizer: Quantizer, full_bits: str) -> ShardOptions:
    return ShardOptions(slices, quantizer, int(full_bits))


def _rows(shards: ShardOptions, embedding_bits: str | None) -> ShardOptions:
    return shards if embedding_bits is None else replace(shards, embedding_bits=int(embedding_bits))


def _kept(options: CompileOptions, keep_planes: bool) -> CompileOptions:
    return replace(options, shards=replace(options.shards, keep_planes=keep_planes))


shards_group = gathered(
    "shards",
    _shards,
    slices_option,
    click.option(
        "--quantizer",
        type=click.Choice(QUANTIZERS),
        default="nested",
        show_default=True,
        help="nested: one store serves every bitwidth; gobo: independent copies, as published.",
    ),
    click.option(
        "--full-bits",
        type=click.Choice(["0", "16", "32"]),
        default="16",
        show_default=True,
        help="Width of the full-precision level; 0: none.",
    ),
)


stored_shards_group = compose(
    shards_group,
    gathered(
        "shards",
        _rows,
        click.option(
            "--embedding-bits",
            type=click.Choice(["8", "16"]),
            help="Width of the word table's values; default: 8, or 16 where --bits asks for full precision (16, 32);"
            " of decoders whose head is the table: the head's.",
        ),
    ),
)


def _measured(
    calibration: Path | None,
    calibration_tokens: int | None,
    objective: Objective,
    method: Method,
    exact: bool,
    jobs: int | None,
    cluster: str | None,
) -> ImportanceOptions:
    return ImportanceOptions(
        None, calibration, calibration_tokens, objective, method, exact, jobs=jobs, cluster=cluster
    )


def _read(measured: ImportanceOptions, importance: Path | None) -> ImportanceOptions:
    return replace(measured, file=importance)


measured_group = gathered(
    "measured",
    _measured,
    click.option(
        "--calibration",
        type=FILE,
        metavar="FILE",
        help="TSV, or text for a decoder, to measure on; default: built-in sentences, or what a decoder writes.",
    ),
    click.option(
        "--calibration-tokens",
        type=click.IntRange(1),
        metavar="N",
        help="Use at most so many tokens of it; more is slower and steadier. Default: 1536, of decoders 4096.",
    ),
    click.option(
        "--objective",
        type=click.Choice(get_args(Objective)),
        default="agreement",
        show_default=True,
        help="What a gain is measured in: agreement with the full model, or the loss of the file's labels.",
    ),
    click.option(
        "--method",
        type=click.Choice(METHODS),
        default="curves",
        show_default=True,
        help="curves: gain of every bitwidth of every shard; sti: the published one-at-a-time ranking.",
    ),
    click.option("--exact", is_flag=True, help="Measure every bitwidth; else some, the others follow local errors."),
    click.option("--jobs", type=PROCESSES, metavar="K", help="Processes that measure importance; default: one a core."),
    click.option(
        "--cluster", type=NAME, metavar="ADDRESS", help="A Dask scheduler (tcp://host:port) that measures it instead."
    ),
)
importance_group = compose(
    measured_group,
    gathered(
        "importance",
        _read,
        click.option(
            "--importance", type=FILE, metavar="FILE", help="What `stic importance` wrote; skips measuring it."
        ),
    ),
)


def _planner(
    planner: str, bits: int | None, time_limit: int, gap: float, margin: float, trial_tokens: int
) -> PlannerOptions:
    return PlannerOptions(planner, bits, time_limit / 1e6, gap, margin, trial_tokens)


planner_group = gathered(
    "planner",
    _planner,
    click.option(
        "--planner",
        type=click.Choice(PLANNERS),
        default="ilp",
        show_default=True,
        help="ilp: proven by CP-SAT; greedy: STI's two stages, with and without start slack, the better one;"
        " the last three are the paper's baselines and take --bits.",
    ),
    click.option(
        "--bits", type=click.IntRange(2, 32), metavar="X", help="Uniform bitwidth, for the baselines: 2..8, 16, 32."
    ),
    click.option(
        "--time-limit",
        type=PATIENCE,
        default="10s",
        show_default=True,
        metavar="TIME",
        help="How long the planner may search for proof.",
    ),
    click.option(
        "--gap",
        type=float,
        default=0.005,
        show_default=True,
        metavar="SHARE",
        help="The planner may stop once no plan is better by more than this share; 0: go on for proof.",
    ),
    click.option(
        "--margin",
        type=float,
        default=0.05,
        show_default=True,
        metavar="SHARE",
        help="Share of the latency budget kept back for jitter.",
    ),
    click.option(
        "--trial-tokens",
        type=click.IntRange(0),
        default=6144,
        show_default=True,
        metavar="N",
        help="Run the plans of ilp and greedy on so many calibration tokens and keep what loses less; 0: no trial.",
    ),
)


def _stages(until: str | None, start: str | None, dump: Path | None) -> StageOptions:
    return StageOptions(until, start, dump)


stages_group = gathered(
    "stages",
    _stages,
    click.option("--until", type=NAME, metavar="STAGE", help="End with this stage; a wrong name lists them."),
    click.option(
        "--from",
        "start",
        type=NAME,
        metavar="STAGE",
        help="Begin with this stage; what earlier ones made is read from --dump.",
    ),
    click.option("--dump", type=FILE, metavar="DIR", help="Keep what each stage made here."),
)


def _planning(
    model: ModelOptions,
    target: TargetOptions,
    budget: BudgetOptions,
    planner: PlannerOptions,
    shards: ShardOptions,
    importance: ImportanceOptions,
    stages: StageOptions,
) -> CompileOptions:
    return CompileOptions(model, target, budget, None, shards, importance, planner, stages)


def _compiling(options: CompileOptions, output: Path) -> CompileOptions:
    return replace(options, output=output)


plan_group = gathered(
    "options",
    _planning,
    model_group,
    target_group,
    budget_group,
    planner_group,
    stored_shards_group,
    importance_group,
    stages_group,
)
compile_group = compose(
    gathered(
        "options",
        _planning,
        model_group,
        target_group,
        budgets_group,
        planner_group,
        stored_shards_group,
        importance_group,
        stages_group,
    ),
    gathered(
        "options",
        _compiling,
        click.option("-o", "--output", type=FILE, required=True, metavar="DIR", help="The package to write."),
    ),
    gathered(
        "options",
        _kept,
        click.option(
            "--keep-planes",
            is_flag=True,
            help="Store all planes up to 8 bits, also those that no plan reads, for packages of other plans to share.",
        ),
    ),
)


def _session(
    threads: int | None,
    latency: int | None,
    memory: int | None,
    emulate_storage: EmulatedStorage | None,
    gpu_use: GpuUse,
) -> SessionOptions:
    return {
        "threads": threads,
        "latency_us": latency,
        "memory_bytes": memory,
        "storage": emulate_storage,
        "gpu": gpu_use,
    }


def _remote_session(threads: int | None, emulate_storage: EmulatedStorage | None, gpu_use: GpuUse) -> SessionOptions:
    return {"threads": threads, "storage": emulate_storage, "gpu": gpu_use}


_session_threads = click.option("--threads", type=THREADS, metavar="K", help="Compute threads; default: as planned.")
_emulate_storage = click.option(
    "--emulate-storage",
    type=STORAGE,
    metavar="RATE[,N]",
    help="Emulate storage of RATE bytes and N requests a second (100MB, or 300MB,25000); default: as it is.",
)
_gpu_use = click.option(
    "--gpu-use",
    type=click.Choice(GPU_USES),
    default="auto",
    show_default=True,
    help="Layers planned for a GPU: on the CPU where it fails, always, or never.",
)
session_group = gathered(
    "session",
    _session,
    _session_threads,
    click.option(
        "--latency",
        type=TIME,
        metavar="TIME",
        help="Open under this budget: the best of the package's plans for it; default: its first plan.",
    ),
    click.option("--memory", type=SIZE, metavar="SIZE", help="The same for everything the engine holds."),
    _emulate_storage,
    _gpu_use,
)
remote_session_group = gathered("session", _remote_session, _session_threads, _emulate_storage, _gpu_use)

length_option = click.option("--length", type=LENGTH, metavar="N", help="Tokens; default: what was planned for.")
