"""The case file (TOML, data only), read and expanded into cases.

    [machine]        threads, tokens (planned length), runs (timed, of each plan), block (of them in one process),
                     plan_seconds (limit of a planner's search), calibration_tokens (that importance is measured on),
                     probes (times that costs are measured; each number's median counts),
                     margin (share of every deadline that plans keep back for jitter),
                     requests_per_s (at most, that emulated storage serves; left out: as many as there are),
                     dev_rows (rows of dev.tsv; left out: all)
    [[grid]]         name and lists: tasks, bytes_per_s (or "paper"), preload_bytes, deadlines, planners
    [[peers]]        lists: names, tasks, modes, bytes_per_s (of cold starts)
    [[timelines]]    lists of what a case is asked for (tasks, planners, bytes_per_s, preload_bytes, deadlines): cases
    [[memory_curves]]  that match all of them also keep their timeline, or their memory over time
    [[switches]]     lists: tasks, bytes_per_s, deadlines; preload_bytes, least first: of plans to switch between

Every combination of a grid's lists is a case. A deadline is a multiple of C (the compute of the whole model at 8 bits,
from the measured cost table), a time such as "40ms", or "none". A bandwidth of "paper" is the one that gives the
ratio of IO to compute in STI's motivating figure. Planners that hold every shard at fixed bits (pipeline-4) look at no
cap on the preload buffer, so they are asked once for all caps. Planner "greedy" is STI's on the gains that "ilp" has;
"sti" is the same on STI's own ranking of shards.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evaluation.cases import (
    MODES,
    NONE,
    PAPER,
    STI,
    Bandwidth,
    Case,
    Cases,
    Deadline,
    Machine,
    Pattern,
    PeerCase,
    SwitchCase,
    split,
)
from benchmarks.evaluation.peer_process import PEERS
from benchmarks.evaluation.tasks import TASKS
from stic.compiler.planner import FIXED, PLANNERS
from stic.compiler.quantities import parse_time_us
from stic.runtime.errors import InputError

Read = Callable[[Any, str], Any]  # checks one value; the text says where it stands


def read_cases(path: Path) -> Cases:
    """Read and expand a case file. Raises InputError with the place of whatever is wrong in it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the cases in {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    _known(data, ("machine", "grid", "peers", "timelines", "memory_curves", "switches"), str(path))
    cases = _unique(case for block in _blocks(data, "grid", path) for case in _grid(block, f"{path}, grid"))
    if not cases:
        raise InputError(f"{path} asks for no case: give it a [[grid]]")
    return Cases(
        path.stem,
        _machine(data.get("machine", {}), f"{path}, machine"),
        cases,
        _unique(case for block in _blocks(data, "peers", path) for case in _peers(block, f"{path}, peers")),
        _unique(case for block in _blocks(data, "switches", path) for case in _switches(block, f"{path}, switches")),
        tuple(_pattern(block, f"{path}, timelines") for block in _blocks(data, "timelines", path)),
        tuple(_pattern(block, f"{path}, memory_curves") for block in _blocks(data, "memory_curves", path)),
    )


def _unique(found: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(found))


def _known(table: Any, names: Sequence[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: a table is expected, not {table!r}")
    if unknown := sorted(set(table) - set(names)):
        raise InputError(f"{where}: {unknown[0]!r} is not known; known are {', '.join(names)}")


def _blocks(data: Mapping[str, Any], name: str, path: Path) -> list[Any]:
    blocks = data.get(name, [])
    if not isinstance(blocks, list):
        raise InputError(f"{path}: write [[{name}]], as there may be several")
    return blocks


def _lists(block: Any, reads: Mapping[str, Read], where: str, needed: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """The block's lists, every value checked; those that are left out and not needed are empty."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, read in reads.items():
        values = block.get(name, [])
        if not isinstance(values, list) or (name in needed and not values):
            raise InputError(f"{where}: {name} is a list of at least one value, not {values!r}")
        found[name] = tuple(read(value, f"{where}, {name}") for value in values)
    return found


def _grid(block: Any, where: str) -> list[Case]:
    reads = {
        "tasks": _one_of(TASKS),
        "bytes_per_s": _bandwidth,
        "deadlines": _deadline,
        "preload_bytes": _preload,
        "planners": _planner,
    }
    _known(block, ("name", *reads), where)
    name = block.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: every [[grid]] has a name")
    lists = _lists(block, reads, f"{where} {name}", reads)
    return [
        Case(name, task, planner, bandwidth, None if split(planner)[1] is not None else preload, deadline)
        for task, bandwidth, deadline, preload, planner in itertools.product(*(lists[key] for key in reads))
    ]


def _peers(block: Any, where: str) -> list[PeerCase]:
    reads = {"tasks": _one_of(TASKS), "modes": _one_of(MODES), "bytes_per_s": _bandwidth, "names": _one_of(PEERS)}
    _known(block, tuple(reads), where)
    lists = _lists(block, reads, where, ("tasks", "modes", "names"))
    if "cold" in lists["modes"] and not lists["bytes_per_s"]:
        raise InputError(f"{where}: a cold start reads from storage of some bandwidth: give bytes_per_s")
    return [
        PeerCase(task, name, mode, bandwidth)
        for task, mode in itertools.product(lists["tasks"], lists["modes"])
        for bandwidth in (lists["bytes_per_s"] if mode == "cold" else (None,))
        for name in lists["names"]
    ]


def _switches(block: Any, where: str) -> list[SwitchCase]:
    reads = {
        "tasks": _one_of(TASKS), "bytes_per_s": _bandwidth, "deadlines": _deadline, "preload_bytes": _preload,
    }  # fmt: skip
    _known(block, tuple(reads), where)
    lists = _lists(block, reads, where, reads)
    sizes = lists["preload_bytes"]
    if None in sizes or len(sizes) < 2 or list(sizes) != sorted(set(sizes)):
        raise InputError(f"{where}: preload_bytes are at least two sizes, least first, not {list(sizes)}")
    asked = itertools.product(lists["tasks"], lists["bytes_per_s"], lists["deadlines"])
    return [SwitchCase(task, rate, deadline, sizes) for task, rate, deadline in asked]


def _pattern(block: Any, where: str) -> Pattern:
    reads = {
        "tasks": _one_of(TASKS),
        "planners": lambda value, place: value if value in PEERS else _planner(value, place),
        "bytes_per_s": _bandwidth,
        "preload_bytes": _preload,
        "deadlines": _deadline,
        "modes": _one_of(MODES),
    }
    _known(block, tuple(reads), where)
    return Pattern(**_lists(block, reads, where, ()))


def _machine(block: Any, where: str) -> Machine:
    _known(block, tuple(Machine.__dataclass_fields__), where)
    for name, value in block.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (name in ("plan_seconds", "margin") and isinstance(value, float))) or value <= 0:
            raise InputError(f"{where}: {name} is a number above zero, not {value!r}")
    machine = Machine(**block)
    if machine.margin >= 1:
        raise InputError(f"{where}: margin ({machine.margin}) is a share of the deadline, below 1")
    if machine.runs % machine.block:
        raise InputError(f"{where}: runs ({machine.runs}) are made in whole blocks of {machine.block}")
    return machine


def _one_of(names: Iterable[str]) -> Read:
    known = tuple(names)

    def read(value: Any, where: str) -> str:
        if value not in known:
            raise InputError(f"{where}: {value!r} is not known; known are {', '.join(known)}")
        return str(value)

    return read


def _bandwidth(value: Any, where: str) -> Bandwidth:
    if value == PAPER:
        return PAPER
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
        raise InputError(f"{where}: {value!r} is not a bandwidth: write bytes a second, such as 100e6, or {PAPER!r}")
    return int(value)


def _preload(value: Any, where: str) -> int | None:
    if value == NONE:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{where}: {value!r} is not a size: write bytes, such as 1048576, or {NONE!r}")
    return value


def _deadline(value: Any, where: str) -> Deadline:
    if isinstance(value, str):
        if value != NONE and parse_time_us(value) < 1:
            raise InputError(f"{where}: a deadline is longer than {value}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise InputError(f"{where}: {value!r} is not a deadline: a multiple of C, a time such as '40ms', or {NONE!r}")
    return float(value)


def _planner(value: Any, where: str) -> str:
    name, bits = split(value) if isinstance(value, str) else (None, None)
    if value == STI:
        return STI
    if name not in PLANNERS or (name in FIXED) != (bits is not None):
        known = ", ".join([STI] + [name for name in PLANNERS if name not in FIXED] + [f"{name}-BITS" for name in FIXED])
        raise InputError(f"{where}: there is no planner {value!r}; known are {known}")
    return str(value)
