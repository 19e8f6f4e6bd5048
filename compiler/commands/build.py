"""`stic export`, `stic plan`, `stic compile`: from a model to a plan and to a package."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from stic.compiler.commands.deploy import ask, deploy, say
from stic.compiler.commands.device_options import DeviceChoice, directory_option, lease_options
from stic.compiler.commands.parameters import (
    FILE,
    NAME,
    PICTURE,
    SENTENCE,
    SIZES,
    TIMES,
    also_option,
    budget_options,
    json_option,
    model_options,
)
from stic.compiler.commands.running import Question
from stic.compiler.commands.terminal import console, print_notes, progress_bar
from stic.compiler.options import CompileOptions
from stic.compiler.plan import Budget, Plan, Problem
from stic.compiler.progress import Progress

if TYPE_CHECKING:
    from stic.compiler.pipeline import CompileResult
    from stic.compiler.simulate import Timeline
    from stic.targets.rpc import Place


def _options(model: Path, target: str, output: Path | None, **chosen: Any) -> CompileOptions:
    budget = Budget(chosen.pop("latency"), chosen.pop("memory"), chosen.pop("preload"))
    family = tuple(
        replace(
            budget,
            latency_us=budget.latency_us if latency_us is None else latency_us,
            memory_bytes=budget.memory_bytes if memory_bytes is None else memory_bytes,
        )
        for latency_us, memory_bytes in chosen.pop("further", ())
    )
    return CompileOptions(
        model=model,
        target=target,
        budget=budget,
        family=family,
        output=output,
        profile=chosen.pop("device"),
        full_bits=int(chosen.pop("full_bits")),
        embedding_bits=None if (width := chosen.pop("embedding_bits")) is None else int(width),
        gpu_storage="float16" if chosen.pop("gpu_storage") == "fp16" else "float32",
        time_limit_s=chosen.pop("time_limit") / 1e6,
        **chosen,
    )


def _planned(result: CompileResult) -> tuple[Problem, Plan, Timeline]:
    """What the stages up to the checked plan made."""
    assert result.problem is not None and result.plan is not None and result.timeline is not None
    return result.problem, result.plan, result.timeline


@click.command("export")
@click.argument("directory", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE.onnx", help="The file to write.")
@click.option(
    "--pooling",
    type=click.Choice(["tokens", "first", "mean"]),
    help="What the output is made of; default: what the directory's own files say.",
)
def export_command(directory: Path, output: Path, pooling: str | None) -> None:
    """Write ONNX from a Hugging Face DIRECTORY (config.json and model.safetensors, or its shards), without torch.

    tokenizer.json is copied beside the model, so that a package compiled from it takes text.

    \b
    Example:
      stic export all-MiniLM-L6-v2/ -o minilm.onnx
    """
    from stic.compiler.export.huggingface import export_model

    with progress_bar() as progress:
        progress("writing ONNX", 0, 0)
        export_model(directory, output, pooling)
    console.print(f"wrote {output}", highlight=False, soft_wrap=True)


@click.command("plan")
@click.argument("model", type=FILE)
@click.option(
    "--target", type=NAME, required=True, metavar="NAME", help="A device stic knows (host, odroid-n2plus, ...)."
)
@budget_options
@model_options
@click.option("--sweep", is_flag=True, help="Plan for a grid of budgets and print what each buys.")
@click.option("--latencies", type=TIMES, metavar="T,T,...", help="The sweep's latencies; default: around the plan's.")
@click.option("--memories", type=SIZES, metavar="B,B,...", help="The sweep's memories; default: around the plan's.")
@click.option("--figure", type=PICTURE, metavar="FILE.svg", help="Also draw the sweep, or without one the timeline.")
@click.option("-o", "--output", "plan_file", type=FILE, metavar="FILE.json", help="Write the plan here.")
@json_option
def plan_command(
    model: Path,
    target: str,
    sweep: bool,
    latencies: tuple[int, ...] | None,
    memories: tuple[int, ...] | None,
    figure: Path | None,
    plan_file: Path | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Decide how MODEL would be compiled for a budget, and write no package.

    MODEL is an .onnx file or a Hugging Face directory. The answer says how good the plan is and how good it is
    proven to be: no plan has an objective above the bound.

    \b
    Examples:
      stic plan minilm.onnx --target host --latency 60ms --memory 6MiB
      stic plan minilm.onnx --target odroid-n2plus --latency 200ms        (least memory)
      stic plan minilm.onnx --target host --sweep --latencies 40ms,60ms,90ms --memories 6MiB,9MiB,14MiB
    """
    if not sweep and (latencies or memories):
        raise click.UsageError("--latencies and --memories belong to --sweep")
    from stic.compiler.pipeline import plan_model
    from stic.compiler.report import report
    from stic.compiler.report.drawing import picture, terminal

    options = _options(model, target, None, **chosen)
    # A sweep must not fail because the budget in its middle does: its first plan has none.
    first = replace(options, budget=Budget(None, None, options.budget.preload_bytes)) if sweep else options
    with progress_bar() as progress:
        result = plan_model(first, progress)
    print_notes(result.notes)
    problem, plan, timeline = _planned(result)
    claim = (timeline.latency_us, timeline.peak_bytes)
    if plan_file is not None:
        from stic.compiler.plan import dumps

        plan_file.write_text(dumps(plan))
    if sweep:
        from stic.compiler.planner import solve
        from stic.compiler.quantities import format_bytes, format_time, parse_bytes, parse_time_us
        from stic.compiler.report.sweep import draw, grid_around, sweep_plans

        with progress_bar() as progress:
            points = sweep_plans(
                problem,
                lambda asked: solve(asked, options.planner, options.bits, options.time_limit_s, enough=options.gap),
                latencies or grid_around(options.budget.latency_us or parse_time_us(format_time(claim[0]))),
                memories or grid_around(options.budget.memory_bytes or parse_bytes(format_bytes(claim[1]))),
                progress,
            )
        if figure is not None:
            draw(points, figure)
        if as_json:
            click.echo(json.dumps([point.to_json() for point in points], indent=1))
        else:
            console.print(report.sweep_table(points))
        return
    strip = report.predicted(timeline.events, problem.length, options.budget.latency_us)
    if figure is not None:
        picture([strip], figure)
    if as_json:
        click.echo(json.dumps(report.plan_facts(plan, *claim), indent=1))
    else:
        report.print_plan(console, plan, *claim, terminal([strip], console.width))


