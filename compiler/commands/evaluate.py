"""`stic eval`: how well a package does on a file."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from stic.compiler.commands.device_options import DeviceChoice, device_group, directory_option, tracker_option
from stic.compiler.commands.groups import gathered, json_option, session_group
from stic.compiler.commands.parameters import FILE, PROCESSES, ROUNDS
from stic.compiler.commands.terminal import console, progress_bar
from stic.runtime.errors import InputError
from stic.runtime.session import SessionOptions

if TYPE_CHECKING:
    from stic.compiler.importance.examples import Kind
    from stic.runtime.package import Package
    from stic.targets.rpc import DeviceAddress

ENCODER_TASKS = ("classification", "similarity")
DECODER_TASKS = ("perplexity", "choice", "lastword")
WINDOW = 512


@dataclass(frozen=True)
class Evaluated:
    """What a package is measured on."""

    data: Path
    task: str | None
    limit: int | None
    tokens: int | None
    window: int | None

    def check(self, decoder: bool, package: Path) -> None:
        """Raise UsageError for options that contradict each other, InputError for a task of the other kind of model."""
        if (self.tokens or self.window) and self.task != "perplexity":
            raise click.UsageError("--tokens and --window belong to --task perplexity")
        if self.limit and self.task == "perplexity":
            raise click.UsageError("--limit counts examples: with --task perplexity give --tokens")
        kind, tasks = ("a decoder", DECODER_TASKS) if decoder else ("an encoder", ENCODER_TASKS)
        if self.task not in tasks and (decoder or self.task is not None):
            wrong = "" if self.task is None else f", which --task {self.task} is not for"
            raise InputError(f"{package} is {kind}{wrong}: give --task {', '.join(tasks[:-1])} or {tasks[-1]}")


@dataclass(frozen=True)
class Place:
    """Where a package is evaluated: here, or on devices of a tracker."""

    device: DeviceChoice
    directory: str | None
    devices: int

    def address(self, package: Package) -> DeviceAddress | None:
        """Where to lease devices; None: the package runs here. Raises UsageError for options that contradict."""
        address = self.device.address(str(package.plan.get("target", "")))
        if address is None and (self.devices > 1 or self.directory is not None):
            raise click.UsageError("--devices and --directory belong to --tracker")
        return address


_place_group = gathered(
    "place",
    Place,
    device_group(tracker_option),
    directory_option,
    click.option("--devices", type=PROCESSES, default=1, show_default=True, metavar="N", help="Share it among N."),
)


@click.command("eval")
@click.argument("package", type=FILE)
@gathered(
    "evaluated",
    Evaluated,
    click.option("--data", type=FILE, required=True, metavar="FILE", help="What to measure on; see above."),
    click.option(
        "--task",
        type=click.Choice([*ENCODER_TASKS, *DECODER_TASKS]),
        help="What the file is for; default, of encoders: what its columns say.",
    ),
    click.option("--limit", type=click.IntRange(1, ROUNDS), metavar="N", help="Only the first N examples."),
    click.option(
        "--tokens", type=click.IntRange(2), metavar="N", help="Perplexity of the first N tokens; default: all."
    ),
    click.option(
        "--window",
        type=click.IntRange(2),
        metavar="N",
        help=f"Perplexity in windows of N tokens; default: {WINDOW}, or the context where that is less.",
    ),
)
@session_group
@_place_group
@json_option
def eval_command(package: Path, evaluated: Evaluated, session: SessionOptions, place: Place, as_json: bool) -> None:
    """Measure how well PACKAGE does on a file.

    \b
    Columns of a TSV file for encoders:
      sentence, label                    classification: accuracy
      question, sentence, label          classification of a pair
      sentence1, sentence2, label        classification of a pair
      score, sentence1, sentence2        similarity: Spearman of the cosines
    A model that gives one score ranks: labels 0 and 1 give the area under the ROC curve, other numbers
    Spearman. Where labels stand each for itself, a row lists its own with commas, and F1 is measured.
    Sentences longer than the package was compiled for are cut.

    \b
    Tasks of decoders:
      perplexity   plain text, cut into windows of tokens
      choice       TSV with question, choice0, choice1, ..., answer (from 0): accuracy
      lastword     TSV with context, target: how often the target is the likeliest continuation

    \b
    Examples:
      stic eval sst2.stic --data sst2/dev.tsv
      stic eval minilm.stic --data stsb/dev.tsv --task similarity --json
      stic eval sst2.stic --data sst2/dev.tsv --tracker 192.168.1.10:9190 --key phone --devices 4
      stic eval smollm.stic --task perplexity --data book.txt --tokens 20000
      stic eval smollm.stic --task choice --data arc.tsv --limit 200 --json
    """
    from stic.compiler.text.packaged import is_decoder
    from stic.runtime.package import Package

    opened = Package.open(package)
    decoder = is_decoder(opened)
    evaluated.check(decoder, package)
    if decoder:
        facts = _decoder_facts(opened, evaluated, session, place)
    else:
        facts = _encoder_facts(opened, evaluated, session, place)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        things = "tokens" if facts["metric"] == "perplexity" else "examples"
        sentence = f"{facts['metric']} {facts['value']:.4f} on {facts['n']} {things} of {evaluated.data}"
        console.print(sentence, soft_wrap=True)


def _encoder_facts(opened: Package, evaluated: Evaluated, session: SessionOptions, place: Place) -> dict[str, Any]:
    """Score the answers to the examples of a TSV file, here or on devices."""
    from stic.compiler.device.deploy import deployed, outputs_on
    from stic.compiler.frontend.reading import recorded
    from stic.compiler.importance.examples import read_examples
    from stic.compiler.importance.scoring import score
    from stic.compiler.report.texts import outputs_of
    from stic.runtime.session import Session

    reading = recorded(opened)
    examples = read_examples(evaluated.data, cast("Kind | None", evaluated.task), reading=reading)
    if evaluated.limit is not None:
        examples = examples.pick(range(min(evaluated.limit, len(examples))))
    address = place.address(opened)
    if address is not None and (session.get("latency_us") or session.get("memory_bytes")):
        raise click.UsageError("with --tracker the package's first plan runs: leave out --latency and --memory")
    with ExitStack() as opening:
        progress = opening.enter_context(progress_bar())
        if address is None:
            running = opening.enter_context(Session(opened.path, **session))
            outputs = outputs_of(running, opened, examples, progress)
        else:
            leased = partial(deployed, opened, address, place.directory, place.device.system)
            outputs = outputs_on(leased, place.devices, opened, examples, progress, **session)
    metric = score(outputs, examples, reading.similarity)
    return {"metric": metric.name, "value": metric.value, "n": metric.n}


def _decoder_facts(opened: Package, evaluated: Evaluated, session: SessionOptions, place: Place) -> dict[str, Any]:
    """Score what a decoder makes of a file, on this machine."""
    from stic.compiler.language.perplexity import perplexity
    from stic.compiler.language.questions import choose, last_words, read_passages, read_questions
    from stic.compiler.language.scorers import SessionScorer
    from stic.compiler.text.packaged import coder_of
    from stic.runtime.files import read_text
    from stic.runtime.session import Session

    if place.address(opened) is not None:
        raise click.UsageError("decoders are evaluated on this machine: leave out --tracker")
    coder, data, limit = coder_of(opened), evaluated.data, evaluated.limit
    with ExitStack() as opening:
        progress = opening.enter_context(progress_bar())
        scorer = SessionScorer(opening.enter_context(Session(opened.path, **session)))
        if evaluated.task == "perplexity":
            ids = coder.encode(read_text(data))
            window = evaluated.window or min(WINDOW, scorer.context)
            return perplexity(scorer, ids, window, evaluated.tokens, progress).to_json()
        if evaluated.task == "choice":
            return choose(scorer, coder.prompt, read_questions(data)[:limit], progress=progress).to_json()
        return last_words(scorer, coder.prompt, read_passages(data)[:limit], progress).to_json()


COMMANDS = {"eval": eval_command}
