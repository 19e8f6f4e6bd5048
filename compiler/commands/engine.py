"""`stic engine`: the C engine for a device, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stic.compiler.commands.groups import json_option
from stic.compiler.commands.parameters import FILE, NAME
from stic.compiler.commands.terminal import console
from stic.targets.toolchain import SYSTEMS


@click.command("engine")
@click.option(
    "--target", type=NAME, required=True, metavar="NAME", help="A device stic knows (host, odroid-n2plus, ...)."
)
@click.option(
    "--system",
    type=click.Choice(SYSTEMS),
    default=SYSTEMS[0],
    show_default=True,
    help="What the device runs: Linux with glibc, Linux with musl, or Android (bionic).",
)
@click.option("-o", "--output", type=FILE, required=True, metavar="DIR", help="Folder for stic_run and libstic.so.")
@json_option
def engine_command(target: str, system: str, output: Path, as_json: bool) -> None:
    """Build the C engine for a target: `stic_run`, which runs packages on a device without Python, and `libstic.so`.

    The compiler is this machine's own, the distribution's cross compiler, the Android NDK's (ANDROID_NDK_HOME) or zig
    (pip install ziglang); STIC_CC names another one.

    \b
    Examples:
      stic engine --target raspberry-pi-4 -o engine
      stic engine --target raspberry-pi-4 --system linux-musl -o engine       (Alpine, postmarketOS)
      stic engine --target snapdragon-8-gen2 --system android -o engine
    """
    from stic.targets.target import load
    from stic.targets.toolchain import build_engine, find_c_compiler

    aim = load(target)
    compiler = find_c_compiler(aim, system)
    built = build_engine(aim, output, system)
    if as_json:
        facts = {"runner": str(built.runner), "library": str(built.library), "arch": aim.arch, "system": system}
        click.echo(json.dumps({**facts, "compiler": compiler.version}, indent=1))
        return
    made = f"wrote {built.runner} and {built.library} for {aim.arch}, {system}, with {compiler.name}"
    console.print(made, highlight=False, soft_wrap=True)


COMMANDS = {"engine": engine_command}
