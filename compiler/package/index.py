"""What goes into a package, and its index.bin: header and tables as `stic.runtime.format` specifies them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.memory.gpu import GpuState
from stic.compiler.memory.placement import Placement
from stic.compiler.package.contents import Contents, Quantized
from stic.compiler.package.kernels import GpuProgram
from stic.compiler.package.trunk import Trunk
from stic.compiler.plan import Plan
from stic.compiler.store import Store
from stic.runtime.files import crc_of
from stic.runtime.format import (
    ALIGN,
    EXTENT,
    FEATURES,
    FILE,
    HEADER,
    KINDS,
    LEVELS,
    MACHINES,
    MAGIC,
    MAJOR,
    MINOR,
    PLAN,
    RECORD,
    REGION,
    REGIONS,
    ROW_TYPES,
    SHAPE,
    WEIGHT_REGIONS,
)
from stic.runtime.gpu_format import GPU, GPU_REGIONS, GPU_STYLES, PLACES, PRECISION_BITS
from stic.runtime.layout import Shape, pad, straddles
from stic.schedules.pack import interleave
from stic.targets.target import Target


@dataclass(frozen=True, eq=False)
class GpuParts:
    """What a package whose plan places layers on a GPU holds beside the rest."""

    name: str  # of the target whose GPU it is
    program: GpuProgram
    state: GpuState
    fallback: bool  # the plan still holds where its GPU layers run on the CPU


@dataclass(frozen=True, eq=False)
class PlacedPlan:
    """A plan of a package: what it decides, where its bytes lie, and its replay."""

    plan: Plan
    placement: Placement
    regions: dict[str, tuple[int, int]]  # name -> (offset, bytes)
    arena_bytes: int
    claimed_bytes: int
    predicted_us: int
    timeline: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Parts:
    """What goes into a package."""

    quantized: Quantized
    contents: Contents
    store: Store
    trunk: Trunk
    embeddings: bytes
    row_type: str  # of the embeddings: one of ROW_TYPES
    row_stride: int
    plans: tuple[PlacedPlan, ...]  # at least one; the first is the default
    target: Target
    kernels: Path  # kernels.so
    threads: int
    lanes: int
    row_lanes: int
    request_bytes: int
    stack_bytes: int
    gpu: GpuParts | None = None

    @property
    def default(self) -> PlacedPlan:
        """The plan that is used unless a budget is given."""
        return self.plans[0]


def _region_table(names: tuple[str, ...], placed: Mapping[str, tuple[int, int]]) -> NDArray[Any]:
    table = np.zeros(len(names), REGION)
    for entry, name in zip(table, names, strict=True):
        entry["offset"], entry["bytes"] = placed[name]
    return table


def _gpu(gpu: GpuParts, plan: Plan, append: Callable[[NDArray[Any]], int]) -> NDArray[Any]:
    """The structure of the GPU part; its tables are put into index.bin by `append`."""
    structure = np.zeros(1, GPU)
    row = structure[0]
    row["storage_bits"] = PRECISION_BITS[gpu.program.storage]
    row["style"], row["fallback"] = GPU_STYLES.index(gpu.program.style), gpu.fallback
    row["launches_at"], row["launches"] = append(gpu.program.launches), len(gpu.program.launches)
    row["places_at"] = append(np.array([PLACES.index(layer.place) for layer in plan.layers], np.uint8))
    row["state_at"] = append(_region_table(GPU_REGIONS, gpu.state.regions))
    row["scores_tiles"], row["state_bytes"] = gpu.state.scores_tiles, gpu.state.state_bytes
    return structure


def _bits(plan: Plan, slices: Sequence[int]) -> NDArray[np.uint8]:
    """The bits of a plan: of each block in turn, of its slices."""
    rows = [[*decided.bits, *[0] * (n - len(decided.bits))] for decided, n in zip(plan.layers, slices, strict=True)]
    return np.array([bits for row in rows for bits in row], np.uint8)


def _extents(placement: Placement, regions: Mapping[str, tuple[int, int]]) -> NDArray[Any]:
    """The extents of a plan: resident ones, then streamed ones."""
    placed = [("preload", extent) for extent in placement.resident]
    placed += [("working", extent) for extent in placement.streamed]
    extents = np.zeros(len(placed), EXTENT)
    for entry, (region, extent) in zip(extents, placed, strict=True):
        entry["file_offset"], entry["bytes"] = extent.file_offset, extent.bytes
        entry["destination"] = regions[region][0] + extent.destination
        for name in ("block", "level", "first", "count", "wait_block"):
            entry[name] = getattr(extent, name)
    return extents


def _plan_table(parts: Parts, append: Callable[[NDArray[Any]], int]) -> NDArray[Any]:
    """Table `plans`; the tables of each are put into index.bin by `append`."""
    table = np.zeros(len(parts.plans), PLAN)
    for entry, one in zip(table, parts.plans, strict=True):
        entry["bits_at"] = append(_bits(one.plan, parts.store.slices))
        entry["extents_at"] = append(_extents(one.placement, one.regions))
        entry["extents"] = len(one.placement.resident) + len(one.placement.streamed)
        entry["resident_extents"] = len(one.placement.resident)
        entry["load_first"] = not one.plan.overlap
        entry["deadline_us"], entry["predicted_us"] = one.plan.budget.latency_us or 0, one.predicted_us
        entry["arena_bytes"], entry["claimed_bytes"] = one.arena_bytes, one.claimed_bytes
        for region in WEIGHT_REGIONS:
            entry[region]["offset"], entry[region]["bytes"] = one.regions[region]
        entry["quality"] = one.plan.quality
    return table


def _shape_table(cuts: Sequence[Shape]) -> NDArray[Any]:
    """Table `shapes`."""
    table = np.zeros(len(cuts), SHAPE)
    for entry, shape in zip(table, cuts, strict=True):
        for name in SHAPE.names or ():
            entry[name] = KINDS.index(shape.kind) if name == "kind" else getattr(shape, name)
    return table


def _record_table(store: Store, crcs: NDArray[np.uint32]) -> NDArray[Any]:
    """Table `records`: of each block in turn, (LEVELS, slices)."""
    blocks = []
    for number, slices in enumerate(store.slices):
        table = np.zeros((LEVELS, slices), RECORD)
        present = store.bytes[number, :, :slices] > 0
        table["offset"] = np.where(present, store.offset[number, :, :slices], 0)
        table["bytes"], table["crc"] = store.bytes[number, :, :slices], crcs[number, :, :slices]
        blocks.append(table.reshape(-1))
    return np.concatenate(blocks)


def _file_table(folder: Path, known: Mapping[str, int]) -> NDArray[Any]:
    """Table `files` of what lies in `folder`; `known` has CRCs that need not be computed."""
    paths = sorted(folder.iterdir())
    files = np.zeros(len(paths), FILE)
    for entry, path in zip(files, paths, strict=True):
        entry["name"], entry["bytes"] = path.name.encode(), path.stat().st_size
        entry["crc"] = known[path.name] if path.name in known else crc_of(path)
    return files


def index(parts: Parts, crcs: NDArray[np.uint32], folder: Path, known: Mapping[str, int] | None = None) -> bytes:
    """Return the content of index.bin.

    `crcs` has the CRC of every record, (blocks, LEVELS, most slices); all other files lie in `folder`, and `known` has
    the CRCs of some of them.
    """
    store, default = parts.store, parts.default
    blocks = parts.trunk.blocks.copy()
    blocks["shape"] = store.cut_of
    places = default.regions | dict.fromkeys(WEIGHT_REGIONS, (0, 0))  # those of weights are each plan's own
    files = _file_table(folder, known or {})
    header = np.zeros(1, HEADER)
    values: dict[str, Any] = {
        "magic": MAGIC,
        "major": MAJOR,
        "minor": MINOR if parts.row_stride == 0 or straddles(parts.row_stride) else 0,
        "machine": MACHINES.index(parts.target.arch),
        "features": sum(1 << FEATURES.index(name) for name in parts.target.features),
        "cores": parts.target.core_bits,
        "interleave": interleave(parts.target),
        "group": store.group,
        "nested": int(store.nested),
        "full_bits": store.full_bits,
        "row_stride": parts.row_stride,
        "row_type": ROW_TYPES.index(parts.row_type),
        "table_resident": int(default.plan.table_resident),
        "threads": parts.threads,
        "lanes": parts.lanes,
        "row_lanes": parts.row_lanes,
        "request_bytes": parts.request_bytes,
        "stack_bytes": parts.stack_bytes,
    }
    tables = {
        "model": parts.contents.model,
        "files": files,
        "shapes": _shape_table(store.cuts),
        "blocks": blocks,
        "records": _record_table(store, crcs),
        "dense": parts.trunk.dense,
        "regions": _region_table(REGIONS, places),
    }
    body = b""

    def append(table: NDArray[Any]) -> int:
        """Put a table behind the others; returns its offset into index.bin."""
        nonlocal body
        at = pad(HEADER.itemsize, ALIGN) + len(body)
        raw = table.tobytes()
        body += raw + bytes(-len(raw) % ALIGN)
        return at

    tables["plans"] = _plan_table(parts, append)
    for name, table in tables.items():
        values[f"{name}_at"] = append(table)
        if name in (HEADER.names or ()):
            values[name] = len(table)
    if parts.gpu is not None:
        values["gpu_at"] = append(_gpu(parts.gpu, default.plan, append))
    for name, value in values.items():
        header[0][name] = value
    header[0]["index_bytes"] = pad(HEADER.itemsize, ALIGN) + len(body)
    raw = header.tobytes()
    raw += bytes(-len(raw) % ALIGN)
    header[0]["index_crc"] = zlib.crc32(raw + body)
    raw = header.tobytes()
    return raw + bytes(-len(raw) % ALIGN) + body
