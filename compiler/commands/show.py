"""`stic inspect`: what is in a package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stic.compiler.commands.parameters import FILE, PICTURE, json_option
from stic.compiler.commands.terminal import console


@click.command("inspect")
@click.argument("package", type=FILE)
@click.option("--verify", is_flag=True, help="Check every checksum in the package: files, shards, embedding rows.")
@click.option("--figure", type=PICTURE, metavar="FILE.svg", help="Draw the predicted timeline as a picture.")
@json_option
def inspect_command(package: Path, verify: bool, figure: Path | None, as_json: bool) -> None:
    """Show what PACKAGE holds: shards, bytes, residence, predicted timeline, budgets, proof.

    In the grid of shards a digit is the bitwidth of a slice, F full precision, a dot a slice that is left out.

    \b
    Examples:
      stic inspect minilm.stic
      stic inspect minilm.stic --verify
      stic inspect minilm.stic --json | python -m json.tool
    """
    from stic.compiler import contents, drawing, report
    from stic.runtime.package import Package

    opened = Package.open(package)
    if verify:
        opened.verify()
    plan = contents.plan_of(opened)
    strip = contents.predicted_strip(opened)
    if figure is not None:
        drawing.picture([strip], figure)
    predicted_us, claimed_bytes = int(opened.header["predicted_us"]), int(opened.header["claimed_bytes"])
    facts: dict[str, Any] = {
        **contents.identity(opened),
        "verified": verify,
        **report.plan_facts(plan, predicted_us, claimed_bytes),
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
    layer_bytes = contents.layer_bytes(opened)
    console.print(report.plan_table(plan, predicted_us, claimed_bytes))
    console.print()
    console.print(report.shard_table(plan.layers, layer_bytes))
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
