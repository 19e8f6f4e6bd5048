"""Files and folders that appear whole or not at all, whatever happens while they are written.

Everything is written under a name of this thread in the folder where it will lie, forced to the disk, and renamed:
after a failure, a Ctrl-C or a power cut the old content stands, and nothing else. What a killed process left behind is
called `.NAME.THREAD.partial`.
"""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stic.runtime.errors import InputError

SUFFIX = ".partial"
CHUNK_BYTES = 1 << 20


@contextmanager
def whole_file(path: Path, parents: bool = True) -> Iterator[Path]:
    """Yield a path to write a file at, in the folder of `path`; it takes its place afterwards.

    `parents`: that folder is made if need be. Raises OSError where the file cannot be written; it is as it was then.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, once: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path` (its parents are made if need be); it takes its place afterwards.

    A folder that stood there goes once the new one stands; with `once`, for what all writers write alike, it stays.
    Raises OSError where files cannot be written; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed; containers give process ids again
    partial.mkdir()
    try:
        yield partial
        for folder, _, names in os.walk(partial, topdown=False):
            for name in names:
                to_disk(Path(folder, name))
            to_disk(Path(folder))
        if not (once and path.is_dir()):
            _replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises InputError for one that is not there, or is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises OSError."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str, parents: bool = True) -> None:
    """Write a file in UTF-8, whole or not at all. Raises OSError."""
    with whole_file(path, parents) as partial:
        partial.write_text(text, encoding="utf-8")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file and its permissions, whole or not at all. Raises OSError."""
    with whole_file(path) as partial:
        shutil.copy(source, partial)


def check_writable(path: Path) -> None:
    """Raise OSError where a file cannot be written: before work whose result is bound to be lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = _partial(path)
    probe.touch()
    probe.unlink()


def chunks(path: Path) -> Iterator[bytes]:
    """Read a file in pieces of CHUNK_BYTES, for what is too large to be held whole. Raises OSError."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def crc_of(path: Path) -> int:
    """Return the CRC-32 of a file, which is never held whole. Raises OSError."""
    crc = 0
    for chunk in chunks(path):
        crc = zlib.crc32(chunk, crc)
    return crc


def to_disk(path: Path) -> None:
    """Wait until a file or folder would survive a power cut; a full disk shows here at the latest."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    """Where to write: threads have numbers that no other thread or process of the system has."""
    return path.with_name(f".{path.name}.{threading.get_native_id()}{SUFFIX}")


def _replace_folder(partial: Path, path: Path) -> None:
    """Give `partial` the name `path`; the old folder goes only once the new one stands."""
    if not path.exists():
        partial.rename(path)
        return
    old = _partial(path).with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)
