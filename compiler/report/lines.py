"""Many sentences in, their answers out: a file of lines, and a file of vectors that appears whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from stic.compiler.importance.tokens import Pair
from stic.runtime.errors import InputError
from stic.runtime.files import whole_file


def count_lines(path: Path) -> int:
    """Read a file of sentences once, for its count and its faults; 0 for what can be read once only ("-", a pipe)."""
    if str(path) == "-" or (path.exists() and not path.is_file()):
        return 0
    return sum(1 for _ in read_lines(path))


def read_lines(path: Path) -> Iterator[Pair]:
    """Yield the sentences of a file in UTF-8, one a line, or two with a tab between; "-" is standard input.

    Raises InputError, naming the line, for one that is blank, no UTF-8, or has several tabs; and for an empty file.
    """
    where, number = "standard input" if str(path) == "-" else str(path), 0
    with _opened(path, where) as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{where}, line {number} is not UTF-8: save it as UTF-8") from error
            parts = [part.strip() for part in line.split("\t")]
            if not all(parts):
                raise InputError(f"{where}, line {number} is blank, or half of it: every line is a sentence; remove it")
            if len(parts) > 2:
                raise InputError(f"{where}, line {number} has {len(parts) - 1} tabs; one tab makes a pair of sentences")
            yield parts[0], parts[1] if len(parts) == 2 else None
    if not number:
        raise InputError(f"{where} is empty: give it one sentence a line")


@contextmanager
def _opened(path: Path, where: str) -> Iterator[BinaryIO]:
    try:
        if str(path) == "-":
            yield sys.stdin.buffer
            return
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error


class AnswerFile:
    """A file of answers, written as they come: JSON lines, or the rows of one .npy array (inputs, features).

    It takes its name when the context ends without an exception. Raises InputError where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._npy = path.suffix == ".npy"
        self._features = -1

    def add(self, given: Mapping[str, Any], output: NDArray[np.float32], said: Any) -> None:
        """Append an answer; `given` and `said` are what JSON lines hold beside the output."""
        self.rows += 1
        if not self._npy:
            facts = {**given, "output": output.tolist(), **({} if said is None else {"answer": said})}
            self._write(json.dumps(facts, ensure_ascii=False).encode() + b"\n")
            return
        if self._features < 0:
            self._features = output.shape[0]
            self._write(self._header())
        self._write(output.astype("<f4").tobytes())

    def _header(self) -> bytes:
        """The array's header; numpy leaves room in it for the first size to grow, so that its length stays."""
        text = BytesIO()
        facts = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self._features)}
        npy.write_array_header_1_0(text, facts)
        return text.getvalue()

    def _write(self, data: bytes) -> None:
        with self._writing():
            self._file.write(data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written: {error.strerror or error}; free some space or choose another place"
            ) from error

    def __enter__(self) -> AnswerFile:
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder: name a file for the answers")
        with self._writing(), ExitStack() as ending:
            self._file = ending.enter_context(ending.enter_context(whole_file(self.path, parents=False)).open("wb"))
            self._ending = ending.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._ending.__exit__(kind, error, traceback)
            return
        with self._writing(), self._ending:
            if self._npy:
                self._file.seek(0)
                self._file.write(self._header())
