"""Metadata of a GGUF file, key by key and of the type that is expected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.gguf_file import GgufFile
from stic.runtime.errors import UnsupportedModelError


class Metadata:
    """What a file says beside its tensors, and which of it was read.

    Every method raises UnsupportedModelError, which names the key, for what cannot be.
    """

    def __init__(self, file: GgufFile) -> None:
        self.path: Path = file.path
        self._values = file.metadata
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def refuse(self, key: str, why: str) -> UnsupportedModelError:
        """An error that names a key and what it says."""
        return UnsupportedModelError(f"{self.path}: {key} is {_shown(self._values.get(key))}; {why}")

    def raw(self, key: str) -> Any:
        """What a key says, of whatever type; None if it is absent."""
        self._read.add(key)
        return self._values.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """A text; an error if it is absent and there is no default."""
        value = self.raw(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.refuse(key, "expected a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.raw(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(key, "expected true or false")
        return value

    def whole(self, key: str, default: int | None = None, most: int | None = None) -> int:
        """A whole number of at least 1 (and at most `most`), or a list of nothing else."""
        value = self.raw(key)
        value = default if value is None else value
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
            span = "at least 1" if most is None else f"1 to {most}, by the sizes of its tensors"
            raise self.refuse(key, f"expected one whole number for all layers, {span}")
        return value

    def number(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        """A number above `least`."""
        value = self.raw(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < float("inf"):
            raise self.refuse(key, f"expected a number above {least:g}")
        return float(value)

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        value = self.raw(key)
        if not isinstance(value, list) or not value:
            raise self.refuse(key, "expected a list of texts")
        return value

    def numbers(self, key: str, count: int) -> NDArray[Any]:
        """A list of so many numbers."""
        value = self.raw(key)
        if not isinstance(value, np.ndarray) or value.size != count:
            raise self.refuse(key, f"expected {count} numbers")
        return value

    def token(self, key: str, count: int) -> int | None:
        """The id of one of so many tokens; None if the file names none."""
        value = self.raw(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise self.refuse(key, f"expected the id of one of {count} tokens")
        return value

    def settle(self, prefix: str, harmless: Iterable[str] = ()) -> None:
        """Refuse a key of `prefix` that nobody has read, unless it is `harmless` (without the prefix)."""
        known = self._read | {prefix + key for key in harmless}
        for key in self._values:
            if key.startswith(prefix) and key not in known:
                raise self.refuse(key, "it is not known, and may change the computation")


def _shown(value: object) -> str:
    if isinstance(value, list | np.ndarray):
        return f"a list of {len(value)}"
    return "not there" if value is None else repr(value)[:80]
