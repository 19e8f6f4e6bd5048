"""How stages tell how far they are."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far a stage is; called from the thread that runs the stage, at most a few times a second."""

    def __call__(self, stage: str, done: int, total: int, /) -> None:
        """`stage` is a name from the list of stages or a sentence; total 0: not known."""


def silent(stage: str, done: int, total: int) -> None:
    """A `Progress` that says nothing."""
