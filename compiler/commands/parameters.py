"""Option types and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from stic.compiler.quantities import parse_bytes, parse_storage, parse_time_us
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError
from stic.runtime.format import LIMITS

F = TypeVar("F", bound=Callable[..., Any])

# As stic.compiler.planner.PLANNERS, which is not imported here because that imports the solver.
PLANNERS = ("ilp", "greedy", "greedy-slack", "greedy-no-slack", "load-and-exec", "pipeline", "preload")


PICTURES = (".svg", ".png", ".pdf")


class Quantity(click.ParamType):
    """A time or a size up to `most`, handed on as an integer."""

    def __init__(self, name: str, parse: Callable[[str], int], most: str) -> None:
        self.name = name
        self._parse, self._most = parse, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            found = self._parse(_readable(value))
        except InputError as error:
            self.fail(str(error), param, ctx)
        if found > self._parse(self._most):
            self.fail(f"'{value}' is too much: {self._most} is the most that stic takes here", param, ctx)
        return found


class Text(click.ParamType):
    """Text, as tokenizers, JSON and sockets take it; a name must not be empty."""

    def __init__(self, name: str, may_be_empty: bool = False) -> None:
        self.name = name
        self._may_be_empty = may_be_empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            text = _readable(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        if not text.strip() and not self._may_be_empty:
            self.fail("it is empty: write a name, or leave the option out", param, ctx)
        return text


class File(click.ParamType):
    """The path of a file or a directory, there or to be made; bytes that are no text may be in it."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = os.fspath(value)
        try:
            named = os.fsencode(text)
        except UnicodeEncodeError:
            named = b""
        if not named.strip() or b"\0" in named:
            self.fail(f"{text!a} cannot be the path of a file: write one", param, ctx)
        return Path(text)


def _readable(text: str) -> str:
    """`text`, if it is one: Python hides bytes of the command line that its locale cannot read in lone surrogates.

    Where the locale is a narrower one, UTF-8 is read nevertheless. Raises InputError.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text = os.fsencode(text).decode()
        except UnicodeError as error:
            raise InputError(f"{text!a} holds bytes that are no text: write it in UTF-8") from error
    if "\0" in text:
        raise InputError(f"{text!a} holds a zero byte, which no text does: leave it out")
    return text


class Storage(click.ParamType):
    """Storage to emulate: `RATE` or `RATE,REQUESTS`, both a second."""

    name = "storage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> EmulatedStorage:
        if isinstance(value, EmulatedStorage):
            return value
        try:
            return parse_storage(_readable(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


class Several(click.ParamType):
    """A comma-separated list of quantities."""

    def __init__(self, item: Quantity) -> None:
        self.name = f"{item.name},..."
        self._item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self._item.convert(part, param, ctx) for part in value.split(","))


class FurtherBudget(click.ParamType):
    """`LATENCY,MEMORY` as (microseconds, bytes); an empty part is None. Not both are."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        if isinstance(value, tuple):
            return value
        latency, comma, memory = (part.strip() for part in value.partition(","))
        if not comma or not (latency or memory):
            self.fail(f"'{value}' is not a budget: write 40ms,4MiB, or 40ms, or ,4MiB to change one part", param, ctx)
        return (
            TIME.convert(latency, param, ctx) if latency else None,
            SIZE.convert(memory, param, ctx) if memory else None,
        )


class Picture(click.ParamType):
    """A file that a picture is written to; its suffix says which kind. "-" stands for the terminal."""

    name = "picture"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = FILE.convert(value, param, ctx)
        if path.suffix not in PICTURES and str(path) != "-":
            self.fail(f"'{value}' is not the name of a picture: it must end in {', '.join(PICTURES)}", param, ctx)
        return path


FILE = File()
PICTURE = Picture()
NAME = Text("name")
SENTENCE = Text("text", may_be_empty=True)
TIME = Quantity("time", parse_time_us, "60min")  # packages hold deadlines as 32-bit microseconds
PATIENCE = Quantity("time", parse_time_us, "10000min")  # sockets and the solver wait no longer than some weeks
SIZE = Quantity("size", parse_bytes, "1024GiB")  # beyond any memory, and the solver's sums stay exact
STORAGE = Storage()
TIMES = Several(TIME)
SIZES = Several(SIZE)
# Numbers that reach the engine, the package's index or a list of that length are bounded here.
THREADS = click.IntRange(1, LIMITS["threads"])
LANES = click.IntRange(1, LIMITS["lanes"])
SLICES = click.IntRange(1, LIMITS["slices"])
LENGTH = click.IntRange(1, LIMITS["max_length"])
PROCESSES = click.IntRange(1, 1024)
ROUNDS = 10**6  # of anything that is measured again and again


