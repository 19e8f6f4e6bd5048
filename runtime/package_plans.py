"""The plans of a package: table PLAN of index.bin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.checks import Check, Refuse, Rows, require, within
from stic.runtime.format import BLOCK, EXTENT, LEVELS, PLAN, WEIGHT_REGIONS
from stic.runtime.layout import pad
from stic.runtime.limits import LIMITS

_NUMBERS = ("bits_at extents_at extents resident_extents deadline_us predicted_us arena_bytes claimed_bytes").split()

# r: PLAN; p: the header with `size`, the bytes of index.bin, and `shards`, the slices of all blocks.
PLAN_CHECKS = (
    Check(
        "plan_tables",
        lambda p, r: (
            (r.bits_at % 8 == 0)
            & (r.extents_at % 8 == 0)
            & within(r.bits_at, p.shards, p.size)
            & within(r.extents_at, r.extents * EXTENT.itemsize, p.size)
        ),
        "a table of plan {i} lies outside index.bin",
    ),
    Check(
        "plan_fields",
        lambda p, r: (r.load_first <= 1) & (r.reserved == 0) & np.isfinite(r.quality.astype(float)),
        "plan {i} has load_first {r.load_first}, a reserved field that is set, or no finite quality",
    ),
    Check(
        "plan_extents",
        lambda p, r: np.add.accumulate(r.extents) <= LIMITS["extents"],
        f"its plans have more than {LIMITS['extents']} extents",
    ),
)
# r: the place of one of WEIGHT_REGIONS in the table of regions.
PLACE_CHECKS = (
    Check(
        "plan_regions",
        lambda p, r: (r.offset == 0) & (r.bytes == 0),
        "memory region {r.name}, of which each plan has its own, has a place beside them",
    ),
)
# p: a plan's places of `preload` and `working`, the `start` of the first plan's, its arena, and the `end` of all other
# regions.
FAMILY_CHECKS = (
    Check(
        "family_weights",
        lambda p: (
            p.preload[0] % BLOCK == 0
            and p.preload[0] == p.start
            and p.working[0] == p.preload[0] + pad(p.preload[1], BLOCK)
            and p.arena_bytes == p.working[0] + pad(p.working[1], BLOCK)
        ),
        "the arena does not end with the weights",
    ),
    Check("family_regions", lambda p: p.end <= p.preload[0], "a memory region does not lie before the weights"),
)
# r: a resident EXTENT with those before it and the blocks of its records, `begin` to `end`; `together`: without gaps.
RESIDENT_CHECKS = (
    Check(
        "resident_order",
        lambda p, r: (r.key > r.key_before) & (r.end_before <= r.destination),
        "resident extent {i} is out of order",
    ),
    Check("resident_together", lambda p, r: r.together, "the records of resident extent {i} are apart"),
    Check(
        "resident_exact",
        lambda p, r: (r.file_offset == r.begin) & (r.file_offset + r.bytes == r.end),
        "resident extent {i} is not exactly its records",
    ),
)


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
    quality: float  # more is better


def read_plans(
    index: bytes, header: SimpleNamespace, shards: int, regions: Mapping[str, tuple[int, int]], refuse: Refuse
) -> tuple[PlanEntry, ...]:
    """The plans of an index, of `shards` shards each, at least one. Raises what `refuse` makes."""
    table = np.frombuffer(index, PLAN, header.plans, header.plans_at)
    facts = SimpleNamespace(**vars(header) | {"shards": shards}, size=len(index))
    require(PLAN_CHECKS, refuse, facts, Rows(table))
    offset, size = np.array([regions[name] for name in WEIGHT_REGIONS], object).T
    require(PLACE_CHECKS, refuse, facts, Rows(name=np.array(WEIGHT_REGIONS, object), offset=offset, bytes=size))
    return tuple(_entry(number, row) for number, row in enumerate(table))


def _entry(number: int, row: Any) -> PlanEntry:
    numbers = {name: int(row[name]) for name in _NUMBERS}
    places = {name: (int(row[name]["offset"]), int(row[name]["bytes"])) for name in WEIGHT_REGIONS}
    return PlanEntry(
        number,
        load_first=bool(row["load_first"]),
        preload=places["preload"],
        working=places["working"],
        quality=float(row["quality"]),
        **numbers,
    )


def check_family(
    plan: PlanEntry,
    default: PlanEntry,
    regions: Mapping[str, tuple[int, int]],
    extents: NDArray[Any],
    records: NDArray[Any],
    refuse: Refuse,
) -> None:
    """A plan of a family lies behind what all have in common, and its resident extents can be moved to where another
    plan has them: in ascending order of (block, level) and of destination, each exactly the blocks of its records
    (RECORD), which are contiguous. `extents` (EXTENT) are the plan's, and name shards that exist."""
    end = max(sum(place) for name, place in regions.items() if name not in WEIGHT_REGIONS)
    require(FAMILY_CHECKS, refuse, SimpleNamespace(**vars(plan), start=default.preload[0], end=end))
    resident = extents[: plan.resident_extents]
    begins, ends, together = [], [], []
    for extent in resident:
        first, count = int(extent["first"]), int(extent["count"])
        mine = records[extent["block"], extent["level"], first : first + count]
        starts = [int(offset) for offset in mine["offset"]]
        behind = [start + int(size) for start, size in zip(starts, mine["bytes"], strict=True)]
        begins.append(starts[0] // BLOCK * BLOCK)
        ends.append(pad(behind[-1], BLOCK))
        together.append(behind[:-1] == starts[1:])
    key = resident["block"].astype(object) * LEVELS + resident["level"]
    finish = resident["destination"].astype(object) + resident["bytes"]
    rows = Rows(
        resident,
        key=key,
        key_before=np.concatenate([[-1], key])[: len(key)],
        end_before=np.concatenate([[0], finish])[: len(key)],
        begin=np.array(begins, object),
        end=np.array(ends, object),
        together=np.array(together, bool),
    )
    require(RESIDENT_CHECKS, refuse, plan, rows)
