"""What a user asks of the compiler: one small value for each thing that can be decided, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from stic.compiler.offers import Method, Quantizer
from stic.compiler.plan import Budget
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError
from stic.runtime.format import CacheType
from stic.runtime.gpu_format import GpuPrecision
from stic.runtime.limits import LIMITS

LEAST_HEAD = 6  # bits of a head: fewer cost much, more give nothing (docs/quantizers.md)
DEFAULT_CONTEXT = 2048  # tokens of a decoder's session
DEFAULT_PROMPT = 256  # tokens before the first one of an answer, where the context has twice as many
DEFAULT_LENGTH = 128  # tokens of the longest input, where the model has positions for them
ONE_ON_GPU = "a package with layers on a GPU holds one plan: leave out --also, or plan with --place cpu"

Placing = Literal["auto", "cpu", "gpu"]
Objective = Literal["agreement", "task"]


def _at_least_one(**values: int | None) -> None:
    """Raise InputError for a count that is zero or negative; None is left to its default."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")


def _share(name: str, value: float, of: str) -> None:
    if not 0.0 <= value < 1.0:
        raise InputError(f"--{name} is {value}: it is a share of {of}, from 0 to below 1")


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how much of it."""

    path: Path  # an .onnx file or a Hugging Face directory
    output: str | None = None  # which of the graph's outputs; None: the first
    max_length: int | None = None  # longest input, tokens; None: see `longest_input`

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"--max-length is {self.max_length}: an input has at least one token")


@dataclass(frozen=True)
class ShardOptions:
    """How the model is cut, and what the shards are stored as."""

    slices: int | None = None  # per layer; None: the number of heads
    quantizer: Quantizer = "nested"
    full_bits: int = 16  # width of the full-precision level: 16 or 32; 0: none
    embedding_bits: int | None = None  # of a value of the word table, kept apart: 8 or 16; None: see `row_type`
    keep_planes: bool = False  # store all planes, also those that no plan of the package reads

    def __post_init__(self) -> None:
        _at_least_one(slices=self.slices)
        if self.embedding_bits not in (None, 8, 16):
            raise InputError(f"--embedding-bits is {self.embedding_bits}: values of the word table have 8 bits or 16")
        if self.full_bits not in (0, 16, 32):
            raise InputError(f"full precision is 16 or 32 bits wide, or absent (0), not {self.full_bits}")

    def row_type(self, uniform_bits: int | None, tied: bool = False) -> str:
        """Type of the word table's values, one of ROW_TYPES.

        By default the rows of a model whose head is `tied` are the head's; else they are float16 where a uniform
        bitwidth asks for all weights at full precision.
        """
        if tied and self.embedding_bits is None:
            return "tied"
        full = uniform_bits is not None and uniform_bits > 8
        return "float16" if self.embedding_bits == 16 or (self.embedding_bits is None and full) else "int8"


@dataclass(frozen=True)
class TargetOptions:
    """The device, and how it is used."""

    name: str
    gpu: str | None = None  # target whose GPU is beside the CPU; "none": no GPU; None: the target's own
    gpu_precision: GpuPrecision = "float16"  # type of activations in the GPU's memory
    place: Placing = "auto"  # where layers run; auto: where the cost tables say
    threads: int | None = None  # compute threads; None: the target's
    lanes: int | None = None  # IO lanes; None: the target's
    profile: Path | None = None  # what `stic probe` wrote; None: probe (this host) or take the target file's numbers
    storage: EmulatedStorage | None = None  # plan for storage no faster than this, as `stic run --storage` emulates it

    def __post_init__(self) -> None:
        _at_least_one(threads=self.threads, lanes=self.lanes)


@dataclass(frozen=True)
class BudgetOptions:
    """What the plans of a package must meet."""

    main: Budget = field(default_factory=Budget)  # of the default plan
    also: tuple[Budget, ...] = ()  # further budgets that the package has plans for

    def __post_init__(self) -> None:
        if len(self.also) >= LIMITS["plans"]:
            raise InputError(f"a package holds {LIMITS['plans']} plans at most: give --also less than so many times")
        values = [("--latency", self.main.latency_us), ("--memory", self.main.memory_bytes)]
        values += [("--also", value) for budget in self.also for value in (budget.latency_us, budget.memory_bytes)]
        for name, value in values:
            if value is not None and value < 1:
                raise InputError(f"{name} must be more than zero, or left out")


@dataclass(frozen=True)
class DecoderOptions:
    """What is asked of a decoder alone."""

    context: int | None = None  # tokens that a session can hold; None: DEFAULT_CONTEXT, or the model's, if that is less
    chunk: int = 128  # tokens of a prompt that are computed at once
    cache: CacheType = "int8"  # of keys and values
    cache_free: bool = False  # a planner that chooses bits may choose another
    head_bits: int | None = None  # of the vocabulary; None: under a uniform planner its bits, but at least LEAST_HEAD
    prompt: int | None = None  # tokens before the first one of an answer; None: DEFAULT_PROMPT, or half of the context
    first_token_us: int | None = None  # limit on the time to the first token of an answer, the prompt's included
    next_token_us: int | None = None  # limit on the time of each token after it, up to the end of the context

    def __post_init__(self) -> None:
        _at_least_one(
            context=self.context, chunk=self.chunk, prompt=self.prompt, first_token=self.first_token_us,
            next_token=self.next_token_us,
        )  # fmt: skip
        if self.chunk > LIMITS["chunk"]:
            raise InputError(f"--chunk is {self.chunk}: a package computes at most {LIMITS['chunk']} tokens at once")

    def check_none(self) -> None:
        """Raise InputError if anything was asked for: the model is an encoder."""
        if self != DecoderOptions():
            raise InputError(
                "--context, --chunk, --kv, --head-bits, --prompt, --first-token and --next-token are a decoder's: leave"
                " them out for an encoder, which has one --latency"
            )

    def limits(self, budget: Budget) -> Budget:
        """The budget of a decoder, which has two latencies. Raises InputError where it was given one."""
        if budget.latency_us is not None:
            raise InputError(
                "a decoder has two latencies, that of an answer's first token and that of each next one: instead of"
                " --latency, give --first-token (with the tokens of its --prompt) or --next-token"
            )
        return replace(budget, latency_us=self.next_token_us, first_token_us=self.first_token_us)

    def prompt_of(self, context: int) -> int:
        """Tokens of the planned prompt. Raises InputError where the context has no room for an answer to it."""
        if self.prompt is not None and self.prompt >= context:
            raise InputError(
                f"--prompt is {self.prompt}, but the context has {context} tokens, an answer included: give a shorter"
                " prompt, or a longer --context"
            )
        return max(1, min(DEFAULT_PROMPT, context // 2)) if self.prompt is None else self.prompt

    def head_of(self, uniform_bits: int | None) -> int | None:
        """Bits of the vocabulary, where they are decided before planning; `uniform_bits` are those of all blocks."""
        if self.head_bits is not None or uniform_bits is None:
            return self.head_bits
        return max(uniform_bits, LEAST_HEAD)

    def context_of(self, most: int) -> int:
        """The context for a model that was made for `most` tokens. Raises InputError for a longer one."""
        most = min(most, LIMITS["max_length"])
        if self.context is not None and self.context > most:
            raise InputError(
                f"--context is {self.context}, but the model takes {most} tokens: give at most {most}, or leave it out"
            )
        return min(DEFAULT_CONTEXT, most) if self.context is None else self.context


@dataclass(frozen=True)
class ImportanceOptions:
    """How shards are valued."""

    file: Path | None = None  # what `stic importance` wrote; None: measure now
    calibration: Path | None = None  # TSV; None: the built-in sentences
    tokens: int | None = None  # of calibration at most; more is slower and steadier. None: as many as suit the model
    objective: Objective = "agreement"  # what a gain is measured in
    method: Method = "curves"
    exact: bool = False  # measure every bitwidth; False: four, the others follow the local error
    checks: int = 0  # random plans of the additivity check
    jobs: int | None = None  # processes that measure; None: one a core
    cluster: str | None = None  # address of a Dask scheduler that measures instead

    def __post_init__(self) -> None:
        _at_least_one(jobs=self.jobs, calibration_tokens=self.tokens)


@dataclass(frozen=True)
class PlannerOptions:
    """Which planner, and how hard it tries."""

    name: str = "ilp"
    bits: int | None = None  # uniform bitwidth, for the planners that take one
    time_limit_s: float = 10.0
    gap: float = 0.005  # at which the planner may stop: the last tenths of a percent take nearly all the time
    margin: float = 0.05  # share of the latency budget kept back for jitter
    trial_tokens: int = (
        6144  # of calibration that the ilp's plan and greedy's are tried on; 0: the ilp's is taken untried
    )

    def __post_init__(self) -> None:
        _share("margin", self.margin, "the latency budget")
        _share("gap", self.gap, "a plan's quality")


@dataclass(frozen=True)
class StageOptions:
    """Where the pipeline begins and ends, and what it leaves behind."""

    until: str | None = None  # the last stage; None: all
    start: str | None = None  # the first stage that computes: earlier ones take what `dump` holds
    dump: Path | None = None  # folder that gets what each stage made

    def __post_init__(self) -> None:
        if self.start is not None and self.dump is None:
            raise InputError("--from starts from what an earlier run kept: name its folder with --dump")


def longest_input(asked: int | None, positions: int) -> int:
    """Tokens of the longest input: as asked, or by default DEFAULT_LENGTH, fewer where the model has fewer positions.

    Raises InputError where more is asked than there are positions, or than a package can hold.
    """
    most = min(positions, LIMITS["chunk"])
    if asked is not None and asked > most:
        whose = "the model has positions for" if most == positions else "a package is made for at most"
        raise InputError(f"--max-length is {asked}, but {whose} {most} tokens: give at most {most}, or leave it out")
    return min(DEFAULT_LENGTH, most) if asked is None else asked


@dataclass(frozen=True)
class CompileOptions:
    """Everything `stic compile` and `stic plan` can be told.

    Raises InputError for values that contradict each other, so that no stage has to.
    """

    model: ModelOptions
    target: TargetOptions
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    output: Path | None = None  # package directory; None: plan only
    shards: ShardOptions = field(default_factory=ShardOptions)
    importance: ImportanceOptions = field(default_factory=ImportanceOptions)
    planner: PlannerOptions = field(default_factory=PlannerOptions)
    stages: StageOptions = field(default_factory=StageOptions)
    decoder: DecoderOptions = field(default_factory=DecoderOptions)

    def __post_init__(self) -> None:
        if self.budget.also and self.target.place == "gpu":
            raise InputError(ONE_ON_GPU)
