"""`stic run`, `stic eval`, `stic bench`: a package at work."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from stic.compiler.commands.device_options import DeviceChoice, directory_option, lease_options, tracker_option
from stic.compiler.commands.parameters import (
    FILE,
    LENGTH,
    PROCESSES,
    ROUNDS,
    THREADS,
    gpu_use_option,
    json_option,
    session_budget_options,
    storage_option,
)
from stic.compiler.commands.running import Question, answer, input_options, result_options
from stic.compiler.commands.terminal import console, progress_bar
from stic.runtime.emulated import EmulatedStorage


@click.command("run")
@click.argument("package", type=FILE)
@input_options
@click.option("--threads", type=THREADS, metavar="K", help="Compute threads; default: as planned.")
@session_budget_options
@storage_option
@gpu_use_option
@result_options
@json_option
def run_command(
    package: Path,
    threads: int | None,
    latency: int | None,
    memory: int | None,
    storage: EmulatedStorage | None,
    gpu: Any,
    as_json: bool,
    **asked: Any,
) -> None:
    """Run PACKAGE on sentences.

    A classifier prints labels; a sentence encoder, given several sentences, the cosine of every pair.

    \b
    Examples:
      stic run sst2.stic --text "a charming and often affecting journey"
      stic run minilm.stic --text "A cat sits." --text "A dog runs." --timeline
      stic run minilm.stic --text "A cat sits." --trace run.json --timeline run.svg
      stic run minilm.stic --text "A cat sits." --memory 4MiB           (a package compiled with --also)
      stic run minilm.stic --ids 101,7592,102 --json
    """
    question = Question(**asked)
    question.check()
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    inputs = question.inputs(opened)
    with Session(
        package, threads=threads, storage=storage, gpu=gpu, latency_us=latency, memory_bytes=memory
    ) as session:
        answer(question, opened, inputs, session, as_json)


@click.command("eval")
@click.argument("package", type=FILE)
@click.option("--data", type=FILE, required=True, metavar="FILE.tsv", help="Tab-separated, with a header line.")
@click.option(
    "--task",
    type=click.Choice(["classification", "similarity"]),
    help="What the file is for; default: what its columns say.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N examples.")
@click.option("--threads", type=THREADS, metavar="K", help="Compute threads; default: as planned.")
@session_budget_options
@gpu_use_option
@tracker_option
@lease_options
@directory_option
@click.option("--devices", type=PROCESSES, default=1, show_default=True, metavar="N", help="Share it among N of them.")
@json_option
def eval_command(
    package: Path,
    data: Path,
    task: Any,
    limit: int | None,
    threads: int | None,
    latency: int | None,
    memory: int | None,
    gpu: Any,
    directory: str | None,
    devices: int,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Measure how well PACKAGE does on a TSV file.

    \b
    Columns of the file:
      sentence, label                    classification: accuracy
      question, sentence, label          classification of a pair
      sentence1, sentence2, label        classification of a pair
      score, sentence1, sentence2        similarity: Spearman of the cosines
    Sentences longer than the package was compiled for are cut.

    \b
    Examples:
      stic eval sst2.stic --data sst2/dev.tsv
      stic eval minilm.stic --data stsb/dev.tsv --task similarity --json
      stic eval sst2.stic --data sst2/dev.tsv --tracker 192.168.1.10:9190 --key phone --devices 4
    """
    from stic.compiler.device.deploy import deployed, outputs_on
    from stic.compiler.importance.examples import read_examples
    from stic.compiler.importance.scoring import score
    from stic.compiler.report import contents
    from stic.compiler.report.texts import outputs_of
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    examples = read_examples(data, task, contents.labels(opened) or None)
    if limit is not None:
        examples = examples.pick(range(min(limit, len(examples))))
    place = DeviceChoice(**chosen).place(str(opened.plan.get("target", "")))
    if place is None and (devices > 1 or directory is not None):
        raise click.UsageError("--devices and --directory belong to --tracker")
    if place is not None and (latency is not None or memory is not None):
        raise click.UsageError("with --tracker the package's first plan runs: leave out --latency and --memory")
    with ExitStack() as opening:
        progress = opening.enter_context(progress_bar())
        if place is None:
            budgeted = Session(package, threads=threads, gpu=gpu, latency_us=latency, memory_bytes=memory)
            session = opening.enter_context(budgeted)
            outputs = outputs_of(session, opened, examples, progress)
        else:
            leased = partial(deployed, opened, place, directory, chosen["system"])
            outputs = outputs_on(leased, devices, opened, examples, progress, threads, gpu)
    metric = score(outputs, examples)
    if as_json:
        click.echo(json.dumps({"metric": metric.name, "value": metric.value, "n": metric.n}))
    else:
        console.print(f"{metric.name} {metric.value:.4f} on {metric.n} examples of {data}", soft_wrap=True)


@click.command("bench")
@click.argument("package", type=FILE)
@click.option(
    "--runs", type=click.IntRange(1, ROUNDS), default=20, show_default=True, metavar="N", help="Measured runs."
)
@click.option("--threads", type=THREADS, metavar="K", help="Compute threads; default: as planned.")
@click.option("--length", type=LENGTH, metavar="N", help="Tokens; default: what was planned for.")
@click.option("--cold", is_flag=True, help="Empty the preload buffer before every run, as after a long pause.")
@session_budget_options
@storage_option
@gpu_use_option
@json_option
def bench_command(
    package: Path,
    runs: int,
    threads: int | None,
    length: int | None,
    cold: bool,
    latency: int | None,
    memory: int | None,
    storage: EmulatedStorage | None,
    gpu: str,
    as_json: bool,
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
        result = measure(package, runs, threads, length, cold, storage, gpu, latency, memory)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        console.print(result.table())


COMMANDS = {"run": run_command, "eval": eval_command, "bench": bench_command}
