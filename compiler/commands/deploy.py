"""`stic deploy` and `stic devices`: packages on devices behind an RPC tracker."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stic.compiler.commands.device_options import (
    DeviceChoice,
    device_group,
    directory_option,
    required_tracker_option,
)
from stic.compiler.commands.groups import gathered, json_option, length_option, remote_session_group
from stic.compiler.commands.parameters import FILE, NAME, ROUNDS, SENTENCE
from stic.compiler.commands.running import Question, answer, question_group
from stic.compiler.commands.sampling import wish_group
from stic.compiler.commands.terminal import console, progress_bar
from stic.compiler.text.answering import Wish
from stic.runtime.session import SessionOptions

if TYPE_CHECKING:
    from stic.compiler.device.deploy import Deployment
    from stic.runtime.package import Package


def deploy(
    package: Package,
    device: DeviceChoice,
    directory: str | None,
    use: Callable[[Deployment], None],
    as_json: bool,
) -> None:
    """Put a package on the device that is meant and, while it is ours, use it; what was sent is said before."""
    from stic.compiler.device.deploy import deployed

    address = device.address(str(package.plan.get("target", "")))
    assert address is not None, "the option that names the tracker is required"
    with ExitStack() as leased:
        with progress_bar() as progress:
            deployment = leased.enter_context(deployed(package, address, directory, device.system, progress))
        if not as_json:
            console.print(deployment.sentences(), soft_wrap=True)
        use(deployment)


def ask(
    question: Question,
    package: Package,
    as_json: bool,
    options: SessionOptions,
    more: Mapping[str, object] | None = None,
) -> Callable[[Deployment], None]:
    """What `deploy` is given to run a question; its inputs are looked at before there is a device.

    `more` goes into the JSON object, where one is wanted.
    """
    inputs = question.inputs(package)

    def use(deployment: Deployment) -> None:
        with deployment.session(**options) as session:
            answer(question, package, inputs, session, as_json, {**(more or {}), **deployment.to_json()})

    return use


def say(as_json: bool, more: Mapping[str, object] | None = None) -> Callable[[Deployment], None]:
    """What `deploy` is given to send only: where JSON is wanted, the sentences of `deploy` become an object."""

    def use(deployment: Deployment) -> None:
        if as_json:
            click.echo(json.dumps({**(more or {}), **deployment.to_json()}, indent=1))

    return use


@dataclass(frozen=True)
class Bench:
    """What to measure there, if that is wanted."""

    bench: bool
    runs: int
    length: int | None
    cold: bool


@dataclass(frozen=True)
class Asked:
    """Whether to run the package there; of a decoder, the text to go on from, and how."""

    run: bool
    prompt: str | None
    wish: Wish


def _continue(
    prompt: str, wish: Wish, package: Package, as_json: bool, options: SessionOptions
) -> Callable[[Deployment], None]:
    """What `deploy` is given to have a decoder go on with a text; it is printed as it comes from the device."""
    from stic.compiler.text.answering import Answer
    from stic.compiler.text.packaged import architecture_of, coder_of, prompt_of

    architecture, coder = architecture_of(package), coder_of(package)
    ids = prompt_of(package, coder.prompt(prompt))

    def use(deployment: Deployment) -> None:
        with deployment.session(**options) as session:
            answered = Answer(session, coder, ids, architecture.stops, wish)
            for part in answered:
                if not as_json:
                    click.echo(part, nl=False)
            stats = session.stats()
        if as_json:
            memory = {"peak_bytes": stats.peak_bytes, "claimed_bytes": stats.claimed_bytes}
            click.echo(json.dumps({**answered.to_json(), **memory, **deployment.to_json()}))
        else:
            click.echo()
        if answered.ending == "cancelled":
            raise KeyboardInterrupt

    return use


@click.command("deploy")
@click.argument("package", type=FILE)
@device_group(required_tracker_option)
@directory_option
@gathered(
    "asked",
    Asked,
    click.option("--run", is_flag=True, help="Then run it there, on --text or --ids; of a decoder, on --prompt."),
    click.option("--prompt", type=SENTENCE, metavar="TEXT", help="With --run, what a decoder goes on from."),
    wish_group,
)
@question_group
@gathered(
    "bench",
    Bench,
    click.option("--bench", is_flag=True, help="Then measure its latency and memory there, as stic bench does."),
    click.option(
        "--runs", type=click.IntRange(1, ROUNDS), default=20, show_default=True, metavar="N", help="Runs of --bench."
    ),
    length_option,
    click.option("--cold", is_flag=True, help="Empty the preload buffer before every run of --bench."),
)
@remote_session_group
@json_option
def deploy_command(
    package: Path,
    device: DeviceChoice,
    directory: str | None,
    asked: Asked,
    question: Question,
    bench: Bench,
    session: SessionOptions,
    as_json: bool,
) -> None:
    """Put PACKAGE on a device behind a TVM RPC tracker, and run or measure it there.

    The device needs TVM's RPC server and nothing of stic: the engine is built here and sent along. What the device has
    already is not sent again, and an upload that was interrupted goes on where it ended. The device is given back in
    any case. Of a package with several plans the first one runs.

    \b
    Examples:
      stic devices --tracker 192.168.1.10:9190
      stic deploy sst2.stic --tracker 192.168.1.10:9190 --key phone --run --text "a charming journey"
      stic deploy sst2.stic --tracker 192.168.1.10:9190 --key phone --bench --cold --json
      stic deploy smollm.stic --tracker 192.168.1.10:9190 --key phone --run --prompt "Once upon a time"
    """
    if asked.run and bench.bench:
        raise click.UsageError("--run and --bench: one at a time")
    if asked.prompt is not None and (not asked.run or question != Question()):
        raise click.UsageError("--prompt belongs to --run, in place of what an encoder is given")
    if asked.run and asked.prompt is None:
        question.check()
    elif question != Question():
        raise click.UsageError("what to run, and what to show of it, belongs to --run")
    from stic.compiler.text.packaged import check_encoder
    from stic.runtime.package import Package

    opened = Package.open(package)
    if bench.bench or (asked.run and asked.prompt is None):
        check_encoder(opened)

    def measure(deployment: Deployment) -> None:
        from stic.compiler.device.bench import measure_session

        with deployment.session(**session) as running:
            result = measure_session(running, opened, bench.runs, bench.length, bench.cold)
        if as_json:
            click.echo(json.dumps({**result.to_json(), **deployment.to_json()}, indent=1))
        else:
            console.print(result.table())

    if asked.prompt is not None:
        use = _continue(asked.prompt, asked.wish, opened, as_json, session)
    else:
        use = ask(question, opened, as_json, session) if asked.run else measure if bench.bench else say(as_json)
    deploy(opened, device, directory, use, as_json)


@click.command("devices")
@click.option("--tracker", type=NAME, metavar="HOST:PORT", required=True, help="The TVM RPC tracker to ask.")
@json_option
def devices_command(tracker: str, as_json: bool) -> None:
    """List the devices behind a TVM RPC tracker: how many of each key, how many are free, who waits.

    \b
    Examples:
      python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190                             (here)
      python -m tvm.exec.rpc_server --tracker 192.168.1.10:9190 --key phone                 (on a device)
      stic devices --tracker 192.168.1.10:9190
    """
    from rich.table import Table

    from stic.targets.tracker import Tracker

    devices = Tracker(tracker).devices()
    if as_json:
        click.echo(json.dumps([device.to_json() for device in devices], indent=1))
        return
    if not devices:
        console.print(f"no device is registered at {tracker}", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("key", "devices", "free", "waiting", "addresses"):
        table.add_column(title)
    for device in devices:
        counts = (str(device.total), str(device.free), str(device.waiting))
        table.add_row(device.key, *counts, ", ".join(device.addresses))
    console.print(table)


COMMANDS = {"deploy": deploy_command, "devices": devices_command}
