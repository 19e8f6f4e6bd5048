"""Files that stay on a device between leases: engines by their content, and packages.

A folder of the store is a package only while it has an index.bin. To send one that changed, the index is removed
first, then what is outdated, and the new index comes last; whoever is interrupted leaves no package, and the next try
goes on with the part that is there. Equal files are found by size and by the CRC of every chunk, computed on the
device.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stic.runtime.errors import TargetError
from stic.targets.connection import Connection, DeviceRefused, Functions, Module
from stic.targets.rpc import Progress, silent

FOLDERS = ("/data/local/tmp", "/var/tmp", "/tmp")  # the first is Android's; the store is `stic` in one of them
CHUNK = 1 << 20
MARGIN_BYTES = 1 << 20  # left free beside what is sent
INDEX = "index.bin"
SENDING_S = 600.0  # how long to wait for another client that sends the same package
_LOCK_POLL_S = 0.5


@dataclass(frozen=True)
class Sent:
    """What it took to have a package on a device."""

    folder: str  # of the package, there
    files: int  # that were not there as they are
    sent_bytes: int
    total_bytes: int


class Depot:
    """The store in `folder` of a device; `functions` are those of an engine that was loaded there."""

    def __init__(self, device: str, functions: Functions, folder: str) -> None:
        self.device, self.functions, self.folder = device, functions, folder

    def put(self, source: Path, names: Iterable[str], progress: Progress = silent, folder: str | None = None) -> Sent:
        """Have these files of the directory `source` in a folder on the device, sending what is not there yet.

        The folder is by default one of the store's own for this source; nothing else is left in it.

        Raises TargetError where there is no room or it cannot be written, DeviceLost.
        """
        folder = folder or f"{self.folder}/{_folder_name(source)}"
        paths = [source / name for name in sorted(names, key=lambda name: (name == INDEX, name))]
        sizes = {path: path.stat().st_size for path in paths}
        self.functions.call("stic_make_directory", folder)
        with self._locked(folder, progress):
            comparing = _Meter(progress, f"comparing {source.name}", sum(sizes.values()))
            changed = [path for path in paths if not self._same(path, f"{folder}/{path.name}", comparing)]
            sent = 0
            if changed:
                changed += [path for path in paths if path.name == INDEX and path not in changed]
                self._make_room(folder, {path.name for path in paths}, {path.name: sizes[path] for path in changed})
                sending = _Meter(progress, f"sending {source.name}", sum(sizes[path] for path in changed))
                sent = sum(self.send(path, f"{folder}/{path.name}", sending.add) for path in changed)
        return Sent(folder, len(changed), sent, sum(sizes.values()))

    def send(self, source: Path, path: str, done: Callable[[int], None] = lambda size: None) -> int:
        """Send one file, going on where an earlier try ended; returns the bytes that were sent."""
        part = f"{path}.part"
        before = max(0, int(self.functions.call("stic_file_bytes", part)))
        sent = at = 0
        with source.open("rb") as file:
            while chunk := file.read(CHUNK):
                crc = zlib.crc32(chunk)
                if at + len(chunk) > before or self.functions.call("stic_crc32", part, at, len(chunk)) != crc:
                    before = 0  # the rest is cut off by the write
                    self.functions.call("stic_write", part, at, chunk)
                    if self.functions.call("stic_crc32", part, at, len(chunk)) != crc:
                        raise TargetError(f"{self.device} does not read back what was written to {part}: try again")
                    sent += len(chunk)
                at += len(chunk)
                done(len(chunk))
        if before != at or not at:  # longer than the file, or empty
            self.functions.call("stic_write", part, at, b"")
        self.functions.call("stic_rename", part, path)
        return sent

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """Yield a folder of the store for one lease; what one that ended too early left there is removed before."""
        number = 0
        while (lock := self.functions.call("stic_lock", f"{self.folder}/scratch-{number}.lock")) < 0:
            number += 1
        folder = f"{self.folder}/scratch-{number}"
        try:
            self.remove(folder)
            self.functions.call("stic_make_directory", folder)
            yield folder
            self.remove(folder)
        finally:
            with suppress(TargetError):
                self.functions.call("stic_unlock", lock)

    def remove(self, folder: str) -> None:
        """Remove a folder and what is in it, if it is there."""
        for name in self.names(folder):
            self.remove(f"{folder}/{name}")
        self.functions.call("stic_remove", folder)

    def names(self, folder: str) -> tuple[str, ...]:
        """Names in a folder; none of what is no folder."""
        room = np.zeros(1 << 16, np.uint8)
        used = int(self.functions.call("stic_list", folder, room))
        if used > len(room):
            raise TargetError(f"{self.device} has too many files in {folder}: name another folder with --directory")
        return tuple(room[:used].tobytes().decode(errors="replace").split("/")[:-1])

    def _same(self, own: Path, path: str, meter: _Meter) -> bool:
        size = own.stat().st_size
        if self.functions.call("stic_file_bytes", path) != size:
            return False
        at = 0
        with own.open("rb") as file:
            while chunk := file.read(CHUNK):
                if self.functions.call("stic_crc32", path, at, len(chunk)) != zlib.crc32(chunk):
                    return False
                at += len(chunk)
                meter.add(len(chunk))
        return True

    def _make_room(self, folder: str, wanted: set[str], changed: dict[str, int]) -> None:
        """Remove what is outdated, the index first, and check that what is to come fits."""
        keep = {name for name in wanted if name not in changed}
        there = 0
        for name, size in changed.items():
            part = self.functions.call("stic_file_bytes", f"{folder}/{name}.part")
            if 0 < part <= size:  # a longer one is of something else
                there += part
                keep.add(f"{name}.part")
        for name in sorted(self.names(folder), key=lambda name: name != INDEX):
            if name not in keep:
                self.functions.call("stic_remove", f"{folder}/{name}")
        need = sum(changed.values()) - there + MARGIN_BYTES
        free = self.functions.call("stic_free_bytes", folder)
        if free < need:
            raise TargetError(
                f"{self.device} has {free / 2**20:.1f} MiB free in {self.folder}, and {need / 2**20:.1f} MiB are"
                " needed: free some there, or name a folder on another disk with --directory"
            )

    @contextmanager
    def _locked(self, folder: str, progress: Progress) -> Iterator[None]:
        """Keep others who share this disk, such as a second server on one machine, from the folder meanwhile."""
        until = time.monotonic() + SENDING_S
        while (lock := self.functions.call("stic_lock", f"{folder}.lock")) < 0:
            if time.monotonic() > until:
                raise TargetError(
                    f"{self.device}: another client has been sending to {folder} for {SENDING_S:.0f} s: try again later"
                )
            progress(f"waiting for another client that sends to {folder}", 0, 0)
            time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            with suppress(TargetError):  # a lost device has let go of it
                self.functions.call("stic_unlock", lock)


class _Meter:
    """Bytes done, shown in MiB."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total, self._done = progress, f"{stage} (MiB)", total, 0
        self.add(0)

    def add(self, size: int) -> None:
        self._done += size
        self._progress(self._stage, self._done >> 20, max(1, self._total >> 20))


