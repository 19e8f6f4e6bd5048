"""What `stic run` and `stic deploy --run` share: inputs in, answers, traces and timelines out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stic.compiler.commands.groups import gathered
from stic.compiler.commands.parameters import FILE, NAME, PICTURE, SENTENCE
from stic.compiler.commands.terminal import console, print_notes
from stic.runtime.errors import InputError
from stic.runtime.format import LIMITS

if TYPE_CHECKING:
    from stic.compiler.device.runner import Running
    from stic.compiler.report.texts import Ids
    from stic.runtime.package import Package

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

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        if bool(self.texts) == bool(self.id_lists):
            raise click.UsageError("give sentences with --text, or token numbers with --ids")
        if self.pairs and len(self.pairs) != len(self.texts):
            raise click.UsageError(
                f"{len(self.texts)} --text but {len(self.pairs)} --pair: each text needs its second sentence"
            )

    def inputs(self, package: Package) -> list[tuple[Ids, Ids]]:
        """(ids, types) of each input."""
        import numpy as np

        from stic.compiler.report.texts import tokens_of

        if self.texts:
            return tokens_of(
                package, list(zip(self.texts, self.pairs or [None] * len(self.texts), strict=True)), self.truncate
            )
        return [(np.asarray(_ids(text), np.int32), np.zeros(len(_ids(text)), np.int32)) for text in self.id_lists]


question_group = gathered("question", Question, *_INPUTS, *_RESULTS)


def _ids(text: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(f"'{text}' is not a list of token numbers: write for example --ids 101,7592,102")
    for part in parts:
        if len(part.lstrip("0")) > len(str(LIMITS["vocabulary"])):
            raise InputError(f"token {part} is out of range: no vocabulary has more than {LIMITS['vocabulary']} tokens")
    return [int(part) for part in parts]


def answer(
    question: Question,
    package: Package,
    inputs: Sequence[tuple[Ids, Ids]],
    session: Running,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Run every input, and show what was asked for; `more` goes into the JSON object."""
    from stic.compiler.report import answers, contents, drawing, report

    has_types = int(package.header["types"]) > 1
    runs: list[dict[str, Any]] = []
    outputs, traces = [], []
    for ids, types in inputs:
        outputs.append(session.run(ids, types if has_types else None))
        traces.append(session.trace())
        stats = session.stats()
        runs.append({"tokens": len(ids), "run_us": stats.run_us, "stall_us": stats.stall_us})
    package = package.with_plan(stats.plan)
    longest = max(range(len(inputs)), key=lambda number: len(inputs[number][0]))
    if question.trace is not None:
        traces[longest].save(question.trace)
    names = contents.labels(package)
    if session.device and not stats.gpu_layers:
        print_notes((f"layers planned for the GPU run {session.device}",))
    if as_json:
        facts = {
            "labels": list(names),
            "plan": package.number,
            "runs": runs,
            "outputs": [output.tolist() for output in outputs],
        }
        gpu = {"device": session.device, "layers": stats.gpu_layers, "builds": stats.gpu_builds}
        click.echo(json.dumps({**facts, "gpu": gpu, **(more or {})}))
    else:
        shown = list(question.texts) or [f"input {number}" for number in range(len(inputs))]
        answers.print_answers(console, shown, outputs, names)
        for number, run in enumerate(runs):
            console.print(answers.run_sentence(number, run))
        if len(package.plans) > 1:
            console.print(contents.budget_words(package), soft_wrap=True)
        if stats.gpu_layers:
            console.print(f"{stats.gpu_layers} layers on {session.device}", soft_wrap=True)
    if question.timeline is None:
        return
    strips = [contents.predicted_strip(package), report.measured(traces[longest], len(inputs[longest][0]))]
    if str(question.timeline) == "-":
        report.print_drawing(console, "\n" + drawing.terminal(strips, console.width))
    else:
        drawing.picture(strips, question.timeline)