@click.command("compile")
@click.argument("model", type=FILE)
@click.option(
    "--target", type=NAME, required=True, metavar="NAME", help="A device stic knows (host, odroid-n2plus, ...)."
)
@budget_options
@also_option
@click.option("-o", "--output", type=FILE, required=True, metavar="DIR", help="The package to write.")
@model_options
@click.option(
    "--keep-planes",
    is_flag=True,
    help="Store all planes up to 8 bits, also those that no plan reads, for other plans' packages to share the files.",
)
@click.option("--engine", type=FILE, metavar="DIR", help="Also build stic_run and libstic.so for the target, here.")
@click.option("--until", type=NAME, metavar="STAGE", help="Stop after this stage; a wrong name lists them.")
@click.option("--dump", type=FILE, metavar="DIR", help="Keep what each stage made here.")
@click.option(
    "--deploy",
    "tracker",
    type=NAME,
    metavar="HOST:PORT",
    help="Probe a device behind this TVM RPC tracker (unless --device-profile is given), compile for it, send it.",
)
@lease_options
@directory_option
@click.option(
    "--run", "texts", type=SENTENCE, multiple=True, metavar="TEXT", help="With --deploy: then run this sentence there."
)
@json_option
def compile_command(
    model: Path,
    target: str,
    output: Path,
    engine: Path | None,
    directory: str | None,
    texts: tuple[str, ...],
    as_json: bool,
    **chosen: Any,
) -> None:
    """Compile MODEL into a package that meets a latency and a memory budget.

    MODEL is an .onnx file of an encoder of the BERT family, or a directory: config.json with model.safetensors, or
    with its shards, which are exported on the fly; or model.onnx, there or in its folder onnx. tokenizer.json and
    config.json are taken from the directory. The package is a directory; copy it to the
    device as it is, or have it sent by --deploy, which takes devices of one key to be alike.

    With --also the package holds several plans, of which it runs the first unless a budget is given when it is opened.

    \b
    Examples:
      stic compile minilm.onnx --target host --latency 60ms --memory 6MiB -o minilm.stic
      stic compile sst2/ --target raspberry-pi-4 --memory 16MiB --calibration train.tsv -o sst2.stic
      stic compile minilm.onnx --target host --planner preload --bits 6 -o resident.stic   (a baseline)
      stic compile minilm.onnx --target host --latency 60ms --memory 6MiB --also 30ms,20MiB -o m.stic
      stic compile minilm.onnx --target raspberry-pi-4 --latency 200ms -o minilm.stic \\
        --deploy 192.168.1.10:9190 --key pi --run "A cat sits."
    """
    from stic.compiler.pipeline import compile_model
    from stic.compiler.report import contents, report
    from stic.compiler.report.drawing import terminal
    from stic.runtime.package import Package

    choice = DeviceChoice(**{name: chosen.pop(name) for name in DeviceChoice.__dataclass_fields__})
    place = choice.place(target)
    if place is None and (texts or directory is not None):
        raise click.UsageError("--run and --directory belong to --deploy; here, use stic run")
    if place is not None and chosen["until"] is not None:
        raise click.UsageError("--until stops before there is a package to --deploy")
    options = _options(model, target, output, **chosen)
    with progress_bar() as progress, TemporaryDirectory(prefix="stic-") as folder:
        if place is not None and options.profile is None:
            probed = Path(folder) / f"{place.key}.json"
            data = _probe(options, place, directory, choice.system, progress)
            probed.write_text(json.dumps(data))
            # Where no layer runs on a GPU of the very device, an estimate of one would only mislead the plan.
            where = "cpu" if options.place == "auto" and "gpu" not in data else options.place
            options = replace(options, profile=probed, place=where)
        result = compile_model(options, progress)
    print_notes(result.notes)
    if options.until is not None:
        console.print(f"stopped after stage {options.until}", highlight=False)
        return
    if engine is not None:
        from stic.targets.target import load
        from stic.targets.toolchain import build_engine

        build_engine(load(target), engine)
    problem, plan, timeline = _planned(result)
    claim = (timeline.latency_us, timeline.peak_bytes)
    package = Package.open(output)
    family = contents.family_facts(package)
    facts = {"package": str(output), **report.plan_facts(plan, *claim), "family": family}
    if as_json:
        if place is None:
            click.echo(json.dumps(facts, indent=1))
    else:
        strip = report.predicted(timeline.events, problem.length, plan.budget.latency_us)
        report.print_plan(console, plan, *claim, terminal([strip], console.width))
        if family:
            console.print()
            console.print(report.family_table(family))
        console.print(f"wrote {output}", highlight=False, soft_wrap=True)
    if place is not None:
        use = ask(Question(texts), package, as_json, more=facts) if texts else say(as_json, facts)
        deploy(package, choice, directory, use, as_json)


def _probe(
    options: CompileOptions, place: Place, directory: str | None, system: str | None, progress: Progress
) -> dict[str, Any]:
    """What the planner needs to know of the very device that the package is for."""
    from stic.compiler.device.probing import Layers, remote_runner
    from stic.compiler.inputs import read_model
    from stic.targets.target import load

    target = load(options.target, options.gpu)
    model = read_model(options.model, options.model_output)
    layers = Layers.of(model, options.max_length, options.slices, options.full_bits)
    notes: list[str] = []
    with remote_runner(place, target, directory, system, progress) as (runner, folder):
        tick = partial(progress, f"measuring {place.key}")
        chosen = (options.threads, options.lanes, folder, tick, notes.append, runner)
        data = layers.measure(target, *chosen, gpu_storage=options.gpu_storage)
    print_notes(notes)
    return data


COMMANDS = {"export": export_command, "plan": plan_command, "compile": compile_command}
