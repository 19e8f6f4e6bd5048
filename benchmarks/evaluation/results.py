"""The result file, for reading: rows with names for what tables and figures ask of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.errors import InputError

Json = dict[str, Any]
FORMAT = 1
POINTS = 100.0  # accuracy and rank correlation are told in hundredths
PAPER_RATIO = 339 / 95  # STI, section 2: milliseconds to load one float32 layer, and to compute it
RATIO_TOLERANCE = 0.02  # of a bandwidth that stands for the paper's ratio
MOTIVATING_PRELOAD = 1 << 20  # bytes of preload buffer at which planners are compared with the paper's ratio


@dataclass(frozen=True)
class Cell:
    """What every planner was asked for: a task, on storage of one bandwidth, within a preload buffer and a deadline."""

    task: str
    bytes_per_s: int
    preload_bytes: float  # infinite: not capped
    deadline_us: float  # infinite: none


def _limit(value: float | None) -> float:
    return math.inf if value is None else float(value)


@dataclass(frozen=True, eq=False)
class Row:
    """One case: who was asked for what, and what came of it."""

    data: Json

    @property
    def case(self) -> Json:
        """What was asked."""
        found: Json = self.data["case"]
        return found

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.case["task"])

    @property
    def planner(self) -> str:
        """The planner with its bits, or a peer's name."""
        name, bits = str(self.case["planner"]), self.case.get("bits")
        return name if bits is None or name.endswith(f"-{bits}") else f"{name}-{bits}"

    @property
    def mode(self) -> str | None:
        """Of a peer: "resident" or "cold"; None for a plan."""
        return self.data.get("mode")

    @property
    def bytes_per_s(self) -> int | None:
        """Bandwidth of storage; None where it plays no part."""
        return self.case.get("bytes_per_s")

    @property
    def ran(self) -> bool:
        """Whether there is something measured."""
        return bool(self.data["status"] == "ran")

    @property
    def plan(self) -> Json:
        """What the planner decided; only of a plan that was made."""
        found: Json = self.data["plan"]
        return found

    @property
    def times_us(self) -> tuple[float, ...]:
        """Every timed run."""
        return tuple(self.data["latency"]["times_us"])

    @property
    def set_aside_us(self) -> tuple[float, ...]:
        """Runs that were made again, since the hypervisor had taken the processors away meanwhile."""
        return tuple(self.data["latency"].get("set_aside_us", ()))

    @property
    def stolen(self) -> tuple[float, ...]:
        """Share of the processors' time that the hypervisor took during each block of the timed runs."""
        return tuple(self.data["latency"].get("stolen", ()))

    @property
    def median_us(self) -> float:
        """Median of the timed runs."""
        return float(self.data["latency"]["median_us"])

    @property
    def predicted_us(self) -> float:
        """What the replay of the plan says."""
        return float(self.data["predicted_us"])

    @property
    def error(self) -> float:
        """How much longer than predicted the median run took, as a share of the prediction."""
        return self.median_us / self.predicted_us - 1

    @property
    def pace(self) -> dict[str, float]:
        """Time that the machine took just then to compute, and to read embedding rows, by what was predicted; may be
        empty."""
        return self.data.get("pace") or {}

    @property
    def error_at_pace(self) -> float | None:
        """`error` of a prediction in which compute and row reads take `pace` times as long."""
        predicted_us = self.data.get("predicted_at_pace_us")
        return None if predicted_us is None else self.median_us / predicted_us - 1

    @property
    def throttle(self) -> str:
        """What held storage to its bandwidth."""
        return str(self.data["latency"].get("throttle") or "none")

    @property
    def points(self) -> float | None:
        """Accuracy or rank correlation in points; None where it was not measured."""
        accuracy = self.data.get("accuracy")
        return None if accuracy is None else POINTS * accuracy["value"]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `points`."""
        accuracy = self.data["accuracy"]
        return POINTS * accuracy["low"], POINTS * accuracy["high"]

    @cached_property
    def correct(self) -> NDArray[np.bool_] | None:
        """Which examples a classifier got right, (n,); None of other tasks."""
        accuracy = self.data["accuracy"]
        if "correct" not in accuracy:
            return None
        packed = np.frombuffer(bytes.fromhex(accuracy["correct"]), np.uint8)
        return np.unpackbits(packed, count=accuracy["n"]).astype(np.bool_)

    @property
    def rss_bytes(self) -> int:
        """Peak resident set of the process (VmHWM)."""
        return int(self.data["memory"]["rss_bytes"])

    @property
    def own_bytes(self) -> int:
        """Of `rss_bytes`, without what the interpreter and a runtime's libraries take before a model is opened."""
        return self.rss_bytes - int(self.data["memory"].get("imported_bytes") or 0)

    @property
    def group_bytes(self) -> int | None:
        """Peak that the memory cgroup counted; None without one."""
        return self.data["memory"].get("cgroup_peak_bytes")

    @property
    def peak_bytes(self) -> int:
        """The larger of the two: one leaves out pages that others touched first, the other the kernel's own."""
        return max(self.rss_bytes, self.group_bytes or 0)

    @property
    def claimed_bytes(self) -> int:
        """What the plan says that the engine needs; also the cgroup's limit."""
        return int(self.data["claimed_bytes"])

    def missed(self, deadline_us: float) -> int:
        """How many of the timed runs took longer."""
        return sum(time > deadline_us for time in self.times_us)

    @property
    def deadline_us(self) -> float:
        """The deadline it was planned for; infinite: none."""
        return _limit(self.case.get("deadline_us"))

    @property
    def cell(self) -> Cell:
        """What it was asked for."""
        preload = _limit(self.case.get("preload_bytes"))
        return Cell(self.task, self.case["bytes_per_s"], preload, self.deadline_us)

    def answers(self, cell: Cell) -> bool:
        """Whether the row is of this cell. Planners that hold all shards at fixed bits look at no preload buffer, so
        they are asked once for all, and may be asked once for all deadlines."""
        own = self.cell
        if self.case.get("bits") is None:
            return own == cell
        met = own.preload_bytes in (math.inf, cell.preload_bytes) and own.deadline_us in (math.inf, cell.deadline_us)
        return met and (own.task, own.bytes_per_s) == (cell.task, cell.bytes_per_s)


