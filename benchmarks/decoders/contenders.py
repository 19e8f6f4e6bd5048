"""Engines that answer a prompt, each in a process of its own (benchmarks.kernels.worker).

"prefill" computes the prompt and the logits of its last token; "next" computes so many tokens after it, one by one,
each with its logits. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.decoders.llama import Llama
from stic.runtime.session import Session


class Engine(Protocol):
    """A text that is extended and taken back."""

    def rewind(self, position: int) -> None:
        """Forget the tokens from a position on."""

    def extend(self, ids: list[int]) -> None:
        """Compute these tokens."""


class _Answering:
    """A contender around an engine; its cases are "prefill" and "next"."""

    def __init__(self, engine: Engine, vocabulary: int, prompt: int, new: int) -> None:
        self._engine, self._prompt = engine, prompt
        self._ids: list[int] = np.random.default_rng(0).integers(0, vocabulary, prompt + new).tolist()
        self.prefill()

    def facts(self) -> dict[str, Any]:
        """Nothing to compare: quality is another part."""
        return {}

    def call(self, case: str) -> Callable[[], object]:
        """What runs a case."""
        return {"prefill": self.prefill, "next": self.next}[case]

    def prefill(self) -> None:
        """Compute the prompt."""
        self._engine.rewind(0)
        self._engine.extend(self._ids[: self._prompt])

    def next(self) -> None:
        """Compute what follows the prompt, which is held."""
        self._engine.rewind(self._prompt)
        for token in self._ids[self._prompt :]:
            self._engine.extend([token])


class Stic(_Answering):
    """A package."""

    def __init__(self, threads: int, path: str, vocabulary: int, prompt: int, new: int) -> None:
        super().__init__(Session(path, threads=threads), vocabulary, prompt, new)


class LlamaCpp(_Answering):
    """A GGUF file."""

    def __init__(self, threads: int, path: str, vocabulary: int, prompt: int, new: int, repack: bool) -> None:
        super().__init__(Llama(Path(path), prompt + new, threads, repack), vocabulary, prompt, new)
