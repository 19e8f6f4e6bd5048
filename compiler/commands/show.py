"""`stic inspect`: what is in a package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stic.compiler.commands.groups import json_option
from stic.compiler.commands.parameters import FILE, PICTURE
from stic.compiler.commands.terminal import console


@click.command("inspect")
@click.argument("package", type=FILE)
@click.option("--verify", is_flag=True, help="Check every checksum in the package: files, shards, embedding rows.")
@click.option(
    "--plan",
    "number",
    type=click.IntRange(0),
    metavar="N",
    help="Of a package with several plans, show this one; default: 0, the one that runs where no budget is given.",
)
@click.option(
    "--figure",
    type=PICTURE,
    metavar="FILE.svg",
    help="Draw the predicted timeline as a picture; without --plan, that of every plan.",
)
@json_option
def inspect_command(package: Path, verify: bool, number: int | None, figure: Path | None, as_json: bool) -> None:
    """Show what PACKAGE holds: shards, bytes, residence, predicted timeline, budgets, proof.

    In the grid of shards a digit is the bitwidth of a slice, F full precision, a dot a slice that is left out. A
    package that was compiled with --also holds several plans: they are listed, and one is shown.

    \b
    Examples:
      stic inspect minilm.stic
      stic inspect minilm.stic --verify
      stic inspect minilm.stic --plan 2
      stic inspect minilm.stic --json | python -m json.tool
    """
    from stic.compiler.forecast import packaged_forecast
    from stic.compiler.report import contents, drawing, report
    from stic.compiler.text.packaged import is_decoder
    from stic.runtime.package import Package

    whole = Package.open(package)
    opened = whole.with_plan(number or 0)
    if verify:
        opened.verify()
    plan = contents.plan_of(opened)
    strip = contents.predicted_strip(opened)
    if figure is not None:
        drawn = range(len(whole.plans)) if number is None else (number,)
        drawing.picture([contents.predicted_strip(whole.with_plan(n)) for n in drawn], figure)
    predicted_us, claimed_bytes = opened.entry.predicted_us, opened.entry.claimed_bytes
    family = contents.family_facts(whole)
    forecast = packaged_forecast(opened) if is_decoder(opened) else None
    facts: dict[str, Any] = {
        **contents.identity(opened),
        "verified": verify,
        "plan": opened.number,
        "family": family,
        **report.plan_facts(plan, predicted_us, claimed_bytes, forecast),
        "files": contents.file_bytes(opened),
        "kinds": contents.kind_bytes(opened),
        "memory": contents.memory_bytes(opened),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    console.print(str(package), style="bold", soft_wrap=True)
    for line in contents.describe(opened):
        console.print(line)
    console.print()
    if family:
        console.print(report.family_table(family))
        console.print()
    layer_bytes = contents.layer_bytes(opened)
    console.print(report.plan_table(plan, predicted_us, claimed_bytes, opened.shapes, forecast))
    console.print()
    console.print(report.shard_table(plan.layers, layer_bytes, opened.shapes))
    console.print()
    console.print(report.size_table("on disk", facts["files"]))
    console.print()
    console.print(report.size_table("stored as", facts["kinds"]))
    console.print()
    console.print(report.size_table("in memory at the peak", contents.memory_groups(opened)))
    console.print()
    report.print_drawing(console, drawing.terminal([strip], console.width))
    if verify:
        console.print("every checksum holds")


COMMANDS = {"inspect": inspect_command}
