"""`stic tune`: what a device's kernels leave open, found by measuring them there."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path

import click

from stic.compiler.commands.groups import json_option
from stic.compiler.commands.parameters import FILE, NAME, ROUNDS
from stic.compiler.commands.terminal import console, progress_bar
from stic.runtime.errors import TargetError
from stic.runtime.files import check_writable


@click.command("tune")
@click.option("--target", type=NAME, default="host", show_default=True, metavar="NAME", help="Whose kernels to tune.")
@click.option(
    "--tracker", type=NAME, metavar="HOST:PORT", help="Measure on a device behind this TVM RPC tracker, not here."
)
@click.option("--key", type=NAME, metavar="KEY", help="The device's key at the tracker; default: the target's name.")
@click.option(
    "--rounds", type=click.IntRange(3, ROUNDS), default=9, show_default=True, metavar="N", help="Turns a comparison."
)
@click.option("-o", "--output", type=FILE, metavar="FILE.json", help="Write the record here; no compile reads it.")
@json_option
def tune_command(
    target: str, tracker: str | None, key: str | None, rounds: int, output: Path | None, as_json: bool
) -> None:
    """Search register tiles, running sums and prefetch distance of a target's kernels by measuring them.

    The result is a record in schedules/tuned/, which every later compile for this target uses; nothing is searched at
    compile time. A record changes time only, never results. One of target host holds for this processor alone. Takes
    about a minute; tune on a machine that does nothing else.

    \b
    Examples:
      stic tune
      stic tune --target odroid-n2plus --tracker 192.168.1.10:9190 --key odroid
    """
    from stic.compiler.device.tune import device, tune
    from stic.schedules import tuning as records
    from stic.targets.target import load

    if key is not None and tracker is None:
        raise click.UsageError("--key names a device at a tracker: give --tracker too")
    aim = load(target)
    path = output or records.record_path(aim)
    _check_writable(path)
    with device(aim, tracker, key) as where, progress_bar() as progress:
        best, trials = tune(aim, where, rounds, partial(progress, f"tuning {target}"))
    measured = {"rounds": rounds, "trials": [asdict(trial) for trial in trials]}
    command = f"stic tune --target {target} --rounds {rounds}" + (f" --key {key}" if key else "")
    made_with = {"command": command, "stic": metadata.version("stic"), "apache-tvm": metadata.version("apache-tvm")}
    records.write(path, aim, where.name, best, measured, made_with)
    if as_json:
        click.echo(path.read_text())
        return
    for trial in trials:
        mark = "taken" if trial.taken else ""
        console.print(f"{trial.ratio:6.3f} of the time  {_describe(trial.tuning)}  {mark}".rstrip(), soft_wrap=True)
    console.print(f"best on {where.name}: {_describe(best)}\nwrote {path}", soft_wrap=True)


def _describe(tuning: object) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in asdict(tuning).items())  # type: ignore[call-overload]


def _check_writable(path: Path) -> None:
    """Refuse before minutes of measuring what is bound to fail after them."""
    try:
        check_writable(path)
    except OSError as error:
        raise TargetError(f"cannot write {path} ({error.strerror}): name another file with --output") from error


COMMANDS = {"tune": tune_command}
