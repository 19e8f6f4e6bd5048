"""A leased device that is ready for packages: the engine loaded, its store open, its abilities known."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from stic.runtime import native
from stic.runtime.errors import TargetError
from stic.runtime.format import FEATURES, MACHINES, MAJOR, MINOR
from stic.runtime.package import Package
from stic.runtime.session import SessionOptions
from stic.targets.connection import Connection, Functions
from stic.targets.depot import INDEX, Depot, Sent, open_store
from stic.targets.remote_session import RemoteSession
from stic.targets.rpc import DeviceAddress, Progress, lease, silent
from stic.targets.target import Target, load, names
from stic.targets.toolchain import SYSTEMS, build_engine

_GLOBAL_TRIPLE = "target.llvm_get_system_triple"  # TVM built with LLVM knows its machine


@dataclass(frozen=True)
class Facts:
    """What a device says of itself."""

    architecture: str
    features: frozenset[str]  # of FEATURES
    cores: int
    page_bytes: int
    available_bytes: int  # memory

    def missing(self, features: tuple[str, ...]) -> tuple[str, ...]:
        """Those of `features` that the device lacks."""
        return tuple(feature for feature in features if feature not in self.features)


class RemoteDevice:
    """A leased device with an engine loaded and a store open."""

    def __init__(self, address: DeviceAddress, functions: Functions, store: Depot) -> None:
        self.address, self.name, self.functions, self.depot = address, address.name, functions, store
        version = divmod(self._ask("version"), 65536)
        reads = (self._ask("format_major"), self._ask("format_minor"))
        if version != native.header_version() or reads != (MAJOR, MINOR):
            raise TargetError(
                f"{self.name} has a damaged engine in {store.folder} (it calls itself {version[0]}.{version[1]}):"
                " remove that folder, or name another with --directory"
            )
        bits = self._ask("features")
        self.facts = Facts(
            MACHINES[self._ask("architecture")],
            frozenset(name for number, name in enumerate(FEATURES) if bits >> number & 1),
            self._ask("cores"),
            self._ask("page_bytes"),
            self._ask("available_bytes"),
        )

    def check(self, package: Package) -> None:
        """Raise TargetError if the device cannot run the package's kernels."""
        bits = int(package.header["features"])
        lacks = self.facts.missing(tuple(name for number, name in enumerate(FEATURES) if bits >> number & 1))
        if lacks:
            raise TargetError(
                f"{self.name} lacks {', '.join(lacks)}, which {package.path} was compiled for: compile it for another"
                " --target"
            )

    def send(self, package: Package, progress: Progress = silent, folder: str | None = None) -> Sent:
        """Have the package on the device, by default in its own folder of the store: `Depot.put`."""
        return self.depot.put(package.path, (*package.files, INDEX), progress, folder)

    def session(self, package: Package, folder: str, **options: Unpack[SessionOptions]) -> RemoteSession:
        """Open what `send` has put in `folder` of the device; options as those of Session."""
        return RemoteSession(self.functions, self.name, package, folder, self.address.step_s, **options)

    def _ask(self, name: str) -> int:
        return int(self.functions.call("stic_device", name))


@contextmanager
def remote_device(
    address: DeviceAddress,
    target: Target,
    directory: str | None = None,
    system: str | None = None,
    progress: Progress = silent,
) -> Iterator[RemoteDevice]:
    """Lease a device and load an engine there that was built for the target's architecture.

    directory: of the store, there; system: one of SYSTEMS that the device runs, by default what TVM there says.
    Raises TargetError for a device of another architecture, and as `lease` and `open_store` do.
    """
    with lease(address, progress) as connection:
        triple = _triple(connection, target)
        found = system or next((name for name in SYSTEMS[1:] if name.removeprefix("linux-") in triple), SYSTEMS[0])
        with tempfile.TemporaryDirectory(prefix="stic-") as folder:
            library = build_engine(target, Path(folder), found).library
            store, engine = open_store(connection, library, directory, f"{target.arch}, {found}")
        yield RemoteDevice(address, engine, store)


def _triple(connection: Connection, target: Target) -> str:
    """What TVM on the device calls it; empty if it does not know. Raises TargetError for another architecture."""
    triple = str(connection.ask_global(_GLOBAL_TRIPLE) or "")
    found = triple.partition("-")[0].replace("arm64", "aarch64")
    if found in MACHINES and found != target.arch:
        raise TargetError(
            f"{connection.device} is {found}, and code for {target.arch} cannot run there: compile for a target that is"
            f" {found}"
        )
    return triple


def engine_target(package: Package) -> Target:
    """A target whose engine runs the package: any of its architecture."""
    architecture = MACHINES[int(package.header["machine"])]
    if architecture == platform.machine():
        return load("host")
    return next(target for target in map(load, (n for n in names() if n != "host")) if target.arch == architecture)
