"""Types of options: text in, checked values out, a sentence for everything else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stic.compiler.quantities import parse_bytes, parse_storage, parse_time_us
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError
from stic.runtime.limits import LIMITS

if TYPE_CHECKING:  # its parameter is newer than the oldest click that will do
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType

PICTURES = (".svg", ".png", ".pdf")


class Quantity(_Type):
    """A time or a size up to `most`, handed on as an integer."""

    def __init__(self, name: str, parse: Callable[[str], int], most: str) -> None:
        self.name = name
        self._parse, self._most = parse, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            found = self._parse(_readable(value))
        except InputError as error:
            self.fail(str(error), param, ctx)
        if found > self._parse(self._most):
            self.fail(f"'{value}' is too much: {self._most} is the most that stic takes here", param, ctx)
        return found


class Text(_Type):
    """Text, as tokenizers, JSON and sockets take it; a name must not be empty."""

    def __init__(self, name: str, may_be_empty: bool = False) -> None:
        self.name = name
        self._may_be_empty = may_be_empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            text = _readable(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        if not text.strip() and not self._may_be_empty:
            self.fail("it is empty: write a name, or leave the option out", param, ctx)
        return text


class File(_Type):
    """The path of a file or a directory, there or to be made; bytes that are no text may be in it."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = os.fspath(value)
        try:
            named = os.fsencode(text)
        except UnicodeEncodeError:
            named = b""
        if not named.strip() or b"\0" in named:
            self.fail(f"{text!a} cannot be the path of a file: write one", param, ctx)
        return Path(text)


def _readable(text: str) -> str:
    """`text`, if it is one: Python hides bytes of the command line that its locale cannot read in lone surrogates.

    Where the locale is a narrower one, UTF-8 is read nevertheless. Raises InputError.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text = os.fsencode(text).decode()
        except UnicodeError as error:
            raise InputError(f"{text!a} holds bytes that are no text: write it in UTF-8") from error
    if "\0" in text:
        raise InputError(f"{text!a} holds a zero byte, which no text does: leave it out")
    return text


class Storage(_Type):
    """Storage to emulate: `RATE` or `RATE,REQUESTS`, both a second."""

    name = "storage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> EmulatedStorage:
        if isinstance(value, EmulatedStorage):
            return value
        try:
            return parse_storage(_readable(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


class Several(_Type):
    """A comma-separated list of quantities."""

    def __init__(self, item: Quantity) -> None:
        self.name = f"{item.name},..."
        self._item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self._item.convert(part, param, ctx) for part in value.split(","))


class FurtherBudget(_Type):
    """`LATENCY,MEMORY` as (microseconds, bytes); an empty part is None. Not both are."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        if isinstance(value, tuple):
            return value
        latency, comma, memory = (part.strip() for part in value.partition(","))
        if not comma or not (latency or memory):
            self.fail(f"'{value}' is not a budget: write 40ms,4MiB, or 40ms, or ,4MiB to change one part", param, ctx)
        return (
            TIME.convert(latency, param, ctx) if latency else None,
            SIZE.convert(memory, param, ctx) if memory else None,
        )


class Picture(_Type):
    """A file that a picture is written to; its suffix says which kind. "-" stands for the terminal."""

    name = "picture"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = FILE.convert(value, param, ctx)
        if path.suffix not in PICTURES and str(path) != "-":
            self.fail(f"'{value}' is not the name of a picture: it must end in {', '.join(PICTURES)}", param, ctx)
        return path


FILE = File()
PICTURE = Picture()
NAME = Text("name")
SENTENCE = Text("text", may_be_empty=True)
TIME = Quantity("time", parse_time_us, "60min")  # packages hold deadlines as 32-bit microseconds
PATIENCE = Quantity("time", parse_time_us, "10000min")  # sockets and the solver wait no longer than some weeks
SIZE = Quantity("size", parse_bytes, "1024GiB")  # beyond any memory, and the solver's sums stay exact
STORAGE = Storage()
TIMES = Several(TIME)
SIZES = Several(SIZE)
# Numbers that reach the engine, the package's index or a list of that length are bounded here.
THREADS = click.IntRange(1, LIMITS["threads"])
LANES = click.IntRange(1, LIMITS["lanes"])
SLICES = click.IntRange(1, LIMITS["slices"])
LENGTH = click.IntRange(1, LIMITS["chunk"])
PROCESSES = click.IntRange(1, 1024)
ROUNDS = 10**6  # of anything that is measured again and again
