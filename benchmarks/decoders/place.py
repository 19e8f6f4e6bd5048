"""Where a part of the benchmark works: its folder, what was measured already, and its progress."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.evaluation.resume import Finished


@dataclass(frozen=True)
class Place:
    """Values that every part needs."""

    folder: Path

    @property
    def packages(self) -> Path:
        """Where compiled packages are kept."""
        return self.folder / "packages"

    @cached_property
    def _finished(self) -> Finished:
        return Finished(self.folder)

    def once(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, or returned for this key before."""
        found = self._finished.get(kind, key)
        if found is None:
            found = {"value": make()}
            self._finished.put(kind, key, found)
        return found["value"]

    def lacks(self, *tools: str) -> str | None:
        """A sentence on the first of these programs that is not installed."""
        return next((f"{tool} is not installed" for tool in tools if shutil.which(tool) is None), None)

    def say(self, text: str) -> None:
        """Tell people, beside the result."""
        print(f"benchmarks.decoders: {text}", file=sys.stderr, flush=True)
