"""`stic export`, `stic plan`, `stic compile`: from a model to a plan and to a package."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import click

from stic.compiler.commands.decoder_options import decoder_group
from stic.compiler.commands.deploy import ask, deploy, say
from stic.compiler.commands.device_options import DeviceChoice, device_group, directory_option
from stic.compiler.commands.groups import compile_group, gathered, json_option, plan_group
from stic.compiler.commands.parameters import FILE, NAME, PICTURE, SENTENCE, SIZES, TIMES
from stic.compiler.commands.running import Question
from stic.compiler.commands.terminal import console, print_notes, progress_bar
from stic.compiler.options import BudgetOptions, CompileOptions
from stic.compiler.plan import Budget, Problem
from stic.runtime.format import POOLINGS


@click.command("export")
@click.argument("directory", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE.onnx", help="The file to write.")
@click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
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


@dataclass(frozen=True)
class Grid:
    """A grid of budgets to plan for, if one is wanted."""

    sweep: bool
    latencies: tuple[int, ...] | None  # microseconds; None: around the plan's
    memories: tuple[int, ...] | None  # bytes

    def __post_init__(self) -> None:
        if not self.sweep and (self.latencies or self.memories):
            raise click.UsageError("--latencies and --memories belong to --sweep")


sweep_group = gathered(
    "grid",
    Grid,
    click.option("--sweep", is_flag=True, help="Plan for a grid of budgets and print what each buys."),
    click.option(
        "--latencies", type=TIMES, metavar="T,T,...", help="The sweep's latencies; default: around the plan's."
    ),
    click.option("--memories", type=SIZES, metavar="B,B,...", help="The sweep's memories; default: around the plan's."),
)


@click.command("plan")
@plan_group
@decoder_group
@sweep_group
@click.option("--figure", type=PICTURE, metavar="FILE.svg", help="Also draw the sweep, or without one the timeline.")
@click.option("-o", "--output", "plan_file", type=FILE, metavar="FILE.json", help="Write the plan here.")
@json_option
def plan_command(
    options: CompileOptions, grid: Grid, figure: Path | None, plan_file: Path | None, as_json: bool
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
    from stic.compiler.pipeline import plan_model
    from stic.compiler.report import report
    from stic.compiler.report.drawing import picture, terminal
    from stic.compiler.stages import Decided, Replays, Solver

    # A sweep must not fail because the budget in its middle does: its first plan has none.
    asked, without = options.budget.main, Budget(None, None, options.budget.main.preload_bytes)
    first = replace(options, budget=BudgetOptions(without)) if grid.sweep else options
    with progress_bar() as progress:
        made = plan_model(first, progress)
    print_notes(made.notes)
    if Replays not in made:
        console.print(f"stopped after stage {options.stages.until}", highlight=False)
        return
    plan, timeline = made[Decided].default, made[Replays].timelines[0]
    claim = (timeline.latency_us, timeline.peak_bytes)
    forecast = next(iter(made[Replays].forecasts), None)
    if plan_file is not None:
        from stic.compiler.plan import dumps

        plan_file.write_text(dumps(plan))
    if grid.sweep:
        from stic.compiler.quantities import format_bytes, format_time, parse_bytes, parse_time_us
        from stic.compiler.report.sweep import draw, grid_around, sweep_plans

        with progress_bar() as progress:
            points = sweep_plans(
                made[Decided].problem,
                made[Solver].solve,
                grid.latencies or grid_around(asked.latency_us or parse_time_us(format_time(claim[0]))),
                grid.memories or grid_around(asked.memory_bytes or parse_bytes(format_bytes(claim[1]))),
                progress,
            )
        if figure is not None:
            draw(points, figure)
        if as_json:
            click.echo(json.dumps([point.to_json() for point in points], indent=1))
        else:
            console.print(report.sweep_table(points))
        return
    strip = report.predicted(timeline.events, made[Problem].length, asked.latency_us)
    if figure is not None:
        picture([strip], figure)
    if as_json:
        click.echo(json.dumps(report.plan_facts(plan, *claim, forecast), indent=1))
    else:
        drawn = terminal([strip], console.width)
        report.print_plan(console, plan, *claim, drawn, made[Problem].store.shapes, forecast)


@click.command("compile")
@compile_group
@decoder_group
@click.option("--engine", type=FILE, metavar="DIR", help="Also build stic_run and libstic.so for the target, here.")
@device_group(
    click.option(
        "--deploy",
        "tracker",
        type=NAME,
        metavar="HOST:PORT",
        help="Probe a device behind this TVM RPC tracker (unless --device-profile is given), compile for it, send it.",
    )
)
@directory_option
@click.option("--run", is_flag=True, help="With --deploy: then run --text there.")
@click.option("--text", "texts", type=SENTENCE, multiple=True, metavar="TEXT", help="A sentence for --run; repeat.")
@json_option
def compile_command(
    options: CompileOptions,
    engine: Path | None,
    device: DeviceChoice,
    directory: str | None,
    run: bool,
    texts: tuple[str, ...],
    as_json: bool,
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
        --deploy 192.168.1.10:9190 --key pi --run --text "A cat sits."
    """
    from stic.compiler.delivery import compile_for
    from stic.compiler.pipeline import compile_model
    from stic.compiler.report import contents, report
    from stic.compiler.report.drawing import terminal
    from stic.compiler.stages import Decided, Replays, Written
    from stic.runtime.package import Package

    address = device.address(options.target.name)
    if address is None and (run or directory is not None):
        raise click.UsageError("--run and --directory belong to --deploy; here, use stic run")
    if run != bool(texts):
        raise click.UsageError("--run takes its sentences from --text, and --text is for --run")
    if address is not None and options.stages.until is not None:
        raise click.UsageError("--until stops before there is a package to --deploy")
    with progress_bar() as progress:
        if address is None:
            made = compile_model(options, progress)
        else:
            made = compile_for(options, address, directory, device.system, progress)
    print_notes(made.notes)
    if Written not in made:
        console.print(f"stopped after stage {options.stages.until}", highlight=False)
        return
    if engine is not None:
        from stic.targets.target import load
        from stic.targets.toolchain import build_engine

        build_engine(load(options.target.name), engine)
    plan, timeline = made[Decided].default, made[Replays].timelines[0]
    claim = (timeline.latency_us, timeline.peak_bytes)
    forecast = next(iter(made[Replays].forecasts), None)
    package = Package.open(made[Written].path)
    family = contents.family_facts(package)
    facts = {"package": str(made[Written].path), **report.plan_facts(plan, *claim, forecast), "family": family}
    if as_json:
        if address is None:
            click.echo(json.dumps(facts, indent=1))
    else:
        strip = report.predicted(timeline.events, made[Problem].length, plan.budget.latency_us)
        drawn = terminal([strip], console.width)
        report.print_plan(console, plan, *claim, drawn, made[Problem].store.shapes, forecast)
        if family:
            console.print()
            console.print(report.family_table(family))
        console.print(f"wrote {made[Written].path}", highlight=False, soft_wrap=True)
    if address is not None:
        use = ask(Question(texts), package, as_json, {}, facts) if texts else say(as_json, facts)
        deploy(package, device, directory, use, as_json)


COMMANDS = {"export": export_command, "plan": plan_command, "compile": compile_command}
