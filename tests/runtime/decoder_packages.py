"""Packages with the shapes of a small decoder and random contents: for readers, which do not compute."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.memory.placement import DecoderSizes, Placement, Sizes, place_extents, regions
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof, to_json
from stic.compiler.store import Store, lay_out
from stic.runtime import format as f
from stic.runtime import layout
from stic.runtime.package_contents import tensor_size

GROUP, LENGTH, CHUNK, VOCABULARY, THREADS, LANES = f.GROUPS[-1], 70, 20, 150, 2, 2
# Two blocks of attention of one shape, one of another kind of heads; gated and plain neurons; a vocabulary whose last
# slice is not full.
SHAPES = (
    layout.Shape("attention", 72, 2, 4, 2, 20),
    layout.Shape("feed_forward", 72, 3, neurons_per_slice=40, gated=True),
    layout.Shape("attention", 72, 2, 4, 2, 20),
    layout.Shape("feed_forward", 72, 3, neurons_per_slice=40, gated=True),
    layout.Shape("attention", 72, 1, 3, 3, 24),
    layout.Shape("feed_forward", 72, 2, neurons_per_slice=70),
    layout.Shape("vocabulary", 72, 4, rows_per_slice=40),
)
# (bits, resident) of each plan: all streamed; a part resident, and a block at full precision.
PLANS: tuple[tuple[int, bool], ...] = ((4, False), (3, True))


@dataclass(frozen=True)
class Options:
    """What may differ between these packages."""

    nested: bool = True
    cache: f.CacheType = "float16"
    norm: str = "rms"
    plans: int = 2
    full_bits: int = 16
    tied: bool = False


def write(folder: Path, options: Options = Options()) -> Path:
    """Write a package to `folder`, which is made; returns it."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    store = lay_out(SHAPES, None, options.nested, options.full_bits, group=GROUP)
    model, blocks, trunk = _trunk(options, rng)
    stride = layout.row_stride(SHAPES[0].hidden, "tied" if options.tied else "int8", packed=True)
    sizes = Sizes(
        SHAPES, LENGTH, len(trunk), stride, 0, 0, THREADS, LANES, LANES, 1 << 18,
        DecoderSizes(CHUNK, GROUP, options.cache, 2, 16),
    )  # fmt: skip
    plans = [_plan(bits, resident, options.full_bits, store) for bits, resident in PLANS[: options.plans]]
    crcs, shards = _shards(store, rng)
    contents = {
        "trunk.bin": trunk,
        "embeddings.bin": b"" if options.tied else _embeddings(stride, rng),
        "shards.bin": shards,
        "kernels.so": b"no code",
        "plan.json": json.dumps(_description(plans)).encode(),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    files = np.array([(name.encode(), len(data), zlib.crc32(data), 0) for name, data in contents.items()], f.FILE)
    tables = {"model": model, "files": files, "blocks": blocks, "records": _records(store, crcs)}
    (folder / "index.bin").write_bytes(_index(options, store, sizes, plans, tables))
    return folder


def _plan(bits: int, resident: bool, full_bits: int, store: Store) -> Plan:
    rows = [(bits,) * slices for slices in store.slices]
    rows[1] = (full_bits or bits, *rows[1][1:])
    held = [tuple(b if resident and k % 2 else 0 for b in row) for k, row in enumerate(rows)]
    layers = tuple(LayerPlan(row, mine) for row, mine in zip(rows, held, strict=True))
    return Plan("test", layers, False, 1, True, Budget(), 0.0, Proof("heuristic", float(bits), None, 0.0))


def _description(plans: list[Plan]) -> dict[str, Any]:
    told = [
        {"plan": to_json(plan), "predicted_us": 1000 + i, "claimed_bytes": 1 << 22, "timeline": []}
        for i, plan in enumerate(plans)
    ]
    model = {"name": "a decoder", "activation": "relu", "epsilon": 1e-5, "elastic": False}
    family = {"family": told} if len(told) > 1 else {}
    return {"format": 1, "model": model, "target": "none", "quantizer": "none", **told[0], **family}


def _trunk(options: Options, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any], bytes]:
    """Tables MODEL and BLOCK_ENTRY, and trunk.bin."""
    parts: list[bytes] = []

    def add(floats: int, kind: str = "<f4") -> int:
        at = sum(map(len, parts))
        data = rng.standard_normal(floats).astype(kind).tobytes()
        parts.append(data + bytes(-len(data) % f.ALIGN))
        return at

    model = np.zeros(1, f.MODEL)
    values: dict[str, Any] = {
        "hidden": SHAPES[0].hidden, "vocabulary": VOCABULARY, "max_length": LENGTH, "chunk": CHUNK, "causal": 1,
        "output_features": VOCABULARY, "norm": f.NORMS.index(options.norm), "cache": f.CACHES.index(options.cache),
        "rotaries": 2, "rotary_features": 16, "embedding_multiplier": 1.5,
        "position_at": add(LENGTH * SHAPES[0].padded_hidden, "<f2"), "rotary_at": add(2 * LENGTH * 16),
        "token_type_at": f.ABSENT, "embedding_gamma_at": f.ABSENT, "embedding_beta_at": f.ABSENT,
    }  # fmt: skip
    for name, value in values.items():
        model[name] = value
    blocks = np.zeros(len(SHAPES), f.BLOCK_ENTRY)
    cuts = list(dict.fromkeys(SHAPES))
    for role in f.ROLES:
        blocks[f"{role}_at"] = f.ABSENT
    for number, (entry, shape) in enumerate(zip(blocks, SHAPES, strict=True)):
        roles = [f"{name}_scale" for name in shape.matrices] + ["input_gamma"]
        roles += ["qkv_bias", "query_norm_gamma", "key_norm_gamma"] if number == 2 else []
        roles += ["down_bias", "branch_gamma"] if number == 3 else []
        roles += ["input_beta"] if options.norm == "layer" else []
        entry["shape"] = cuts.index(shape)
        for role in roles:
            entry[f"{role}_at"] = add(tensor_size(shape, role))
        if shape.kind == "attention":
            entry["rotary"], entry["window"] = 1 + number % 2, 16 if number else 0
    blocks[-1]["softcap"], blocks[3]["flags"] = 30.0, 1
    return model, blocks, b"".join(parts)


