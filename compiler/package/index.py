"""What goes into a package, and its index.bin: header and tables as `stic.runtime.format` specifies them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.frontend.reading import VECTOR, Reading
from stic.compiler.memory.gpu import GpuState
from stic.compiler.memory.placement import Placement
from stic.compiler.package.kernels import GpuProgram
from stic.compiler.package.trunk import Trunk
from stic.compiler.plan import Plan
from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.store import Store
from stic.runtime.files import crc_of
from stic.runtime.format import (
    ALIGN,
    ARCHITECTURES,
    EXTENT,
    FEATURES,
    FILE,
    HEADER,
    LEVELS,
    MAGIC,
    MAJOR,
    MINOR,
    PLAN,
    POOLINGS,
    RECORD,
    REGION,
    REGIONS,
    ROW_TYPES,
    WEIGHT_REGIONS,
    pad,
    row_stride,
)
from stic.runtime.gpu_format import GPU, GPU_REGIONS, GPU_STYLES, PLACES, PRECISION_BITS
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

    quantized: QuantizedModel
    store: Store
    trunk: Trunk
    embeddings: bytes
    row_type: str  # of the embeddings: one of ROW_TYPES
    plans: tuple[PlacedPlan, ...]  # at least one; the first is the default
    target: Target
    kernels: Path  # kernels.so
    max_length: int
    threads: int
    lanes: int
    row_lanes: int
    request_bytes: int
    stack_bytes: int
    reading: Reading = VECTOR  # of the outputs
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


def _bits(plan: Plan, slices: int) -> NDArray[np.uint8]:
    """Table `bits` of a plan, (layers, slices)."""
    bits = np.zeros((len(plan.layers), slices), np.uint8)
    for number, decided in enumerate(plan.layers):
        bits[number, : len(decided.bits)] = decided.bits
    return bits


def _extents(placement: Placement, regions: Mapping[str, tuple[int, int]]) -> NDArray[Any]:
    """Table `extents` of a plan: resident ones, then streamed ones."""
    placed = [("preload", extent) for extent in placement.resident]
    placed += [("working", extent) for extent in placement.streamed]
    extents = np.zeros(len(placed), EXTENT)
    for entry, (region, extent) in zip(extents, placed, strict=True):
        entry["file_offset"], entry["bytes"] = extent.file_offset, extent.bytes
        entry["destination"] = regions[region][0] + extent.destination
        for name in ("layer", "level", "first", "count", "wait_layer"):
            entry[name] = getattr(extent, name)
    return extents


def _plan_table(parts: Parts, bits_at: int, extents_at: int, append: Callable[[NDArray[Any]], int]) -> NDArray[Any]:
    """Table `plans`; the first plan's tables are the header's, those of the others are put in by `append`."""
    table = np.zeros(len(parts.plans), PLAN)
    slices = parts.quantized.sharded.geometry.slices
    for number, (entry, one) in enumerate(zip(table, parts.plans, strict=True)):
        entry["bits_at"] = append(_bits(one.plan, slices)) if number else bits_at
        entry["extents_at"] = append(_extents(one.placement, one.regions)) if number else extents_at
        entry["extents"] = len(one.placement.resident) + len(one.placement.streamed)
        entry["resident_extents"] = len(one.placement.resident)
        entry["load_first"] = not one.plan.overlap
        entry["deadline_us"], entry["predicted_us"] = one.plan.budget.latency_us or 0, one.predicted_us
        entry["arena_bytes"], entry["claimed_bytes"] = one.arena_bytes, one.claimed_bytes
        for region in WEIGHT_REGIONS:
            entry[region]["offset"], entry[region]["bytes"] = one.regions[region]
        entry["quality"] = one.plan.quality
    return table


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

    `crcs` has the CRC of every record, (layers, LEVELS, slices); all other files lie in `folder`, and `known` has the
    CRCs of some of them.
    """
    store, default, geometry = parts.store, parts.default, parts.quantized.sharded.geometry
    plan = default.plan
    model = parts.quantized.sharded.model
    layers = parts.trunk.layers.copy()
    for number, decided in enumerate(plan.layers):
        layers[number]["slices"], layers[number]["full"] = len(decided.bits), decided.full
    records = np.zeros((geometry.layers, LEVELS, geometry.slices), RECORD)
    records["offset"], records["bytes"], records["crc"] = store.offset, store.bytes, crcs
    extents = _extents(default.placement, default.regions)
    regions = _region_table(REGIONS, default.regions)
    files = _file_table(folder, known or {})
    head = model.head
    types = model.embeddings.token_type
    features = head.dense[-1].linear.weight.shape[0] if head.dense else model.hidden
    header = np.zeros(1, HEADER)
    values: dict[str, Any] = {
        "magic": MAGIC,
        "major": MAJOR,
        "minor": MINOR,
        "architecture": ARCHITECTURES.index(parts.target.arch),
        "features": sum(1 << FEATURES.index(name) for name in parts.target.features),
        "hidden": geometry.hidden,
        "heads_per_slice": geometry.heads_per_slice,
        "head_dim": geometry.head_dim,
        "slices": geometry.slices,
        "layers": geometry.layers,
        "neurons_per_slice": geometry.neurons_per_slice,
        "vocabulary": model.embeddings.word.shape[0],
        "max_length": parts.max_length,
        "types": 0 if types is None else len(types),
        "row_stride": row_stride(model.hidden, parts.row_type),
        "row_type": ROW_TYPES.index(parts.row_type),
        "nested": int(store.nested),
        "full_bits": store.full_bits,
        "pooling": POOLINGS.index(head.pooling),
        "normalize": int(head.normalize),
        "output_features": features,
        "threads": parts.threads,
        "lanes": parts.lanes,
        "row_lanes": parts.row_lanes,
        "padding": 0 if model.embeddings.padding is None else model.embeddings.padding + 1,
        "request_bytes": parts.request_bytes,
        "stack_bytes": parts.stack_bytes,
        "table_resident": int(plan.table_resident),
        "load_first": int(not plan.overlap),
        "interleave": interleave(parts.target),
        "cores": parts.target.core_bits,
        **parts.trunk.header,
        "files": len(files),
        "extents": len(extents),
        "resident_extents": len(default.placement.resident),
        "dense": len(parts.trunk.dense),
        "arena_bytes": default.arena_bytes,
        "claimed_bytes": default.claimed_bytes,
        "deadline_us": plan.budget.latency_us or 0,
        "predicted_us": default.predicted_us,
    }
    tables = {
        "files_at": files,
        "layers_at": layers,
        "bits_at": _bits(plan, geometry.slices),
        "records_at": records,
        "extents_at": extents,
        "dense_at": parts.trunk.dense,
        "regions_at": regions,
    }
    body = b""

    def append(table: NDArray[Any]) -> int:
        """Put a table behind the others; returns its offset into index.bin."""
        nonlocal body
        at = pad(HEADER.itemsize, ALIGN) + len(body)
        raw = table.tobytes()
        body += raw + bytes(-len(raw) % ALIGN)
        return at

    for name, table in tables.items():
        values[name] = append(table)
    if parts.gpu is not None:
        values["gpu_at"] = append(_gpu(parts.gpu, plan, append))
    if len(parts.plans) > 1:
        table = _plan_table(parts, values["bits_at"], values["extents_at"], append)
        values["plans_at"], values["plans"] = append(table), len(table)
    for name, value in values.items():
        header[0][name] = value
    header[0]["index_bytes"] = pad(HEADER.itemsize, ALIGN) + len(body)
    raw = header.tobytes()
    raw += bytes(-len(raw) % ALIGN)
    header[0]["index_crc"] = zlib.crc32(raw + body)
    raw = header.tobytes()
    return raw + bytes(-len(raw) % ALIGN) + body
