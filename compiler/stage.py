"""What the pipeline is a list of: stages, what they have made, and what of it can be kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Summary = Mapping[str, object]  # plain data, for JSON


@dataclass(frozen=True)
class Artifact:
    """How what a stage made is kept in a file, for a later run to start from.

    `load` raises InputError for a file that is damaged, or that another model or other settings left.
    """

    file: str
    save: Callable[[Made, Path], None]
    load: Callable[[Made, Path], object]


@dataclass(frozen=True)
class Tell:
    """Whom a stage tells how far it is, and what went wrong without harm."""

    tick: Callable[[int, int], None]  # done, total; total 0: not known
    note: Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One step of the compiler: its name, a sentence for people, and the function that does it."""

    name: str
    sentence: str
    work: Callable[[Made, Tell], object]
    summary: Callable[[Made], Summary]  # what there is to say of what it made
    artifact: Artifact | None = None  # None: what it makes is made again, which costs little
    last_use: tuple[type, ...] = ()  # values that no later stage uses


@dataclass(frozen=True, eq=False)
class Made:
    """What stages have made so far: one value of each type. To ask for what no stage made yet is a defect."""

    values: Mapping[type, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what went wrong without harm, for people
    stages: int = 0  # that have run

    def __getitem__(self, kind: type[T]) -> T:
        found = self.values[kind]
        assert isinstance(found, kind)
        return found

    def __contains__(self, kind: type) -> bool:
        return kind in self.values

    def after(self, stage: Stage, value: object) -> Made:
        """The same after one more stage, which made `value`; what no later stage uses is let go."""
        kept = {kind: known for kind, known in self.values.items() if kind not in stage.last_use}
        return Made({**kept, type(value): value}, self.notes, self.stages + 1)
