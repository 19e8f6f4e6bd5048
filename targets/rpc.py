"""Devices behind a TVM RPC tracker: lease one, use it, give it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stic.targets.connection import STEP_S, Connection
from stic.targets.tracker import Tracker

WAIT_S = 60.0  # how long to wait for a device that others use
SESSION_S = 3600.0  # after which a device frees itself, whatever became of its client

Progress = Callable[[str, int, int], None]  # what is being done, done, total


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True)
class DeviceAddress:
    """Where a device is to be had, and how patient to be with it."""

    tracker: str  # HOST:PORT
    key: str
    wait_s: float = WAIT_S  # for a device that others use
    step_s: float = STEP_S  # for each step on the device

    @property
    def name(self) -> str:
        """What messages call a device of it."""
        return f"device {self.key!r} of the tracker at {self.tracker}"


@contextmanager
def lease(address: DeviceAddress, progress: Progress = silent) -> Iterator[Connection]:
    """Yield a device of the address; it is given back in any case.

    Raises TargetError where there is no tracker, no such key, or no free device in time; DeviceLost for a device that
    goes away.
    """
    tracker = Tracker(address.tracker)
    tracker.device(address.key)  # before the second that TVM's client takes to start
    connection = Connection(address.name, address.step_s)
    try:
        waiting = f"waiting for device {address.key} (in use)"
        match = tracker.request(address.key, address.wait_s, lambda: progress(waiting, 0, 0))
        connection.connect(match, SESSION_S)
        yield connection
    finally:
        connection.close()