def _embeddings(stride: int, rng: np.random.Generator) -> bytes:
    hidden = SHAPES[0].hidden
    checked = layout.row_bytes(hidden, "int8") - 4
    data = np.zeros((VOCABULARY, stride), np.uint8)
    for row in data:
        row[:hidden] = rng.integers(-127, 128, hidden).astype(np.int8).view(np.uint8)
        row[checked - 4 : checked] = np.frombuffer(np.float32(0.01).tobytes(), np.uint8)
        row[checked : checked + 4] = np.frombuffer(zlib.crc32(row[:checked].tobytes()).to_bytes(4, "little"), np.uint8)
    raw = data.tobytes()
    return raw + bytes(-len(raw) % f.BLOCK)


def _shards(store: Store, rng: np.random.Generator) -> tuple[NDArray[np.uint32], bytes]:
    """Random planes, tables and ratios, and numbers at full precision; the CRC of every record."""
    data, crcs = bytearray(store.total_bytes), np.zeros(store.bytes.shape, np.uint32)
    for block, level, s in np.argwhere(store.bytes > 0).tolist():
        size, at = int(store.bytes[block, level, s]), int(store.offset[block, level, s])
        if level == f.FULL:
            kind = f"<f{store.full_bits // 8}"
            record = rng.standard_normal(size * 8 // store.full_bits).astype(kind).tobytes()
        else:
            content = rng.integers(0, 256, size, np.uint8)
            parts = layout.record_layout(store.shapes[block], level, store.nested, group=GROUP)
            for table in parts.tables:
                content[table : table + (4 << level)] %= 128
            record = content.tobytes()
        data[at : at + size] = record
        crcs[block, level, s] = zlib.crc32(record)
    return crcs, bytes(data)


def _records(store: Store, crcs: NDArray[np.uint32]) -> NDArray[Any]:
    rows = [
        (int(store.offset[b, level, s]), int(store.bytes[b, level, s]), int(crcs[b, level, s]))
        if store.bytes[b, level, s]
        else (0, 0, 0)
        for b, slices in enumerate(store.slices)
        for level in range(f.LEVELS)
        for s in range(slices)
    ]
    return np.array(rows, f.RECORD)


def _plan_table(
    store: Store, plans: list[Plan], sizes: Sizes, append: Callable[[NDArray[Any]], int]
) -> tuple[NDArray[Any], dict[str, tuple[int, int]]]:
    """Table PLAN, and the regions that all plans have in common."""
    table = np.zeros(len(plans), f.PLAN)
    placed: dict[str, tuple[int, int]] = {}
    for entry, plan in zip(table, plans, strict=True):
        placement: Placement = place_extents(plan, store)
        placed, arena = regions(sizes, placement.preload_bytes, placement.working_bytes, 0)
        rows = [
            (
                x.file_offset,
                placed[region][0] + x.destination,
                x.bytes,
                x.block,
                x.level,
                x.first,
                x.count,
                x.wait_block,
            )
            for region, extents in (("preload", placement.resident), ("working", placement.streamed))
            for x in extents
        ]
        entry["bits_at"] = append(np.array([b for layer in plan.layers for b in layer.bits], np.uint8))
        entry["extents_at"], entry["extents"] = append(np.array(rows, f.EXTENT)), len(rows)
        entry["resident_extents"] = len(placement.resident)
        entry["arena_bytes"], entry["claimed_bytes"], entry["quality"] = arena, 1 << 22, plan.quality
        for name in f.WEIGHT_REGIONS:
            entry[name] = placed[name]
    return table, placed


def _index(options: Options, store: Store, sizes: Sizes, plans: list[Plan], tables: dict[str, NDArray[Any]]) -> bytes:
    body, start = bytearray(), layout.pad(f.HEADER.itemsize, f.ALIGN)

    def append(table: NDArray[Any]) -> int:
        at = start + len(body)
        raw = table.tobytes()
        body.extend(raw + bytes(-len(raw) % f.ALIGN))
        return at

    table, placed = _plan_table(store, plans, sizes, append)
    common = [(0, 0) if name in f.WEIGHT_REGIONS else placed[name] for name in f.REGIONS]
    cuts = [[f.KINDS.index(x.kind), *(int(getattr(x, name)) for name in (f.SHAPE.names or ())[1:])] for x in store.cuts]
    tables = tables | {
        "plans": table,
        "shapes": np.array([tuple(cut) for cut in cuts], f.SHAPE),
        "dense": np.zeros(0, f.DENSE),
        "regions": np.array(common, f.REGION),
    }
    header = np.zeros(1, f.HEADER)
    values: dict[str, Any] = {
        "magic": f.MAGIC, "major": f.MAJOR, "minor": f.MINOR, "interleave": 4, "group": GROUP,
        "nested": int(options.nested), "full_bits": options.full_bits, "row_stride": sizes.row_stride,
        "row_type": f.ROW_TYPES.index("tied" if options.tied else "int8"),
        "threads": THREADS, "lanes": LANES, "row_lanes": LANES, "request_bytes": 1 << 18, "stack_bytes": 1 << 18,
    }  # fmt: skip
    for name, one in tables.items():
        values[f"{name}_at"] = append(one)
        if name in (f.HEADER.names or ()):
            values[name] = len(one)
    for name, value in values.items():
        header[name] = value
    header["index_bytes"] = start + len(body)
    raw = header.tobytes()
    header["index_crc"] = zlib.crc32(raw + bytes(start - len(raw)) + bytes(body))
    return header.tobytes() + bytes(start - len(raw)) + bytes(body)