class Results:
    """All that one evaluation measured. `data` is the file's content, read once and never changed."""

    def __init__(self, data: Json) -> None:
        self.data = data
        self.rows = tuple(Row(row) for row in data["rows"])

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read the file. Raises InputError for what is no result of this version."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"there are no results at {path}: measure them with `make bench`") from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}): measure again with `make bench`") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{path} is not a result of this version (format {FORMAT}): measure it again")
        return cls(data)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Tasks, in the order of the file."""
        return tuple(dict.fromkeys(row.task for row in self.rows))

    @cached_property
    def planned(self) -> tuple[Row, ...]:
        """Rows of planners, whether or not they found a plan."""
        return tuple(row for row in self.rows if row.mode is None)

    @cached_property
    def peers(self) -> tuple[Row, ...]:
        """Rows of other runtimes that ran."""
        return tuple(row for row in self.rows if row.mode is not None and row.ran)

    @cached_property
    def planners(self) -> tuple[str, ...]:
        """Planners by name: the integer program, greedy, then the others as in the file."""
        names = dict.fromkeys(row.planner for row in self.planned)
        return tuple(sorted(names, key=lambda name: (name != "ilp", name != "greedy")))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell that the integer program was asked for, by task, bandwidth, preload buffer and deadline."""
        found = {row.cell for row in self.planned if row.planner == "ilp"}
        key = {task: number for number, task in enumerate(self.tasks)}
        return tuple(sorted(found, key=lambda c: (key[c.task], c.bytes_per_s, c.preload_bytes, c.deadline_us)))

    def answer(self, cell: Cell, planner: str) -> Row | None:
        """What a planner made of a cell; None where it was not asked."""
        found = (row for row in self.planned if row.planner == planner and row.answers(cell))
        return min(found, key=lambda row: row.deadline_us, default=None)

    def full_model(self, task: str) -> float | None:
        """Points of the whole float32 model; None where it was not measured."""
        found = self.data.get("full_model", {}).get(task)
        return None if found is None else POINTS * found["value"]

    def ratio(self, cell: Cell) -> float | None:
        """Time to load a float32 layer by the time to compute one, at the cell's bandwidth."""
        found = {float(rate): ratio for rate, ratio in self.data["costs"][cell.task]["ratio"].items()}
        return found.get(float(cell.bytes_per_s))

    def at_paper(self, cell: Cell) -> bool:
        """Whether the cell stands for the paper's motivating figure."""
        ratio = self.ratio(cell)
        near = ratio is not None and abs(ratio / PAPER_RATIO - 1) <= RATIO_TOLERANCE
        return near and cell.preload_bytes == MOTIVATING_PRELOAD

    def compute_us(self, task: str) -> float:
        """Compute of the whole model at 8 bits: C, which deadlines are multiples of."""
        return float(self.data["costs"][task]["compute_us"])

    def layers(self, task: str) -> int:
        """Layers of the task's model, those left out too."""
        return max((len(row.plan["bits"]) for row in self.planned if row.ran and row.task == task), default=1)
