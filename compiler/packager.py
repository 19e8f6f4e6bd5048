"""Write a package: shards, trunk, embeddings, kernels, plan and index, all or nothing.

Everything is written to a folder beside the destination, which takes the destination's name when it is
complete; a full disk or an interrupted run leaves what was there before.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.memory_plan import Placement
from stic.compiler.plan import Plan, to_json
from stic.compiler.quantize import QuantizedModel
from stic.compiler.sharding import shard_matrices
from stic.compiler.store import Store
from stic.compiler.trunk import Trunk
from stic.runtime.blocks import positions
from stic.runtime.errors import InputError
from stic.runtime.format import (
    ARCHITECTURES,
    EXTENT,
    FEATURES,
    FILE,
    FULL,
    HEADER,
    LEVEL_BITS,
    LEVELS,
    MAGIC,
    MAJOR,
    MATRICES,
    MINOR,
    POOLINGS,
    RECORD,
    REGION,
    REGIONS,
    TILE,
    pad,
    planes_in,
    record_layout,
    row_stride,
)
from stic.schedules.pack import interleave, pack_planes
from stic.targets.target import Target


@dataclass(frozen=True, eq=False)
class Parts:
    """What goes into a package."""

    quantized: QuantizedModel
    store: Store
    trunk: Trunk
    embeddings: bytes
    plan: Plan
    placement: Placement
    regions: dict[str, tuple[int, int]]  # name -> (offset, bytes)
    arena_bytes: int
    claimed_bytes: int
    predicted_us: int
    timeline: list[dict[str, Any]]
    target: Target
    kernels: Path  # kernels.so
    max_length: int
    threads: int
    lanes: int
    request_bytes: int
    stack_bytes: int
    labels: tuple[str, ...] = ()


def record(quantized: QuantizedModel, store: Store, layer: int, level: int, slice_: int, q: int) -> bytes:
    """Assemble one record of shards.bin with interleave q; see `stic.runtime.format` for its parts."""
    size = int(store.bytes[layer, level, slice_])
    data = np.zeros(size, np.uint8)

    def put(at: int, values: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        data[at : at + len(raw)] = raw

    if level == FULL:
        layout = record_layout(store.shape, FULL, store.nested, store.full_bits)
        weights = shard_matrices(quantized.sharded, layer, slice_)
        for name, (at,) in zip(MATRICES, layout.planes, strict=True):
            put(at, weights[name].astype(f"<f{store.full_bits // 8}"))
        return data.tobytes()
    matrices = [quantized.matrix(layer, slice_, name) for name in MATRICES]
    counts = tuple(len(m.outliers) for m in matrices)
    layout = record_layout(store.shape, level, store.nested, 0, counts)
    bits = LEVEL_BITS[level]
    for m, matrix in enumerate(matrices):
        planes = pack_planes(matrix.codes_at(bits), bits, q)[-planes_in(level, store.nested) :]
        for at, plane in zip(layout.planes[m], planes, strict=True):
            put(at, plane)
        put(layout.tables[m], matrix.luts[bits])
        if layout.blocks:
            outliers = matrix.outliers
            blocks = np.arange(0, store.shape.matrix(MATRICES[m])[0] + 1, TILE)
            put(layout.blocks[m], np.searchsorted(outliers.rows, blocks).astype("<u4"))
            position = positions(outliers.rows, outliers.columns, q)
            order = np.lexsort((position, outliers.rows // TILE))
            entries = np.zeros(len(outliers), [("position", "<u2"), ("value", "<f2")])
            entries["position"] = position[order]
            entries["value"] = outliers.values[order]
            if len(entries):
                put(layout.outliers[m], entries)
    return data.tobytes()


def _is_package(path: Path) -> bool:
    """Whether an index of stic's is there, whole or damaged: replacing a package deletes all that is beside it."""
    try:
        with (path / "index.bin").open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def check_output(output: Path) -> None:
    """Raise InputError if something stands at `output` that a package may not replace."""
    if output.exists() and not _is_package(output) and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not a stic package: choose another output, or remove it")


