"""What `stic run` and `stic deploy --run` share: inputs in, answers, traces and timelines out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stic.compiler.commands.groups import gathered
from stic.compiler.commands.parameters import FILE, NAME, PICTURE, SENTENCE
from stic.compiler.commands.terminal import console, print_notes, progress_bar
from stic.compiler.progress import silent
from stic.runtime.errors import InputError
from stic.runtime.limits import LIMITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stic.compiler.device.runner import Running
    from stic.compiler.report.texts import Ids
    from stic.runtime.package import Package
    from stic.runtime.session import Stats
    from stic.runtime.trace import Trace

ANSWER_FILES = (".jsonl", ".npy")

_INPUTS = (
    click.option(
        "--text", "texts", type=SENTENCE, multiple=True, metavar="TEXT", help="A sentence; repeat for several."
    ),
    click.option(
        "--pair",
        "pairs",
        type=SENTENCE,
        multiple=True,
        metavar="TEXT",
        help="Second sentence of each --text, for pair tasks.",
    ),
    click.option(
        "--texts",
        "lines",
        type=FILE,
        metavar="FILE",
        help="A file with a sentence a line, or a pair with a tab between; - for standard input.",
    ),
    click.option(
        "--ids",
        "id_lists",
        type=NAME,
        multiple=True,
        metavar="N,N,...",
        help="Token numbers instead of a sentence.",
    ),
    click.option("--truncate", is_flag=True, help="Cut a sentence that is longer than the package was compiled for."),
)
_RESULTS = (
    click.option(
        "--output",
        "-o",
        type=FILE,
        metavar="FILE.jsonl",
        help="Write the answers there as they come, or with .npy one array; the file appears when it is whole.",
    ),
    click.option(
        "--trace",
        type=FILE,
        metavar="run.json",
        help="Write the trace of the longest input; opens in ui.perfetto.dev.",
    ),
    click.option(
        "--timeline",
        type=PICTURE,
        is_flag=False,
        flag_value="-",
        metavar="[FILE.svg]",
        help="Draw the longest input, predicted against measured: here, or with a name as a picture.",
    ),
)


@dataclass(frozen=True)
class Question:
    """What a package is to be run on, and what is wanted to be seen; fields as the options above."""

    texts: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    id_lists: tuple[str, ...] = ()
    truncate: bool = False
    trace: Path | None = None
    timeline: Path | None = None
    lines: Path | None = None
    output: Path | None = None

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        if bool(self.texts) + bool(self.id_lists) + (self.lines is not None) != 1:
            raise click.UsageError("give sentences with --text or a file with --texts, or token numbers with --ids")
        if self.pairs and len(self.pairs) != len(self.texts):
            raise click.UsageError(
                f"{len(self.texts)} --text but {len(self.pairs)} --pair: each text needs its second sentence"
            )
        if self.output is not None and self.output.suffix not in ANSWER_FILES:
            raise click.UsageError(f"-o {self.output}: the answers' file must end in {' or '.join(ANSWER_FILES)}")

    def inputs(self, package: Package) -> Inputs:
        """What the package is run on; everything but a file of lines is tokenised at once."""
        import numpy as np

        from stic.compiler.report.lines import count_lines, read_lines
        from stic.compiler.report.texts import stream_tokens

        if self.lines is not None:
            total = count_lines(self.lines)
            coded = stream_tokens(package, read_lines(self.lines), self.truncate)
            return Inputs(total, (Input(text, pair, one.ids, one.types) for (text, pair), one in coded))
        if self.texts:
            pairs = list(zip(self.texts, self.pairs or [None] * len(self.texts), strict=True))
            coded = stream_tokens(package, pairs, self.truncate)
            found = [Input(text, pair, one.ids, one.types) for (text, pair), one in coded]
        else:
            arrays = [np.asarray(token_numbers(text), np.int32) for text in self.id_lists]
            found = [Input(f"input {n}", None, ids, np.zeros_like(ids)) for n, ids in enumerate(arrays)]
        return Inputs(len(found), iter(found))


@dataclass(frozen=True, eq=False)
class Input:
    """One text or pair, and its tokens."""

    text: str
    pair: str | None
    ids: Ids  # (tokens,)
    types: Ids  # (tokens,)

    @property
    def shown(self) -> str:
        """The text as people see it."""
        return self.text if self.pair is None else f"{self.text} | {self.pair}"


@dataclass(frozen=True)
class Inputs:
    """Inputs, to be gone through once; `total` 0: not known how many."""

    total: int
    each: Iterator[Input]


question_group = gathered("question", Question, *_INPUTS, *_RESULTS)


def token_numbers(text: str) -> list[int]:
    """Token numbers of a list such as 101,7592,102. Raises InputError for anything else."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(f"'{text}' is not a list of token numbers: write for example --ids 101,7592,102")
    for part in parts:
        if len(part.lstrip("0")) > len(str(LIMITS["vocabulary"])):
            raise InputError(f"token {part} is out of range: no vocabulary has more than {LIMITS['vocabulary']} tokens")
    return [int(part) for part in parts]


