"""Arrays on disk, by content: what was computed before from the same inputs by the same code is read instead.

One file an entry, `<key>.arrays`:

    MAGIC, which names the format's version
    SHA-256 of all that follows
    u32, little-endian: bytes of the head
    head: JSON {"key": ..., "arrays": [[name, dtype, shape], ...]}
    the arrays, C order, one after the other

A file whose digest is wrong counts as absent. Files appear whole or not at all, so that several processes may share
a folder. Once a folder holds more than LIMIT_BYTES, the files that were not used for longest go.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stic.runtime.files import SUFFIX, whole_file

MAGIC = b"stic arrays 1\n"
LIMIT_BYTES = 2 << 30
ABANDONED_S = 3600.0  # an unfinished file this old belongs to a process that was killed

Arrays = Mapping[str, NDArray[Any]]
Note = Callable[[str], None]
T = TypeVar("T")


def remember(
    folder: Path, key: str, compute: Callable[[], T], pack: Callable[[T], Arrays | None],
    unpack: Callable[[Arrays], T], note: Note,
) -> T:  # fmt: skip
    """Return what `unpack` makes of the entry `key` in `folder`; without one, `compute`, and keep what `pack` makes.

    `unpack` raises KeyError or ValueError for arrays that it did not expect; where `pack` returns None, nothing is
    kept. A damaged file, or a folder that cannot be written, costs time and a sentence for `note`, never an error.
    """
    path = folder / f"{key}.arrays"
    try:
        found = unpack(read_arrays(path, key))
        with suppress(OSError):
            os.utime(path)  # the age that decides which files go
        return found
    except FileNotFoundError:
        pass
    except (OSError, KeyError, ValueError) as error:
        note(f"{path} cannot be used ({error}): what it held is computed again")
    value = compute()
    arrays = pack(value)
    if arrays is None:
        return value
    try:
        write_arrays(path, key, arrays)
        _shrink(folder, path)
    except OSError as error:
        note(f"{path} cannot be kept for the next time: {error.strerror or error}")
    return value


def read_arrays(path: Path, key: str) -> Arrays:
    """Read a file of arrays. Raises OSError, and ValueError for one that is damaged or of another key or version."""
    data = path.read_bytes()
    start = len(MAGIC) + 32
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("it is no file of arrays of this version")
    if hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
        raise ValueError("it is damaged")
    at = start + 4 + int.from_bytes(data[start : start + 4], "little")
    head = json.loads(data[start + 4 : at])
    if head["key"] != key:
        raise ValueError("it was renamed, or made from something else")
    arrays = {}
    for name, kind, shape in head["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, kind, count, at).reshape(shape)
        at += arrays[name].nbytes
    return arrays


def write_arrays(path: Path, key: str, arrays: Arrays) -> None:
    """Write a file of arrays, whole or not at all."""
    head = json.dumps({"key": key, "arrays": [(name, a.dtype.str, a.shape) for name, a in arrays.items()]}).encode()
    parts = [len(head).to_bytes(4, "little"), head, *(a.tobytes() for a in arrays.values())]
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    with whole_file(path) as partial, partial.open("wb") as file:
        file.writelines((MAGIC, state.digest(), *parts))


def _shrink(folder: Path, keep: Path) -> None:
    """Delete entries, those unused for longest first but never `keep`, until they are within LIMIT_BYTES."""
    now, total = time.time(), keep.stat().st_size
    ages: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process may be doing the same
            facts = path.stat()
            ages.append((now - facts.st_mtime, facts.st_size, path))
    for age, size, path in sorted(ages):
        if path.suffix == SUFFIX and age > ABANDONED_S:
            path.unlink(missing_ok=True)
        elif path.suffix == ".arrays" and path != keep:
            total += size
            if total > LIMIT_BYTES:
                path.unlink(missing_ok=True)


def joined(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """Return arrays end to end, flat."""
    return np.concatenate([part.ravel() for part in parts])


class Cursor:
    """Takes arrays back out of what `joined` made, in the same order."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays, self._at = arrays, dict.fromkeys(arrays, 0)

    def take(self, name: str, *shape: int) -> NDArray[Any]:
        """Return the next array of `name`. Raises ValueError if less than `shape` is left, KeyError for the name."""
        start = self._at[name]
        self._at[name] = start + int(np.prod(shape))
        return self._arrays[name][start : self._at[name]].reshape(shape)

    def close(self) -> None:
        """Raise ValueError if anything was not taken."""
        left = [name for name, at in self._at.items() if at != self._arrays[name].size]
        if left:
            raise ValueError(f"there is more than expected of {', '.join(left)}")