def write_package(parts: Parts, output: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write a package to directory `output`, replacing a package that stands there.

    Raises InputError if `output` exists and is no package, OSError if it cannot be written; either way `output`
    is as it was.
    """
    output = output.absolute()
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed; containers give process ids again
    staging.mkdir()
    try:
        crcs = _write_shards(parts, staging / "shards.bin", progress)
        (staging / "trunk.bin").write_bytes(parts.trunk.data)
        (staging / "embeddings.bin").write_bytes(parts.embeddings)
        (staging / "plan.json").write_text(json.dumps(_description(parts), indent=1), encoding="utf-8")
        shutil.copyfile(parts.kernels, staging / "kernels.so")
        if parts.quantized.sharded.model.tokenizer is not None:
            shutil.copyfile(parts.quantized.sharded.model.tokenizer, staging / "tokenizer.json")
        (staging / "index.bin").write_bytes(_index(parts, crcs, staging))
        for path in (*staging.iterdir(), staging):
            _to_disk(path)
        _replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file or folder would survive a power cut; a full disk shows here at the latest."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(staging: Path, output: Path) -> None:
    """Give `staging` the name `output`; the old package goes only once the new one stands."""
    if output.exists():
        old = output.with_name(f".{output.name}.{os.getpid()}.old")
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
        try:
            staging.rename(output)
        except OSError:
            old.rename(output)
            raise
        shutil.rmtree(old)
    else:
        staging.rename(output)


def _write_shards(parts: Parts, path: Path, progress: Callable[[int, int], None]) -> NDArray[np.uint32]:
    """Write shards.bin; returns the CRC of every record, (layers, LEVELS, slices)."""
    store, q = parts.store, interleave(parts.target)
    crcs = np.zeros(store.bytes.shape, np.uint32)
    present = np.argwhere(store.bytes > 0)
    order = np.argsort(store.offset[tuple(present.T)], kind="stable")
    with path.open("wb") as file:
        for done, (layer, level, s) in enumerate(present[order]):
            data = record(parts.quantized, store, int(layer), int(level), int(s), q)
            crcs[layer, level, s] = zlib.crc32(data)
            file.seek(int(store.offset[layer, level, s]))
            file.write(data)
            progress(done + 1, len(present))
        file.truncate(store.total_bytes)
    return crcs


def _description(parts: Parts) -> dict[str, Any]:
    """plan.json: what people and Python want to know, beside the plan itself."""
    model = parts.quantized.sharded.model
    return {
        "format": 1,
        "model": {
            "name": model.name,
            "activation": model.activation,
            "epsilon": model.embeddings.norm.epsilon,
            "elastic": model.elastic,
            "labels": list(parts.labels),
        },
        "target": parts.target.name,
        "quantizer": parts.quantized.quantizer,
        "plan": to_json(parts.plan),
        "predicted_us": parts.predicted_us,
        "claimed_bytes": parts.claimed_bytes,
        "timeline": parts.timeline,
    }


def _index(parts: Parts, crcs: NDArray[np.uint32], folder: Path) -> bytes:
    store, plan, geometry = parts.store, parts.plan, parts.quantized.sharded.geometry
    model = parts.quantized.sharded.model
    layers = parts.trunk.layers.copy()
    bits = np.zeros((geometry.layers, geometry.slices), np.uint8)
    for number, decided in enumerate(plan.layers):
        layers[number]["slices"], layers[number]["full"] = len(decided.bits), decided.full
        bits[number, : len(decided.bits)] = decided.bits
    records = np.zeros((geometry.layers, LEVELS, geometry.slices), RECORD)
    records["offset"], records["bytes"], records["crc"] = store.offset, store.bytes, crcs
    placed = [("preload", extent) for extent in parts.placement.resident]
    placed += [("working", extent) for extent in parts.placement.streamed]
    extents = np.zeros(len(placed), EXTENT)
    for entry, (region, extent) in zip(extents, placed, strict=True):
        entry["file_offset"], entry["bytes"] = extent.file_offset, extent.bytes
        entry["destination"] = parts.regions[region][0] + extent.destination
        for name in ("layer", "level", "first", "count", "wait_layer"):
            entry[name] = getattr(extent, name)
    regions = np.zeros(len(REGIONS), REGION)
    for entry, name in zip(regions, REGIONS, strict=True):
        entry["offset"], entry["bytes"] = parts.regions[name]
    names = sorted(path.name for path in folder.iterdir())
    files = np.zeros(len(names), FILE)
    for entry, name in zip(files, names, strict=True):
        data = (folder / name).read_bytes()
        entry["name"], entry["bytes"], entry["crc"] = name.encode(), len(data), zlib.crc32(data)

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
        "row_stride": row_stride(model.hidden),
        "nested": int(store.nested),
        "full_bits": store.full_bits,
        "pooling": POOLINGS.index(head.pooling),
        "normalize": int(head.normalize),
        "output_features": features,
        "threads": parts.threads,
        "lanes": parts.lanes,
        "request_bytes": parts.request_bytes,
        "stack_bytes": parts.stack_bytes,
        "table_resident": int(plan.table_resident),
        "load_first": int(not plan.overlap),
        "interleave": interleave(parts.target),
        "cores": parts.target.core_bits,
        **parts.trunk.header,
        "files": len(files),
        "extents": len(extents),
        "resident_extents": len(parts.placement.resident),
        "dense": len(parts.trunk.dense),
        "arena_bytes": parts.arena_bytes,
        "claimed_bytes": parts.claimed_bytes,
        "deadline_us": plan.budget.latency_us or 0,
        "predicted_us": parts.predicted_us,
    }
    tables = {
        "files_at": files,
        "layers_at": layers,
        "bits_at": bits,
        "records_at": records,
        "extents_at": extents,
        "dense_at": parts.trunk.dense,
        "regions_at": regions,
    }
    body = b""
    for name, table in tables.items():
        values[name] = pad(HEADER.itemsize, 64) + len(body)
        raw = table.tobytes()
        body += raw + bytes(-len(raw) % 64)
    for name, value in values.items():
        header[0][name] = value
    header[0]["index_bytes"] = pad(HEADER.itemsize, 64) + len(body)
    raw = header.tobytes()
    raw += bytes(-len(raw) % 64)
    header[0]["index_crc"] = zlib.crc32(raw + body)
    raw = header.tobytes()
    return raw + bytes(-len(raw) % 64) + body