class _Seen:
    """What runs leave behind: everything, or where answers go to a file, sums alone; and the longest one's trace."""

    def __init__(self, question: Question) -> None:
        self.runs: list[dict[str, int]] = []
        self.shown: list[str] = []
        self.outputs: list[NDArray[Any]] = []
        self.said: list[Any] = []
        self.tokens: list[list[str]] = []
        self.total = {"tokens": 0, "run_us": 0, "stall_us": 0}
        self.count = self.longest = 0
        self.trace: Trace | None = None
        self._question = question

    def add(self, session: Running, one: Input, output: NDArray[Any], said: Any, tokens: list[str]) -> Stats:
        """Note a run that has just ended."""
        stats, length = session.stats(), len(one.ids)
        run = {"tokens": length, "run_us": stats.run_us, "stall_us": stats.stall_us}
        self.count += 1
        self.total = {name: value + run[name] for name, value in self.total.items()}
        if length > self.longest:
            self.longest = length
            if self._question.trace is not None or self._question.timeline is not None:
                self.trace = session.trace()
        if self._question.output is None:
            self.runs.append(run)
            self.shown.append(one.shown)
            self.outputs.append(output)
            self.said.append(said)
            self.tokens.append(tokens)
        return stats


def answer(
    question: Question,
    package: Package,
    inputs: Inputs,
    session: Running,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Run every input, and show what was asked for; `more` goes into the JSON object.

    With an output file the answers go there as they come, and nothing of them is held.
    """
    from stic.compiler.frontend.reading import recorded
    from stic.compiler.report import answers, contents, drawing, report
    from stic.compiler.report.lines import AnswerFile
    from stic.compiler.report.texts import token_names

    reading, seen = recorded(package), _Seen(question)
    has_types, per_token = int(package.model["types"]) > 1, int(package.model["pooling"]) == 0
    if question.output is not None and question.output.suffix == ".npy" and per_token:
        raise InputError(f"{package.path} gives numbers for each token, which fill no .npy array: use -o FILE.jsonl")
    names_of = token_names(package) if per_token and reading.kind != "vector" else None
    with ExitStack() as opened:
        file = None if question.output is None else opened.enter_context(AnswerFile(question.output))
        progress = opened.enter_context(progress_bar()) if question.lines is not None else silent
        for one in inputs.each:
            output = session.run(one.ids, one.types if has_types else None)
            tokens = [] if names_of is None else names_of(one.ids)
            said = answers.said(reading, output, tokens)
            stats = seen.add(session, one, output, said, tokens)
            if file is not None:
                given = {"text": one.text, **({} if one.pair is None else {"pair": one.pair})}
                file.add({"ids": one.ids.tolist()} if question.id_lists else given, output, said)
            progress("running", seen.count, inputs.total)
    package = package.with_plan(stats.plan)
    if question.trace is not None and seen.trace is not None:
        seen.trace.save(question.trace)
    if session.device and not stats.gpu_layers:
        print_notes((f"layers planned for the GPU run {session.device}",))
    if as_json:
        facts: dict[str, Any] = {
            "labels": list(reading.names),
            "reading": reading.kind,
            "plan": package.number,
        }
        if question.output is None:
            facts |= {"runs": seen.runs, "outputs": [output.tolist() for output in seen.outputs]}
            facts |= {} if reading.kind == "vector" else {"answers": seen.said}
        else:
            facts |= {"inputs": seen.count, **seen.total, "output": str(question.output)}
        gpu = {"device": session.device, "layers": stats.gpu_layers, "builds": stats.gpu_builds}
        click.echo(json.dumps({**facts, "gpu": gpu, **(more or {})}))
    else:
        if question.output is None:
            answers.print_answers(console, seen.shown, seen.outputs, reading, seen.tokens)
        if question.lines is None and question.output is None:
            for number, run in enumerate(seen.runs):
                console.print(answers.run_sentence(number, run))
        else:
            console.print(answers.total_sentence(seen.count, seen.total), soft_wrap=True)
        if question.output is not None:
            console.print(f"wrote {question.output}", soft_wrap=True)
        if len(package.plans) > 1:
            console.print(contents.budget_words(package), soft_wrap=True)
        if stats.gpu_layers:
            console.print(f"{stats.gpu_layers} layers on {session.device}", soft_wrap=True)
    if question.timeline is None or seen.trace is None:
        return
    strips = [contents.predicted_strip(package), report.measured(seen.trace, seen.longest)]
    if str(question.timeline) == "-":
        report.print_drawing(console, "\n" + drawing.terminal(strips, console.width))
    else:
        drawing.picture(strips, question.timeline)
