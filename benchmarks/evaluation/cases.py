"""What is measured: cases, and which of them keep something more than their figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PAPER = "paper"
NONE = "none"
STI = "sti"  # greedy, and importance, as published
MODES = ("resident", "cold")

Bandwidth = int | str  # bytes a second, or PAPER
Deadline = float | str  # a multiple of C, a time with its unit, or NONE


@dataclass(frozen=True)
class Case:
    """One planner under one budget, on one task and one storage."""

    grid: str
    task: str
    planner: str  # as in the file: "ilp", "pipeline-4"
    bytes_per_s: Bandwidth
    preload_bytes: int | None  # None: not capped
    deadline: Deadline

    @property
    def method(self) -> tuple[str, int | None]:
        """The planner of stic.compiler.planner, and the bits it holds every shard at, where it takes any."""
        return ("greedy", None) if self.planner == STI else split(self.planner)


@dataclass(frozen=True)
class PeerCase:
    """Another runtime on one task, loaded once or started cold."""

    task: str
    name: str
    mode: str
    bytes_per_s: Bandwidth | None  # of a cold start


@dataclass(frozen=True)
class SwitchCase:
    """A family of plans of one task on one storage for one deadline, one for each cap on the preload buffer."""

    task: str
    bytes_per_s: Bandwidth
    deadline: Deadline
    preload_bytes: tuple[int, ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """What the integer program is asked for."""
        return tuple(
            Case("switch", self.task, "ilp", self.bytes_per_s, size, self.deadline) for size in self.preload_bytes
        )


@dataclass(frozen=True)
class Pattern:
    """Which cases keep something more; an empty tuple matches everything."""

    tasks: tuple[str, ...] = ()
    planners: tuple[str, ...] = ()
    bytes_per_s: tuple[Bandwidth, ...] = ()
    preload_bytes: tuple[int | None, ...] = ()
    deadlines: tuple[Deadline, ...] = ()
    modes: tuple[str, ...] = ()

    def matches(self, case: Case | PeerCase) -> bool:
        """Whether a case has a value of every list that is not empty; what a case has none of matches."""
        name = case.name if isinstance(case, PeerCase) else case.planner
        asked: dict[str, Any] = {"tasks": case.task, "planners": name, "bytes_per_s": case.bytes_per_s}
        if isinstance(case, PeerCase):
            asked["modes"] = case.mode
        else:
            asked |= {"preload_bytes": case.preload_bytes, "deadlines": case.deadline}
        wanted = {key: getattr(self, key) for key in asked}
        return all(not wanted[key] or value is None or value in wanted[key] for key, value in asked.items())


@dataclass(frozen=True)
class Machine:
    """How cases are run."""

    threads: int = 1
    tokens: int = 512
    runs: int = 30
    block: int = 10
    plan_seconds: float = 10.0
    calibration_tokens: int = 1536
    probes: int = 9  # of this machine, whose speed may wander while one lasts
    margin: float = 0.05  # share of a deadline that plans keep back
    requests_per_s: int | None = None  # that storage serves; None: as many as there are
    dev_rows: int | None = None  # None: all


@dataclass(frozen=True)
class Cases:
    """A case file's content, expanded."""

    name: str
    machine: Machine
    cases: tuple[Case, ...]
    peers: tuple[PeerCase, ...] = ()
    switches: tuple[SwitchCase, ...] = ()
    timelines: tuple[Pattern, ...] = ()
    memory_curves: tuple[Pattern, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks, in the order of the file."""
        found: list[Case | PeerCase | SwitchCase] = [*self.cases, *self.peers, *self.switches]
        return tuple(dict.fromkeys(case.task for case in found))


def split(planner: str) -> tuple[str, int | None]:
    """ "pipeline-4" as ("pipeline", 4), "ilp" as ("ilp", None)."""
    name, _, bits = planner.rpartition("-")
    return (name, int(bits)) if name and bits.isdecimal() else (planner, None)
