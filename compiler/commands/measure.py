"""`stic importance` and `stic probe`: what a model's shards are worth, and what a device can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stic.compiler.commands.device_options import DeviceChoice, device_group, tracker_option
from stic.compiler.commands.groups import (
    gathered,
    json_option,
    lanes_option,
    measured_group,
    model_group,
    shards_group,
    slices_option,
    threads_option,
)
from stic.compiler.commands.parameters import FILE, LENGTH, NAME, ROUNDS
from stic.compiler.commands.terminal import console, print_notes, progress_bar
from stic.compiler.options import (
    CompileOptions,
    DecoderOptions,
    ImportanceOptions,
    ModelOptions,
    ShardOptions,
    StageOptions,
    TargetOptions,
)
from stic.runtime.errors import InputError, TargetError

if TYPE_CHECKING:
    from stic.compiler.cache.arrays import Note
    from stic.compiler.device.runner import Runner, Tick
    from stic.targets.target import Target

ENCODER_CHECKS, DECODER_CHECKS = 50, 200  # random plans


@click.command("importance")
@model_group
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE.json", help="The file to write.")
@shards_group
@measured_group
@click.option(
    "--checks",
    type=click.IntRange(0, ROUNDS),
    metavar="N",
    help="Random plans of the additivity check: does the sum of gains rank plans as their measured loss does?"
    f" Default: {ENCODER_CHECKS}, of decoders {DECODER_CHECKS}.",
)
@json_option
def importance_command(
    model: ModelOptions,
    output: Path,
    shards: ShardOptions,
    measured: ImportanceOptions,
    checks: int | None,
    as_json: bool,
) -> None:
    """Measure what each bitwidth of each shard of MODEL is worth.

    Worth is agreement with the full model, or with --objective task what the calibration file's labels say. Results are
    kept as they come: a run that was stopped goes on where it was. `stic plan` and `stic compile` take the result with
    --importance.

    \b
    Examples:
      stic importance sst2/model.onnx --calibration train.tsv -o sst2.importance.json
      stic importance minilm.onnx --jobs 2 -o minilm.importance.json       (built-in sentences)
      stic importance smollm2.gguf --calibration wiki.txt -o smollm2.importance.json
    """
    from stic.compiler.importance.file import save
    from stic.compiler.importance.measure import Importance
    from stic.compiler.inputs import decodes
    from stic.compiler.pipeline import plan_model
    from stic.compiler.report import report

    if checks is None:
        checks = DECODER_CHECKS if decodes(model.path) else ENCODER_CHECKS
    options = CompileOptions(
        model,
        TargetOptions("host"),
        shards=shards,
        importance=replace(measured, checks=checks),
        stages=StageOptions(until="importance"),
    )
    with progress_bar() as progress:
        importance = plan_model(options, progress)[Importance]
    save(importance, output)
    facts = report.importance_facts(importance)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        console.print(report.facts_table(facts))
        console.print(f"wrote {output}", soft_wrap=True)


@dataclass(frozen=True)
class Layers:
    """Whose layers are measured, and how an engine runs them; None: a small encoder's, or the default."""

    model: Path | None
    max_length: int | None
    slices: int | None
    threads: int | None
    lanes: int | None
    context: int | None  # of a decoder