def compose(options: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    """One decorator that applies `options` so that --help lists them in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


storage_option = click.option(
    "--storage",
    type=STORAGE,
    metavar="RATE[,N]",
    help="Emulate storage of RATE bytes and N requests a second (100MB, or 300MB,25000); default: as it is.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")

budget_options = compose(
    (
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
)
also_option = click.option(
    "--also",
    "further",
    type=FurtherBudget(),
    multiple=True,
    metavar="TIME,SIZE",
    help="Hold a plan for this budget too (40ms,4MiB), for sessions to switch to; an empty part (40ms,) is as above."
    " Repeat for several.",
)
# Budgets that a session is opened under.
session_budget_options = compose(
    (
        click.option(
            "--latency",
            type=TIME,
            metavar="TIME",
            help="Open under this budget: the best of the package's plans for it; default: its first plan.",
        ),
        click.option("--memory", type=SIZE, metavar="SIZE", help="The same for everything the engine holds."),
    )
)

_IMPORTANCE = (
    click.option(
        "--calibration",
        type=FILE,
        metavar="FILE",
        help="TSV that importance is measured on; default: sentences built into stic.",
    ),
    click.option(
        "--calibration-tokens",
        type=click.IntRange(1),
        default=1536,
        show_default=True,
        metavar="N",
        help="Use at most so many tokens of it; more is slower and steadier.",
    ),
    click.option(
        "--objective",
        type=click.Choice(["agreement", "task"]),
        default="agreement",
        show_default=True,
        help="What a gain is measured in: agreement with the full model, or the loss of the file's labels.",
    ),
    click.option(
        "--method",
        type=click.Choice(["curves", "sti"]),
        default="curves",
        show_default=True,
        help="curves: gain of every bitwidth of every shard; sti: the published one-at-a-time ranking.",
    ),
    click.option("--exact", is_flag=True, help="Measure every bitwidth; else four, the others follow local errors."),
    click.option("--jobs", type=PROCESSES, metavar="K", help="Processes that measure importance; default: one a core."),
    click.option(
        "--cluster", type=NAME, metavar="ADDRESS", help="A Dask scheduler (tcp://host:port) that measures it instead."
    ),
)
_SHARDS = (
    click.option(
        "--model-output", type=NAME, metavar="NAME", help="Which of the graph's outputs is wanted; default: the first."
    ),
    click.option(
        "--max-length",
        type=click.IntRange(1),
        metavar="N",
        help="Longest input, in tokens; default: 128, or the model's positions where they are fewer.",
    ),
    click.option("--slices", type=SLICES, metavar="M", help="Slices per layer; default: the number of heads."),
    click.option(
        "--quantizer",
        type=click.Choice(["nested", "gobo"]),
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
gpu_use_option = click.option(
    "--gpu",
    type=click.Choice(["auto", "off", "required"]),
    default="auto",
    show_default=True,
    help="Layers planned for a GPU: on the CPU where it fails, always, or never.",
)
_GPU = (
    click.option(
        "--gpu",
        type=NAME,
        metavar="NAME|none",
        help="Put the GPU of target NAME beside the CPU of --target; default: the target's own, if it has one.",
    ),
    click.option(
        "--gpu-storage",
        type=click.Choice(["fp16", "fp32"]),
        default="fp16",
        show_default=True,
        help="Type of activations in the GPU's memory; sums are in fp32 either way.",
    ),
    click.option(
        "--place",
        type=click.Choice(["auto", "cpu", "gpu"]),
        default="auto",
        show_default=True,
        help="Where layers run; auto: where the measured or estimated times say, layer by layer.",
    ),
)
# What decides the shards and what they are worth.
shard_options = compose((*_IMPORTANCE, *_SHARDS))
# What decides a plan, budgets aside.
model_options = compose(
    (
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
        *_GPU,
        *_SHARDS,
        click.option(
            "--embedding-bits",
            type=click.Choice(["8", "16"]),
            help="Width of the word table's values; default: 8, or 16 where --bits asks for full precision (16, 32).",
        ),
        click.option("--threads", type=THREADS, metavar="K", help="Compute threads; default: the target's."),
        click.option("--lanes", type=LANES, metavar="K", help="IO lanes; default: the target's."),
        click.option(
            "--device-profile",
            "--device",
            "device",
            type=FILE,
            metavar="FILE",
            help="What `stic probe` wrote; default: probe this host, else the target file.",
        ),
        click.option(
            "--storage",
            type=STORAGE,
            metavar="RATE[,N]",
            help="Plan for storage of at most RATE bytes and N requests a second (100MB, or 300MB,25000);"
            " `stic run --storage` emulates it.",
        ),
        click.option("--importance", type=FILE, metavar="FILE", help="What `stic profile` wrote; skips measuring it."),
        *_IMPORTANCE,
    )
)
