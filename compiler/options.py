"""What a user asks of the compiler, and how the compiler tells how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stic.compiler.plan import Budget
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError
from stic.runtime.format import LIMITS
from stic.runtime.gpu_format import Storage

DEFAULT_LENGTH = 128  # tokens of the longest input, where the model has positions for them
ONE_ON_GPU = "a package with layers on a GPU holds one plan: leave out --also, or plan with --place cpu"

Method = Literal["curves", "sti"]
Quantizer = Literal["nested", "gobo"]


def longest_input(asked: int | None, positions: int) -> int:
    """Tokens of the longest input: as asked, or by default DEFAULT_LENGTH, fewer where the model has fewer positions.

    Raises InputError where more is asked than there are positions, or than a package can hold.
    """
    most = min(positions, LIMITS["max_length"])
    if asked is not None and asked > most:
        whose = "the model has positions for" if most == positions else "a package is made for at most"
        raise InputError(f"--max-length is {asked}, but {whose} {most} tokens: give at most {most}, or leave it out")
    return min(DEFAULT_LENGTH, most) if asked is None else asked


@dataclass(frozen=True)
class CompileOptions:
    """Everything `stic compile` and `stic plan` can be told.

    Raises InputError for values that contradict each other, so that no stage has to.
    """

    model: Path  # an .onnx file or a Hugging Face directory
    target: str  # name of a target
    budget: Budget
    output: Path | None = None  # package directory; None: plan only
    family: tuple[Budget, ...] = ()  # further budgets that the package has plans for
    planner: str = "ilp"
    gpu: str | None = None  # target whose GPU is beside the CPU; "none": no GPU; None: the target's own
    gpu_storage: Storage = "float16"  # type of activations in the GPU's memory
    place: Literal["auto", "cpu", "gpu"] = "auto"  # where layers run; auto: where the cost tables say
    bits: int | None = None  # uniform bitwidth, for the planners that take one
    calibration: Path | None = None  # TSV for importance; None: the built-in sentences
    importance: Path | None = None  # what `stic profile` wrote; None: measure now
    profile: Path | None = None  # what `stic probe` wrote; None: probe (this host) or take the target file's numbers
    model_output: str | None = None  # which of the graph's outputs; None: the first
    max_length: int | None = None  # longest input, tokens; None: see `longest_input`
    slices: int | None = None  # per layer; None: the number of heads
    quantizer: Quantizer = "nested"
    embedding_bits: int | None = None  # of a value of the word table: 8 or 16; None: see `row_type`
    full_bits: int = 16  # width of the full-precision level: 16 or 32; 0: none
    threads: int | None = None  # compute threads; None: the target's
    lanes: int | None = None  # IO lanes; None: the target's
    method: Method = "curves"
    jobs: int | None = None  # processes that measure importance; None: one a core
    cluster: str | None = None  # address of a Dask scheduler that measures it instead
    checks: int = 0  # random plans of the additivity check
    objective: Literal["agreement", "task"] = "agreement"  # what a gain is measured in
    exact: bool = False  # measure every bitwidth; False: four, the others follow the local error
    calibration_tokens: int = 1536  # of the calibration examples at most; more is slower and steadier
    trial_tokens: int = 6144  # of them that the ilp's plan and greedy's are tried on; 0: the ilp's is taken untried
    storage: EmulatedStorage | None = None  # plan for storage no faster than this, as `stic run --storage` emulates it
    time_limit_s: float = 10.0  # of the planner
    gap: float = 0.005  # at which the planner may stop: the last tenths of a percent take nearly all the time
    margin: float = 0.05  # share of the latency budget kept back for jitter
    until: str | None = None  # stop after this stage
    keep_planes: bool = False  # store all planes, also those that no plan of the package reads
    dump: Path | None = None  # folder that gets what each stage made

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"--max-length is {self.max_length}: an input has at least one token")
        if self.full_bits not in (0, 16, 32):
            raise InputError(f"full precision is 16 or 32 bits wide, or absent (0), not {self.full_bits}")
        if self.embedding_bits not in (None, 8, 16):
            raise InputError(f"--embedding-bits is {self.embedding_bits}: values of the word table have 8 bits or 16")
        if self.family and self.place == "gpu":
            raise InputError(ONE_ON_GPU)
        if len(self.family) >= LIMITS["plans"]:
            raise InputError(f"a package holds {LIMITS['plans']} plans at most: give --also less than so many times")
        if not 0.0 <= self.margin < 1.0:
            raise InputError(f"--margin is {self.margin}: it is a share of the latency budget, from 0 to below 1")
        if not 0.0 <= self.gap < 1.0:
            raise InputError(f"--gap is {self.gap}: it is a share of a plan's quality, from 0 to below 1")
        for name, value in (
            ("--slices", self.slices),
            ("--threads", self.threads),
            ("--lanes", self.lanes),
            ("--jobs", self.jobs),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: it must be at least 1")
        further = [("--also", value) for b in self.family for value in (b.latency_us, b.memory_bytes)]
        for name, value in (
            ("--latency", self.budget.latency_us),
            ("--memory", self.budget.memory_bytes),
            *further,
        ):
            if value is not None and value < 1:
                raise InputError(f"{name} must be more than zero, or left out")

    @property
    def row_type(self) -> str:
        """Type of the word table's values, one of ROW_TYPES: by default float16 where all weights are to be at full
        precision."""
        full = self.bits is not None and self.bits > 8
        return "float16" if self.embedding_bits == 16 or (self.embedding_bits is None and full) else "int8"
