"""Where packages of a probe run: on this machine, or on a device behind an RPC tracker."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import ArrayLike, NDArray

from stic.runtime.package import Package
from stic.runtime.session import Info, Session, Stats
from stic.runtime.trace import Trace
from stic.targets.host import HostFunctions
from stic.targets.storage import measure_storage

if TYPE_CHECKING:
    from stic.targets.remote_device import RemoteDevice

Tick = Callable[[int, int], None]


class Running(Protocol):
    """A package at work: `stic.runtime.session.Session`, or the same on a device."""

    @property
    def device(self) -> str:
        """The GPU that layers run on and its driver, or why they do not; "" where none is planned for one."""

    def run(self, ids: ArrayLike, types: ArrayLike | None = None) -> NDArray[Any]:
        """The output of one input."""

    def stats(self) -> Stats:
        """What the last run cost."""

    def trace(self) -> Trace:
        """The events of the last run."""

    def evict(self, size_bytes: int | None = None) -> None:
        """Give back of the preload buffer."""

    @property
    def info(self) -> Info:
        """What the package is."""

    @property
    def position(self) -> int:
        """Tokens that the text of a decoder has."""

    def extend(self, ids: ArrayLike) -> None:
        """Extend the text of a decoder."""

    def rewind(self, position: int) -> None:
        """Go back in it."""

    def sample(self) -> int:
        """The token that follows it."""


class Runner(Protocol):
    """A device to be measured."""

    @property
    def name(self) -> str:
        """What the device is called."""

    def session(self, package: Path) -> AbstractContextManager[Running]:
        """Run a package that was written here."""

    def storage(self, lanes: Sequence[int]) -> dict[str, Any]:
        """Bare reads of the storage that packages lie on: `measure_storage`."""


class HostRunner:
    """This machine, and the storage that holds `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def name(self) -> str:
        return platform.node()

    def session(self, package: Path) -> Session:
        return Session(package)

    def storage(self, lanes: Sequence[int]) -> dict[str, Any]:
        return measure_storage(HostFunctions(), str(self._folder), lanes)


class RemoteRunner:
    """A leased device, and the storage that holds `folder` there."""

    def __init__(self, device: RemoteDevice, folder: str) -> None:
        self._device, self._folder = device, folder

    @property
    def name(self) -> str:
        return self._device.address.key

    @contextmanager
    def session(self, package: Path) -> Iterator[Running]:
        opened = Package.open(package)
        self._device.check(opened)
        folder = f"{self._folder}/{package.name}"
        sent = self._device.send(opened, folder=folder)
        with self._device.session(opened, sent.folder) as session:
            yield session
        self._device.depot.remove(folder)

    def storage(self, lanes: Sequence[int]) -> dict[str, Any]:
        return measure_storage(self._device.functions, self._folder, lanes)
