"""`stic run`, `stic eval`, `stic bench`: a package at work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stic.compiler.commands.parameters import FILE, PICTURE, json_option, storage_option
from stic.compiler.commands.terminal import console, progress_bar
from stic.runtime.errors import InputError


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"'{text}' is not a list of token numbers: write for example --ids 101,7592,102") from error


@click.command("run")
@click.argument("package", type=FILE)
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="A sentence; repeat for several.")
@click.option("--pair", "pairs", multiple=True, metavar="TEXT", help="Second sentence of each --text, for pair tasks.")
@click.option("--ids", "id_lists", multiple=True, metavar="N,N,...", help="Token numbers instead of a sentence.")
@click.option("--truncate", is_flag=True, help="Cut a sentence that is longer than the package was compiled for.")
@click.option("--threads", type=click.IntRange(1), metavar="K", help="Compute threads; default: as planned.")
@storage_option
@click.option(
    "--trace", type=FILE, metavar="run.json", help="Write the trace of the longest input; opens in ui.perfetto.dev."
)
@click.option(
    "--timeline",
    type=PICTURE,
    is_flag=False,
    flag_value="-",
    metavar="[FILE.svg]",
    help="Draw the longest input, predicted against measured: here, or with a name as a picture.",
)
@json_option
def run_command(
    package: Path,
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    id_lists: tuple[str, ...],
    truncate: bool,
    threads: int | None,
    storage: int | None,
    trace: Path | None,
    timeline: Path | None,
    as_json: bool,
) -> None:
    """Run PACKAGE on sentences.

    A classifier prints labels; a sentence encoder, given several sentences, the cosine of every pair.

    \b
    Examples:
      stic run sst2.stic --text "a charming and often affecting journey"
      stic run minilm.stic --text "A cat sits." --text "A dog runs." --timeline
      stic run minilm.stic --text "A cat sits." --trace run.json --timeline run.svg
      stic run minilm.stic --ids 101,7592,102 --json
    """
    if bool(texts) == bool(id_lists):
        raise click.UsageError("give sentences with --text, or token numbers with --ids")
    if pairs and len(pairs) != len(texts):
        raise click.UsageError(f"{len(texts)} --text but {len(pairs)} --pair: each text needs its second sentence")
    import numpy as np

    from stic.compiler import answers, contents, drawing, report
    from stic.compiler.texts import tokens_of
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    if texts:
        inputs = tokens_of(opened, list(zip(texts, pairs or [None] * len(texts), strict=True)), truncate)
    else:
        inputs = [(np.asarray(_ids(text), np.int32), np.zeros(len(_ids(text)), np.int32)) for text in id_lists]
    has_types = int(opened.header["types"]) > 0
    runs: list[dict[str, Any]] = []
    outputs, traces = [], []
    with Session(package, threads=threads, io_bytes_per_s=storage) as session:
        for ids, types in inputs:
            outputs.append(session.run(ids, types if has_types else None))
            traces.append(session.trace())
            stats = session.stats()
            runs.append({"tokens": len(ids), "run_us": stats.run_us, "stall_us": stats.stall_us})
    longest = max(range(len(inputs)), key=lambda number: len(inputs[number][0]))
    if trace is not None:
        traces[longest].save(trace)
    names = contents.labels(opened)
    if as_json:
        facts = {"labels": list(names), "runs": runs, "outputs": [output.tolist() for output in outputs]}
        click.echo(json.dumps(facts))
    else:
        shown = list(texts) or [f"input {number}" for number in range(len(inputs))]
        answers.print_answers(console, shown, outputs, names)
        for number, run in enumerate(runs):
            console.print(answers.run_sentence(number, run))
    if timeline is None:
        return
    strips = [contents.predicted_strip(opened), report.measured(traces[longest], len(inputs[longest][0]))]
    if str(timeline) == "-":
        report.print_drawing(console, "\n" + drawing.terminal(strips, console.width))
    else:
        drawing.picture(strips, timeline)


@click.command("eval")
@click.argument("package", type=FILE)
@click.option("--data", type=FILE, required=True, metavar="FILE.tsv", help="Tab-separated, with a header line.")
@click.option(
    "--task",
    type=click.Choice(["classification", "similarity"]),
    help="What the file is for; default: what its columns say.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N examples.")
@click.option("--threads", type=click.IntRange(1), metavar="K", help="Compute threads; default: as planned.")
@json_option
def eval_command(package: Path, data: Path, task: Any, limit: int | None, threads: int | None, as_json: bool) -> None:
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
    """
    from stic.compiler import contents
    from stic.compiler.task import read_examples, score
    from stic.compiler.texts import outputs_of
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    examples = read_examples(data, task, contents.labels(opened) or None)
    if limit is not None:
        examples = examples.pick(range(min(limit, len(examples))))
    with Session(package, threads=threads) as session, progress_bar() as progress:
        metric = score(outputs_of(session, opened, examples, progress), examples)
    if as_json:
        click.echo(json.dumps({"metric": metric.name, "value": metric.value, "n": metric.n}))
    else:
        console.print(f"{metric.name} {metric.value:.4f} on {metric.n} examples of {data}", soft_wrap=True)


@click.command("bench")
@click.argument("package", type=FILE)
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Measured runs.")
@click.option("--threads", type=click.IntRange(1), metavar="K", help="Compute threads; default: as planned.")
@click.option("--length", type=click.IntRange(1), metavar="N", help="Tokens; default: what was planned for.")
@click.option("--cold", is_flag=True, help="Empty the preload buffer before every run, as after a long pause.")
@storage_option
@json_option
def bench_command(
    package: Path,
    runs: int,
    threads: int | None,
    length: int | None,
    cold: bool,
    storage: int | None,
    as_json: bool,
) -> None:
    """Measure latency and memory of PACKAGE, in a process that does nothing else.

    The input is random tokens. Memory is the process's own peak (VmHWM), beside what the plan claims.

    \b
    Examples:
      stic bench minilm.stic --runs 50
      stic bench minilm.stic --cold --json
    """
    from stic.compiler.bench import measure

    with progress_bar() as progress:
        progress("measuring", 0, 0)
        result = measure(package, runs, threads, length, cold, storage)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        console.print(result.table())


COMMANDS = {"run": run_command, "eval": eval_command, "bench": bench_command}
