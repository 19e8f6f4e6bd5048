"""`stic profile` and `stic probe`: what a model's shards are worth, and what a device can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stic.compiler.commands.parameters import FILE, json_option, shard_options
from stic.compiler.commands.terminal import console, progress_bar
from stic.compiler.options import CompileOptions
from stic.compiler.plan import Budget


@click.command("profile")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE.json", help="The file to write.")
@shard_options
@click.option(
    "--checks",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    metavar="N",
    help="Random plans of the additivity check: does the sum of gains rank plans as their measured loss does?",
)
@click.option("--cluster", metavar="ADDRESS", help="A Dask scheduler that gets the work; default: this machine.")
@json_option
def profile_command(model: Path, output: Path, checks: int, cluster: str | None, as_json: bool, **chosen: Any) -> None:
    """Measure what each bitwidth of each shard of MODEL is worth.

    With labels in the calibration file, worth is task loss; without, agreement with the full model. Results are kept as
    they come: a run that was stopped goes on where it was. `stic plan` and `stic compile` take the result with
    --importance.

    \b
    Examples:
      stic profile sst2/model.onnx --calibration train.tsv -o sst2.importance.json
      stic profile minilm.onnx --jobs 2 -o minilm.importance.json       (built-in sentences)
    """
    from stic.compiler import report
    from stic.compiler.pipeline import profile_model

    options = CompileOptions(model=model, target="host", budget=Budget(), **chosen)
    with progress_bar() as progress:
        importance = profile_model(options, output, checks, cluster, progress)
    if as_json:
        click.echo(output.read_text())
    else:
        report.print_importance(console, importance)
        console.print(f"wrote {output}", soft_wrap=True)


@click.command("probe")
@click.option("--target", default="host", show_default=True, metavar="NAME", help="Whose kernels to measure, here.")
@click.option("-o", "--output", type=FILE, metavar="FILE.json", help="Write what was measured here.")
@click.option(
    "--directory",
    type=FILE,
    metavar="DIR",
    help="Measure the storage that holds this directory; default: the one of the output, or this one.",
)
@json_option
def probe_command(target: str, output: Path | None, directory: Path | None, as_json: bool) -> None:
    """Measure this device: storage by request size and lanes, kernels by shape, bitwidth and threads.

    Reads bypass the page cache where the file system allows it, which is verified. `stic plan` and `stic compile` take
    the result with --device.

    \b
    Examples:
      stic probe
      stic probe --directory /data -o phone.json
    """
    from stic.compiler import report
    from stic.targets.probe import probe
    from stic.targets.target import load

    where = directory or (output.absolute().parent if output else Path.cwd())
    with progress_bar() as progress:
        profile = probe(load(target), where, progress)
    text = json.dumps(profile.to_json(), indent=1)
    if output is not None:
        output.write_text(text + "\n")
    if as_json:
        click.echo(text)
    else:
        report.print_device(console, profile)
        if output is not None:
            console.print(f"wrote {output}", soft_wrap=True)


COMMANDS = {"profile": profile_command, "probe": probe_command}
