"""What happened in a run, event by event, and the file that shows it in ui.perfetto.dev."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPUTE, GPU = -1, -2  # tracks that are not IO lanes
_GPU_ROW = 1000  # in the file: compute is row 0, IO lanes follow it

# stic_event_kind of stic.h.
KINDS = {
    0: "stall",
    1: "embed",
    2: "quantize",
    3: "qkv",
    4: "attention",
    5: "out",
    6: "norm",
    7: "up",
    8: "down",
    9: "head",
    10: "hand-over",
    11: "cache",
    20: "read",
    21: "rows",
    22: "check",
}


def _row(track: int) -> int:
    return _GPU_ROW if track == GPU else track + 1


@dataclass(frozen=True)
class Event:
    """One stretch of time on one track; fields as stic_event of stic.h, times in ns from the start of the run."""

    kind: int  # key of KINDS
    layer: int  # -1: none
    track: int  # COMPUTE, GPU, or the IO lane
    level: int  # of the extent that was read; else 0
    first: int
    count: int
    bytes: int
    submit_ns: int
    begin_ns: int
    end_ns: int

    @property
    def name(self) -> str:
        """What happened, in a word."""
        return KINDS.get(self.kind, "event")


@dataclass(frozen=True)
class Trace:
    """The events of one run, by time of beginning. Iterates over them."""

    events: tuple[Event, ...]

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    @property
    def stall_us(self) -> float:
        """Time that compute waited for IO."""
        return sum(e.end_ns - e.begin_ns for e in self.events if e.name == "stall") / 1e3

    def to_chrome(self) -> dict[str, Any]:
        """Chrome's trace event format: a track for compute, one for each IO lane, one for the GPU."""
        tracks = {COMPUTE: "compute"} | {e.track: f"IO lane {e.track}" for e in self.events if e.track >= 0}
        if any(e.track == GPU for e in self.events):
            tracks[GPU] = "GPU"
        rows: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "stic"}}]
        for track, name in sorted(tracks.items()):
            rows.append({"ph": "M", "pid": 1, "tid": _row(track), "name": "thread_name", "args": {"name": name}})
        for e in self.events:
            facts: dict[str, Any] = {"layer": e.layer}
            if e.name in ("read", "check"):
                facts |= {"level": e.level, "first": e.first, "count": e.count}
            if e.track >= 0:
                facts |= {"bytes": e.bytes, "submit_us": e.submit_ns / 1e3}
            times = {"ts": e.begin_ns / 1e3, "dur": (e.end_ns - e.begin_ns) / 1e3}
            category = "compute" if e.track < 0 else "io"
            what = {"ph": "X", "pid": 1, "tid": _row(e.track), "name": e.name, "cat": category}
            rows.append(what | times | {"args": facts})
        return {"displayTimeUnit": "ms", "traceEvents": rows}

    def save(self, path: str | Path) -> None:
        """Write `to_chrome` as JSON; opens in ui.perfetto.dev and chrome://tracing."""
        Path(path).write_text(json.dumps(self.to_chrome()), encoding="utf-8")
