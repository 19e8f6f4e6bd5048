"""What was measured already: a file for each finished piece of work, written whole, so that a run goes on."""

from __future__ import annotations

import fcntl
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stic.compiler.cache.digests import digest
from stic.runtime.errors import InputError
from stic.runtime.files import write_text

Json = dict[str, Any]
FORMAT = 1


class Finished:
    """Results in FOLDER/cases by what they are of; a result of another machine is none of these."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "cases"

    def path(self, kind: str, key: Any) -> Path:
        """Where a result is kept; the key holds whatever changes it."""
        return self._folder / f"{digest(FORMAT, platform.node(), kind, key)}.json"

    def get(self, kind: str, key: Any) -> Json | None:
        """A finished result; None where there is none, or where the file is damaged."""
        try:
            data = json.loads(self.path(kind, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        found: Json | None = data.get("result") if isinstance(data, dict) and data.get("kind") == kind else None
        return found

    def put(self, kind: str, key: Any, result: Json) -> None:
        """Keep a result. Raises InputError where the folder cannot be written."""
        path = self.path(kind, key)
        write_json(path, {"kind": kind, "result": result})


def write_json(path: Path, data: Json, indent: int | None = None) -> None:
    """Write a file, whole or not at all. Raises InputError where it cannot be written."""
    try:
        write_text(path, json.dumps(data, indent=indent) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another folder with --folder") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this process. Raises InputError where another evaluation does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror}; name another folder with --folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another evaluation runs in {folder}: wait for it, or name another --folder") from error
        yield
