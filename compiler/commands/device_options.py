"""Options that name a device behind an RPC tracker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from stic.compiler.commands.groups import Command, Decorator, gathered
from stic.compiler.commands.parameters import NAME, PATIENCE
from stic.targets.toolchain import SYSTEMS

if TYPE_CHECKING:
    from stic.targets.rpc import DeviceAddress


@dataclass(frozen=True)
class DeviceChoice:
    """Options that name a device; `tracker` is None where this machine is meant."""

    tracker: str | None
    key: str | None
    wait_us: int
    timeout_us: int
    system: str | None

    def address(self, target: str) -> DeviceAddress | None:
        """The address they name, with the target's name where no key is given; None for this machine."""
        from stic.targets.rpc import DeviceAddress

        if self.tracker is None:
            if self.key is not None:
                raise click.UsageError("--key names a device at a tracker: give the tracker, too")
            return None
        return DeviceAddress(self.tracker, self.key or target, self.wait_us / 1e6, self.timeout_us / 1e6)


def device_group(tracker: Decorator) -> Callable[[Command], Command]:
    """Gives a command `device`, a DeviceChoice; `tracker` is the option that names the tracker."""
    return gathered("device", DeviceChoice, tracker, *_LEASE)


tracker_option = click.option(
    "--tracker", type=NAME, metavar="HOST:PORT", help="A TVM RPC tracker: use a device behind it, not this machine."
)
required_tracker_option = click.option(
    "--tracker", type=NAME, metavar="HOST:PORT", required=True, help="The TVM RPC tracker that knows the device."
)
key_option = click.option(
    "--key", type=NAME, metavar="KEY", help="The device's key at the tracker; default: the target's name."
)
_LEASE = (
    key_option,
    click.option(
        "--wait",
        "wait_us",
        type=PATIENCE,
        default="60s",
        show_default=True,
        metavar="TIME",
        help="How long to wait for a device that others use.",
    ),
    click.option(
        "--timeout",
        "timeout_us",
        type=PATIENCE,
        default="10s",
        show_default=True,
        metavar="TIME",
        help="How long the device may take for a step (a run: beside 20 times its prediction).",
    ),
    click.option(
        "--system",
        type=click.Choice(SYSTEMS),
        help="What the device runs; default: what TVM says there, else linux-gnu.",
    ),
)
directory_option = click.option(
    "--directory",
    type=NAME,
    metavar="DIR",
    help="Keep packages in this directory of the device; default: /data/local/tmp/stic or /var/tmp/stic.",
)
