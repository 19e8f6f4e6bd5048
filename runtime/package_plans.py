"""The plans of a package: table PLAN of index.bin, or the header's plan where there is no family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.errors import PackageError
from stic.runtime.format import BLOCK, LEVELS, LIMITS, PLAN, WEIGHT_REGIONS, pad

_REPEATED = (
    "bits_at extents_at extents resident_extents load_first deadline_us predicted_us arena_bytes claimed_bytes"
).split()


@dataclass(frozen=True)
class PlanEntry:
    """One plan of a package; fields as `stic.runtime.format.PLAN`."""

    number: int
    bits_at: int  # in index.bin
    extents_at: int
    extents: int
    resident_extents: int
    load_first: bool
    deadline_us: int  # 0: none
    predicted_us: int
    arena_bytes: int
    claimed_bytes: int
    preload: tuple[int, int]  # (offset, bytes) in the arena
    working: tuple[int, int]
    quality: float  # more is better; 0 where there is no family


def read_plans(
    index: bytes, header: Any, regions: Mapping[str, tuple[int, int]], refuse: Callable[[str], PackageError]
) -> tuple[PlanEntry, ...]:
    """The plans of an index, at least one; the first is the header's. Raises what `refuse` makes."""
    repeated = {name: int(header[name]) for name in _REPEATED}
    places = {name: regions[name] for name in WEIGHT_REGIONS}
    default = PlanEntry(0, quality=0.0, **places, **repeated | {"load_first": bool(header["load_first"])})  # type: ignore[arg-type]
    count, at = int(header["plans"]), int(header["plans_at"])
    if count == 0 and at == 0:
        return (default,)
    if count < 2 or header["gpu_at"]:
        raise refuse("a plan family needs several plans, and none on a GPU")
    if at % 8 or at + count * PLAN.itemsize > len(index):
        raise refuse("table plans lies outside index.bin")
    plans = tuple(_entry(number, row) for number, row in enumerate(np.frombuffer(index, PLAN, count, at)))
    if any(getattr(plans[0], name) != getattr(default, name) for name in (*_REPEATED, *WEIGHT_REGIONS)):
        raise refuse("the first plan of its family is not the header's")
    if sum(plan.extents for plan in plans) > LIMITS["extents"]:
        raise refuse(f"its plans have more than {LIMITS['extents']} extents")
    others = max(offset + size for name, (offset, size) in regions.items() if name not in WEIGHT_REGIONS)
    for plan in plans:
        if not math.isfinite(plan.quality) or plan.resident_extents > plan.extents:
            raise refuse(f"plan {plan.number} is of quality {plan.quality} and has {plan.extents} extents")
        start = plan.preload[0]
        behind = start + pad(plan.preload[1], BLOCK)
        if start % BLOCK or start < others or start != default.preload[0] or plan.working[0] != behind:
            raise refuse(f"plan {plan.number}: its weights do not lie behind all else")
        if plan.arena_bytes != behind + pad(plan.working[1], BLOCK):
            raise refuse(f"plan {plan.number}: its arena does not end with its weights")
    return plans


def _entry(number: int, row: Any) -> PlanEntry:
    numbers = {name: int(row[name]) for name in _REPEATED} | {"load_first": bool(row["load_first"])}
    places = {name: (int(row[name]["offset"]), int(row[name]["bytes"])) for name in WEIGHT_REGIONS}
    return PlanEntry(number, quality=float(row["quality"]), **places, **numbers)  # type: ignore[arg-type]


def check_resident(
    resident: NDArray[Any], records: NDArray[Any], number: int, refuse: Callable[[str], PackageError]
) -> None:
    """The resident extents (EXTENT) of a plan of a family can be moved to where another plan has them.

    They are in ascending order of (layer, level) and of destination, each exactly the blocks of its records (RECORD),
    which are contiguous.
    """
    order = resident["layer"].astype(np.int64) * LEVELS + resident["level"]
    ends = resident["destination"] + resident["bytes"]
    if np.any(np.diff(order) <= 0) or np.any(ends[:-1] > resident["destination"][1:]):
        raise refuse(f"plan {number}: its resident extents are out of order")
    for extent in resident:
        layer, level, first, count = (int(extent[name]) for name in ("layer", "level", "first", "count"))
        if layer >= records.shape[0] or level >= LEVELS or count == 0 or first + count > records.shape[2]:
            raise refuse(f"plan {number}: a resident extent names a shard that does not exist")
        mine = records[layer, level, first : first + count]
        begins, finishes = mine["offset"].astype(np.int64), mine["offset"].astype(np.int64) + mine["bytes"]
        start, end = int(begins[0]) // BLOCK * BLOCK, pad(int(finishes[-1]), BLOCK)
        exact = (int(extent["file_offset"]), int(extent["bytes"])) == (start, end - start)
        if not exact or np.any(finishes[:-1] != begins[1:]):
            raise refuse(f"plan {number}: a resident extent of layer {layer} is not exactly its records")
