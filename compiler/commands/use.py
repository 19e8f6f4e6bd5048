"""`stic run` and `stic bench`: a package at work."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stic.compiler.commands.groups import gathered, json_option, length_option, session_group
from stic.compiler.commands.parameters import FILE, ROUNDS
from stic.compiler.commands.running import Question, answer, question_group
from stic.compiler.commands.terminal import console, progress_bar
from stic.runtime.errors import InputError
from stic.runtime.limits import LIMITS
from stic.runtime.session import SessionOptions

if TYPE_CHECKING:
    from stic.compiler.device.bench import Bench
    from stic.compiler.device.bench_decoder import DecoderBench

RUNS = 20  # of an encoder


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
    from stic.compiler.text.packaged import check_encoder
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    opened = Package.open(package)
    check_encoder(opened)
    inputs = question.inputs(opened)
    with Session(package, **session) as running:
        answer(question, opened, inputs, running, as_json)


@dataclass(frozen=True)
class Benched:
    """What is run, of an encoder and of a decoder."""

    runs: int | None
    length: int | None
    cold: bool
    prompt_tokens: int | None
    new_tokens: int | None

    def check(self, decoder: bool, package: Path) -> None:
        """Raise InputError for options of the other kind of model."""
        if decoder and (self.runs or self.length or self.cold):
            raise InputError(
                f"{package} is a decoder, and --runs, --length and --cold are for encoders: give --prompt-tokens and"
                " --new-tokens"
            )
        if not decoder and (self.prompt_tokens or self.new_tokens):
            raise InputError(
                f"{package} is an encoder, and --prompt-tokens and --new-tokens are for decoders: give --length"
                " and --runs"
            )


_benched_group = gathered(
    "benched",
    Benched,
    click.option(
        "--runs", type=click.IntRange(1, ROUNDS), metavar="N", help=f"Measured runs of an encoder; default: {RUNS}."
    ),
    length_option,
    click.option("--cold", is_flag=True, help="Empty the preload buffer before every run, as after a long pause."),
    click.option(
        "--prompt-tokens",
        type=click.IntRange(1, LIMITS["max_length"]),
        metavar="N",
        help="Tokens that a decoder is given; default: 512, or what the context has room for.",
    ),
    click.option(
        "--new-tokens",
        type=click.IntRange(2, LIMITS["max_length"]),
        metavar="N",
        help="Tokens that it generates; default: 64, or what the context has room for.",
    ),
)


@click.command("bench")
@click.argument("package", type=FILE)
@_benched_group
@session_group
@json_option
def bench_command(package: Path, benched: Benched, session: SessionOptions, as_json: bool) -> None:
    """Measure latency and memory of PACKAGE, in a process that does nothing else.

    The input is random tokens. Of a decoder the first token of an answer is measured, with the prompt, and those that
    follow. Memory is the process's own peak (VmHWM), beside what the plan claims.

    \b
    Examples:
      stic bench minilm.stic --runs 50
      stic bench minilm.stic --cold --json
      stic bench minilm.stic --latency 40ms                             (a package compiled with --also)
      stic bench smollm.stic --prompt-tokens 512 --new-tokens 64
    """
    from stic.compiler.device.bench import measure
    from stic.compiler.device.bench_decoder import measure_decoder
    from stic.compiler.text.packaged import is_decoder
    from stic.runtime.package import Package

    decoder = is_decoder(Package.open(package))
    benched.check(decoder, package)
    result: Bench | DecoderBench
    with progress_bar() as progress:
        progress("measuring", 0, 0)
        if decoder:
            result = measure_decoder(package, benched.prompt_tokens, benched.new_tokens, **session)
        else:
            result = measure(package, benched.runs or RUNS, benched.length, benched.cold, **session)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        console.print(result.table())


COMMANDS = {"run": run_command, "bench": bench_command}
