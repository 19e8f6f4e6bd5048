"""`stic run`, `stic eval`, `stic bench`: a package at work."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stic.compiler.commands.device_options import DeviceChoice, device_group, directory_option, tracker_option
from stic.compiler.commands.groups import gathered, json_option, length_option, session_group
from stic.compiler.commands.parameters import FILE, PROCESSES, ROUNDS
from stic.compiler.commands.running import Question, answer, question_group
from stic.compiler.commands.terminal import console, progress_bar
from stic.runtime.session import SessionOptions

if TYPE_CHECKING:
    from stic.compiler.importance.examples import Kind


@click.command("run")
@click.argument("package", type=FILE)
@question_group
@session_group
@json_option
def run_command(package: Path, question: Question, session: SessionOptions, as_json: bool) -> None:
    """Run PACKAGE on sentences.

    A classifier prints labels, for each token where it labels tokens; a model with one logit prints a score; a sentence
    encoder, given several sentences, the cosine of every pair.

    \b
    Examples:
      stic run sst2.stic --text "a charming and often affecting journey"
      stic run minilm.stic --text "A cat sits." --text "A dog runs." --timeline
      stic run minilm.stic --text "A cat sits." --trace run.json --timeline run.svg
      stic run minilm.stic --text "A cat sits." --memory 4MiB           (a package compiled with --also)
      stic run minilm.stic --ids 101,7592,102 --json
      stic run minilm.stic --texts sentences.txt -o vectors.npy
      cat sentences.txt | stic run minilm.stic --texts - -o vectors.jsonl
    """
    question.check()
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    inputs = question.inputs(opened)
    with Session(package, **session) as running:
        answer(question, opened, inputs, running, as_json)


@dataclass(frozen=True)
class Evaluated:
    """What a package is measured on."""

    data: Path
    task: Kind | None
    limit: int | None


@click.command("eval")
@click.argument("package", type=FILE)
@gathered(
    "evaluated",
    Evaluated,
    click.option("--data", type=FILE, required=True, metavar="FILE.tsv", help="Tab-separated, with a header line."),
    click.option(
        "--task",
        type=click.Choice(["classification", "similarity"]),
        help="What the file is for; default: what its columns say.",
    ),
    click.option("--limit", type=click.IntRange(1, ROUNDS), metavar="N", help="Only the first N examples."),
)
@session_group
@device_group(tracker_option)
@directory_option
@click.option("--devices", type=PROCESSES, default=1, show_default=True, metavar="N", help="Share it among N of them.")
@json_option
def eval_command(
    package: Path,
    evaluated: Evaluated,
    session: SessionOptions,
    device: DeviceChoice,
    directory: str | None,
    devices: int,
    as_json: bool,
) -> None:
    """Measure how well PACKAGE does on a TSV file.

    \b
    Columns of the file:
      sentence, label                    classification: accuracy
      question, sentence, label          classification of a pair
      sentence1, sentence2, label        classification of a pair
      score, sentence1, sentence2        similarity: Spearman of the cosines
    A model that gives one score ranks: labels 0 and 1 give the area under the ROC curve, other numbers
    Spearman. Where labels stand each for itself, a row lists its own with commas, and F1 is measured.
    Sentences longer than the package was compiled for are cut.

    \b
    Examples:
      stic eval sst2.stic --data sst2/dev.tsv
      stic eval minilm.stic --data stsb/dev.tsv --task similarity --json
      stic eval sst2.stic --data sst2/dev.tsv --tracker 192.168.1.10:9190 --key phone --devices 4
    """
    from stic.compiler.device.deploy import deployed, outputs_on
    from stic.compiler.frontend.reading import recorded
    from stic.compiler.importance.examples import read_examples
    from stic.compiler.importance.scoring import score
    from stic.compiler.report.texts import outputs_of
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    reading = recorded(opened)
    examples = read_examples(evaluated.data, evaluated.task, reading=reading)
    if evaluated.limit is not None:
        examples = examples.pick(range(min(evaluated.limit, len(examples))))
    address = device.address(str(opened.plan.get("target", "")))
    if address is None and (devices > 1 or directory is not None):
        raise click.UsageError("--devices and --directory belong to --tracker")
    if address is not None and (session.get("latency_us") or session.get("memory_bytes")):
        raise click.UsageError("with --tracker the package's first plan runs: leave out --latency and --memory")
    with ExitStack() as opening:
        progress = opening.enter_context(progress_bar())
        if address is None:
            running = opening.enter_context(Session(package, **session))
            outputs = outputs_of(running, opened, examples, progress)
        else:
            leased = partial(deployed, opened, address, directory, device.system)
            outputs = outputs_on(leased, devices, opened, examples, progress, **session)
    metric = score(outputs, examples, reading.similarity)
    if as_json:
        click.echo(json.dumps({"metric": metric.name, "value": metric.value, "n": metric.n}))
    else:
        sentence = f"{metric.name} {metric.value:.4f} on {metric.n} examples of {evaluated.data}"
        console.print(sentence, soft_wrap=True)


@click.command("bench")
@click.argument("package", type=FILE)
@click.option(
    "--runs", type=click.IntRange(1, ROUNDS), default=20, show_default=True, metavar="N", help="Measured runs."
)
@length_option
@click.option("--cold", is_flag=True, help="Empty the preload buffer before every run, as after a long pause.")
@session_group
@json_option
def bench_command(
    package: Path, runs: int, length: int | None, cold: bool, session: SessionOptions, as_json: bool
) -> None:
    """Measure latency and memory of PACKAGE, in a process that does nothing else.

    The input is random tokens. Memory is the process's own peak (VmHWM), beside what the plan claims.

    \b
    Examples:
      stic bench minilm.stic --runs 50
      stic bench minilm.stic --cold --json
      stic bench minilm.stic --latency 40ms                             (a package compiled with --also)
    """
    from stic.compiler.device.bench import measure

    with progress_bar() as progress:
        progress("measuring", 0, 0)
        result = measure(package, runs, length, cold, **session)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        console.print(result.table())


COMMANDS = {"run": run_command, "eval": eval_command, "bench": bench_command}