def _folder_name(source: Path) -> str:
    """The same for one package of one workstation, whatever its contents: what did not change is not sent again."""
    whole = source.resolve()
    return f"{whole.name}-{hashlib.sha256(f'{platform.node()}:{whole}'.encode()).hexdigest()[:8]}"


def open_store(connection: Connection, library: Path, directory: str | None, what: str) -> tuple[Depot, Module]:
    """Load the engine `library` on a device, from its store if it is there; `what` it was built for, for messages.

    Returns the store, in `directory` if that is given, and the engine's functions.
    Raises TargetError if the device cannot load it, or has no folder for a store.
    """
    data = library.read_bytes()
    name = f"libstic-{hashlib.sha256(data).hexdigest()[:16]}.so"
    folders = [directory] if directory is not None else [f"{folder}/stic" for folder in FOLDERS]
    for folder in folders:
        with suppress(DeviceRefused):
            engine = connection.load_module(f"{folder}/{name}")
            return Depot(connection.device, engine, folder), engine
    connection.upload(data, name)
    try:
        engine = connection.load_module(name)
    except DeviceRefused as error:
        raise TargetError(
            f"{connection.device} cannot load the engine for {what} ({error.message}): is it a device of another"
            " architecture or system? See --system, and `stic devices` for other keys"
        ) from error
    store = Depot(connection.device, engine, _writable(connection, engine, folders, directory))
    with suppress(DeviceRefused):  # where there is no room, checking for the package's will say so
        store.send(library, f"{store.folder}/{name}")
    return store, engine


def _writable(connection: Connection, engine: Functions, folders: list[str], directory: str | None) -> str:
    """The first folder that can be a store. One that is not named by the user is only made where its parent is."""
    refusals = []
    for folder in folders:
        try:
            if directory is None:
                engine.call("stic_free_bytes", os.path.dirname(folder))
            engine.call("stic_make_directory", folder)
            return folder
        except DeviceRefused as error:
            refusals.append(error.message)
    raise TargetError(
        f"{connection.device} has no folder for packages ({'; '.join(refusals)}): name one with --directory"
    )
