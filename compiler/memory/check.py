"""Verify a memory plan. Shares no code with the placer: it looks only at addresses and times.

Raises MemoryPlanError, which is a defect of stic and never the user's fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

from stic.compiler.memory.placement import Extent, Placement
from stic.compiler.plan import Plan
from stic.compiler.store import Store
from stic.runtime.format import ALIGN, BLOCK
from stic.runtime.layout import levels_of

# Phases of a run in which a region's content must survive: 0 reading rows, 1 embedding, 2 qkv, 3 attention,
# 4 output projection and norm, 5 up, 6 down and norm, 7 head. The layers repeat 2..6. Tied rows are read into x.
_ALWAYS = frozenset(range(8))
_LIVE = {
    "y": frozenset(range(1, 7)),  # in phase 1 as position rows, where padding interrupts them
    "qkv": frozenset((2, 3)),
    "context": frozenset((3, 4)),
    "ffn": frozenset((5, 6)),
    "rows": frozenset((0, 1)),
    "head": frozenset((7,)),
}


# The same for the GPU's state buffer, where attention is two phases: 3 scores, 4 their product with the values;
# 5 output projection and norm, 6 up, 7 down and norm.
_GPU_ALWAYS = frozenset(range(9))
_GPU_LIVE = {
    "x": frozenset(range(1, 9)),
    "y": frozenset(range(2, 9)),
    "qkv": frozenset((2, 3, 4)),
    "context": frozenset((4, 5)),
    "ffn": frozenset((6, 7)),
    "scores": frozenset((3, 4)),
}


class MemoryPlanError(AssertionError):
    """Two live things overlap, or something lies outside its region."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MemoryPlanError(message)


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two (offset, bytes) share a byte."""
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def verify_regions(placed: dict[str, tuple[int, int]], arena_bytes: int) -> None:
    """No two regions that are live in one phase overlap; all lie aligned inside the arena."""
    for name, (offset, size) in placed.items():
        aligned = BLOCK if name in ("preload", "working", "table", "staging") else ALIGN
        _require(offset % aligned == 0, f"region {name} starts at {offset}, not a multiple of {aligned}")
        _require(0 <= offset and size >= 0 and offset + size <= arena_bytes, f"region {name} leaves the arena")
    for (a, at), (b, bt) in combinations(placed.items(), 2):
        together = _LIVE.get(a, _ALWAYS) & _LIVE.get(b, _ALWAYS)
        _require(not (together and _overlap(at, bt)), f"regions {a} and {b} overlap while both are in use")


def verify_state(placed: dict[str, tuple[int, int]], state_bytes: int) -> None:
    """No two regions of the GPU's state that are live in one phase overlap; all are sub-buffers inside it."""
    for name, (offset, size) in placed.items():
        _require(offset % BLOCK == 0, f"GPU region {name} starts at {offset}, not a multiple of {BLOCK}")
        _require(0 <= offset and 0 < size and offset + size <= state_bytes, f"GPU region {name} leaves the state")
    for (a, at), (b, bt) in combinations(placed.items(), 2):
        together = _GPU_LIVE.get(a, _GPU_ALWAYS) & _GPU_LIVE.get(b, _GPU_ALWAYS)
        _require(not (together and _overlap(at, bt)), f"GPU regions {a} and {b} overlap while both are in use")


def verify_weights(placed: dict[str, tuple[int, int]]) -> None:
    """A GPU reads weights from one stretch at the arena's start: `preload`, then `working` at the next block."""
    (start, size), (behind, _) = placed["preload"], placed["working"]
    _require(start == 0 and 0 <= behind - size < BLOCK, f"weights are apart: {size} bytes at {start}, more at {behind}")