@click.command("probe")
@gathered(
    "layers",
    Layers,
    click.argument("model", type=FILE, required=False),
    click.option(
        "--max-length",
        type=LENGTH,
        metavar="N",
        help="Tokens; default: 128, or the model's positions where they are fewer.",
    ),
    slices_option,
    threads_option,
    lanes_option,
    click.option(
        "--context",
        type=click.IntRange(1),
        metavar="N",
        help="Of a decoder: tokens of a session; default: 2048, or the model's, where that is less.",
    ),
)
@click.option(
    "--target", type=NAME, default="host", show_default=True, metavar="NAME", help="Whose kernels to measure."
)
@click.option("-o", "--output", type=FILE, metavar="FILE.json", help="Write what was measured here.")
@click.option(
    "--gpu",
    type=NAME,
    metavar="NAME|none",
    help="Also measure layers on the device's GPU, with the kernels of target NAME; default: the target's own.",
)
@device_group(tracker_option)
@click.option(
    "--directory",
    type=FILE,
    metavar="DIR",
    help="Measure the storage that holds this directory; default: the one of the output, or this one; with --tracker"
    " where packages are kept there.",
)
@json_option
def probe_command(
    layers: Layers,
    target: str,
    output: Path | None,
    gpu: str | None,
    device: DeviceChoice,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Measure a device: storage by request size and lanes, and the engine's layers at every bitwidth.

    The device is this machine, or one behind a TVM RPC tracker. Layers have the shape of MODEL, or without one of a
    small encoder (hidden 384, 12 heads, FFN 1536); a plan for another shape scales the times and says so. Of a decoder,
    passes of one token, of 16 and of a chunk are measured, at both ends of its context. Reads bypass the page cache
    where the file system allows it, which is verified.
    `stic plan` and `stic compile` take the result with --device-profile; for `--target host` they also measure by
    themselves.

    \b
    Examples:
      stic probe
      stic probe minilm.onnx --directory /data -o disk.json
      stic probe --gpu mali-g52 -o board.json
      stic probe --target raspberry-pi-4 --tracker 192.168.1.10:9190 --key pi -o pi.json
      stic probe smollm2.gguf --context 1024 --tracker 192.168.1.10:9190 --key pi -o pi.json
    """
    from stic.compiler.device.probing import remote_runner
    from stic.compiler.report import report
    from stic.targets.target import load

    aim = load(target, gpu)
    measuring = _measuring(layers, aim)
    address = device.address(target)
    with ExitStack() as opening:
        progress = opening.enter_context(progress_bar())
        if address is None:
            if aim.missing_features:
                lacks = ", ".join(aim.missing_features)
                raise TargetError(f"this machine cannot run {target}: it lacks {lacks}; probe there, or with --tracker")
            runner, where = None, directory or (output.absolute().parent if output else Path.cwd())
        else:
            there = None if directory is None else str(directory)
            runner, where = opening.enter_context(remote_runner(address, aim, there, device.system, progress))
        tick = partial(progress, "measuring this device" if address is None else f"measuring {address.key}")
        notes: list[str] = []
        data = measuring(where, tick, notes.append, runner)
    print_notes(notes)
    text = json.dumps(data, indent=1)
    if output is not None:
        output.write_text(text + "\n")
    if as_json:
        click.echo(text)
        return
    report.print_device(console, data)
    if output is not None:
        console.print(f"wrote {output}", soft_wrap=True)


def _measuring(layers: Layers, target: Target) -> Callable[[Path, Tick, Note, Runner | None], dict[str, Any]]:
    """What measures the layers of an encoder, or the passes of a decoder: (folder, tick, note, runner) -> profile."""
    from stic.compiler.inputs import decodes

    if layers.model is not None and decodes(layers.model):
        from stic.compiler.decoding.cut import cut_decoder
        from stic.compiler.decoding.profile import probe_decoder, probe_for
        from stic.compiler.inputs import read_decoder_model
        from stic.compiler.offers import DECODER_BITS

        if layers.max_length is not None:
            raise InputError("--max-length is an encoder's: of a decoder, say --context")
        cut = cut_decoder(read_decoder_model(layers.model), layers.slices)
        own = DecoderOptions(context=layers.context)
        asked = TargetOptions(target.name, threads=layers.threads, lanes=layers.lanes)
        measured = probe_for(cut, target, own, asked)
        return lambda *where: probe_decoder(measured, DECODER_BITS, *where)
    if layers.context is not None:
        raise InputError("--context is a decoder's: of an encoder, say --max-length")
    from stic.compiler.device.probing import probe
    from stic.compiler.device.workload import Workload
    from stic.compiler.inputs import read_model

    read = None if layers.model is None else read_model(layers.model)
    shards = ShardOptions(layers.slices)
    workload = Workload.of(read, target, layers.max_length, shards, layers.threads, layers.lanes)
    return lambda folder, tick, note, runner: probe(target, workload, folder, tick, note, runner, wide=True)


COMMANDS = {"importance": importance_command, "probe": probe_command}