def verify_family(placements: Sequence[Placement], placed: Sequence[dict[str, tuple[int, int]]]) -> None:
    """Plans of one package differ in `preload` and `working` only, which lie behind all else; what two of them hold
    can be moved from one's place to the other's in one pass to the left and one to the right."""
    weights = ("preload", "working")
    for number, (placement, mine) in enumerate(zip(placements, placed, strict=True)):
        first, behind = mine["preload"][0], mine["preload"][0] + mine["preload"][1]
        _require(first == placed[0]["preload"][0], f"plan {number} has its preload buffer elsewhere")
        _require(mine["working"][0] == behind, f"plan {number}: the working buffer is not behind the preload buffer")
        for name, (offset, size) in mine.items():
            if name not in weights:
                _require(mine[name] == placed[0][name], f"plan {number} has region {name} elsewhere")
                _require(offset + size <= first, f"region {name} lies behind the preload buffer")
        for a, b in pairwise(placement.resident):
            _require((a.block, a.level) < (b.block, b.level), f"plan {number}: {b} is out of order")
            _require(a.destination + a.bytes <= b.destination, f"plan {number}: {b} is placed before {a}")


def _span(extent: Extent) -> tuple[int, int]:
    return extent.destination, extent.bytes


def verify_extents(plan: Plan, store: Store, placement: Placement) -> None:
    """Every shard's bytes are read exactly once, in order, and stay untouched until their block is computed."""
    for name, extents, limit in (
        ("resident", placement.resident, placement.preload_bytes),
        ("streamed", placement.streamed, placement.working_bytes),
    ):
        for x in extents:
            where = f"{name} extent of block {x.block}, level {x.level}"
            aligned = not (x.destination | x.file_offset | x.bytes) % BLOCK
            _require(aligned, f"{where} is not aligned to {BLOCK}")
            _require(0 <= x.destination and x.destination + x.bytes <= limit, f"{where} leaves its region")
            _require(0 <= x.file_offset and x.file_offset + x.bytes <= store.total_bytes, f"{where} leaves the file")
            kept = len(plan.layers[x.block].bits)
            _require(0 <= x.first and x.first + x.count <= kept, f"{where} reads slices that are not kept")
            for s in range(x.first, x.first + x.count):
                start, size = int(store.offset[x.block, x.level, s]), int(store.bytes[x.block, x.level, s])
                inside = x.file_offset <= start and start + size <= x.file_offset + x.bytes
                _require(size > 0 and inside, f"{where} does not hold slice {s}")
    for a, b in combinations(placement.resident, 2):
        _require(not _overlap(_span(a), _span(b)), f"resident extents {a} and {b} overlap")
    _verify_order(plan, placement.streamed)
    _verify_coverage(plan, store, placement)


def _verify_order(plan: Plan, streamed: tuple[Extent, ...]) -> None:
    """Load order is by block and level; bytes are reused only after the block that needs them."""
    for before, after in pairwise(streamed):
        _require((before.block, before.level) < (after.block, after.level), f"{after} is out of load order")
    for extent in streamed:
        wait = extent.wait_block
        computed = wait == -1 or (0 <= wait < extent.block and len(plan.layers[wait].bits) > 0)
        _require(computed, f"{extent} waits for a block that is not computed before it")
        _require(plan.overlap or wait == -1, f"{extent} waits for compute, but compute waits for all reads")
    for i, after in enumerate(streamed):
        for before in streamed[:i]:
            if _overlap(_span(before), _span(after)):
                _require(before.block <= after.wait_block, f"{after} overwrites {before} before it is used")


def _verify_coverage(plan: Plan, store: Store, placement: Placement) -> None:
    seen: set[tuple[int, int, int]] = set()
    for name, extents in (("resident", placement.resident), ("streamed", placement.streamed)):
        for x in extents:
            for s in range(x.first, x.first + x.count):
                key = (x.block, x.level, s)
                _require(key not in seen, f"block {x.block}, level {x.level}, slice {s} is read twice")
                seen.add(key)
                held = x.level in levels_of(plan.layers[x.block].resident[s], store.nested)
                _require(held == (name == "resident"), f"block {x.block}, level {x.level}, slice {s} is not {name}")
    needed = {
        (k, level, s)
        for k, layer in enumerate(plan.layers)
        for s, bits in enumerate(layer.bits)
        for level in levels_of(bits, store.nested)
    }
    _require(seen == needed, f"not exactly what the plan needs is read: {sorted(seen ^ needed)[:4]}")
