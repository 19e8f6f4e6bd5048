"""Packages of small random decoders, written by the specification in runtime/format.py and by nothing of the compiler
but its kernels: what the engine and the reference read alike must not come from one writer's habits."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.architecture import Architecture, Attention, Block, FeedForward, Norm, Tensor, tensors
from stic.runtime.format import (
    ABSENT,
    ALIGN,
    BLOCK,
    BLOCK_ENTRY,
    CACHES,
    FEATURES,
    FILE,
    FLAGS,
    FULL,
    HEADER,
    KINDS,
    LEVEL_BITS,
    LEVELS,
    MACHINES,
    MAGIC,
    MAJOR,
    MINOR,
    MODEL,
    NORMS,
    PLAN,
    RECORD,
    ROLES,
    ROW_TYPES,
    SHAPE,
)
from stic.runtime.layout import Shape, planes_in, record_layout, row_stride
from stic.runtime.package_contents import tensor_size
from stic.schedules.pack import interleave
from stic.schedules.shape import DecoderShape
from stic.targets.target import Target
from tests.runtime.decoder_layout import GROUP, Made, lay_out_regions, place_plan, shapes_of


class _Appended:
    """Bytes that are put one after another, each at a multiple of a power of two."""

    def __init__(self, start: int = 0) -> None:
        self.data = bytearray(start)

    def put(self, array: NDArray[Any] | bytes, align: int) -> int:
        self.data += bytes(-len(self.data) % align)
        at = len(self.data)
        self.data += array if isinstance(array, bytes) else array.tobytes()
        return at


def _real_rows(shape: Shape, name: str) -> NDArray[np.bool_]:
    """Rows of a matrix that are not padding."""
    rows = shape.matrix(name)[0]
    real = np.zeros(rows, bool)
    if name in ("out", "down"):
        real[: shape.hidden] = True
    elif name == "qkv":
        a, c = shape.attention_width, shape.key_width
        real[: shape.heads_per_slice * shape.head_dim] = True
        for first in (a, a + c):
            real[first : first + shape.key_heads_per_slice * shape.head_dim] = True
    elif name == "up":
        for first in range(0, rows, shape.ffn_width):
            real[first : first + shape.neurons_per_slice] = True
    else:
        real[: shape.rows_per_slice] = True
    return real


class _Writer:
    def __init__(self, architecture: Architecture, made: Made, target: Target, folder: Path) -> None:
        self.architecture, self.made, self.target, self.folder = architecture, made, target, folder
        self.random = np.random.default_rng(made.seed)
        self.shapes = shapes_of(architecture, made)
        self.trunk = _Appended()
        self.stored = self._stored()

    def _stored(self) -> list[list[list[int]]]:
        """[block][level]: slices whose records some plan reads."""
        return [
            [
                [s for s in range(shape.slices) if any(level in self.made.levels(p[b][s]) for p in self.made.plans)]
                for level in range(LEVELS)
            ]
            for b, shape in enumerate(self.shapes)
        ]

    def tensor(self, values: NDArray[Any]) -> int:
        return self.trunk.put(np.ascontiguousarray(values), ALIGN)

    def normal(self, size: int, spread: float, about: float = 0.0) -> NDArray[np.float32]:
        return self.random.normal(about, spread, size).astype(np.float32)

    def blocks(self) -> NDArray[Any]:
        """Table BLOCK_ENTRY; its tensors go to the trunk."""
        table = np.zeros(len(self.shapes), BLOCK_ENTRY)
        has: dict[int | None, dict[str, Tensor]] = {}
        for tensor in tensors(self.architecture):
            has.setdefault(tensor.block, {})[tensor.role] = tensor
        shapes = list(dict.fromkeys(self.shapes))
        for number, (block, shape) in enumerate(zip(self.architecture.blocks, self.shapes, strict=True)):
            entry = table[number]
            entry["shape"] = shapes.index(shape)
            entry["flags"] = sum(1 << FLAGS.index(name) for name in self._flags(block))
            if isinstance(block, Attention):
                entry["window"] = block.window or 0
                entry["rotary"] = 0 if block.rotary is None else 1 + block.rotary
            entry["softcap"] = getattr(block, "softcap", None) or 0
            for role in ROLES:
                entry[f"{role}_at"] = self._role(role, shape, has.get(number, {}))
        return table

    @staticmethod
    def _flags(block: Block) -> Iterator[str]:
        if isinstance(block, FeedForward) and block.parallel:
            yield "parallel"
        if isinstance(block, Attention) and block.head_norm_kind is not None:
            if block.head_norm == "whole":
                yield "whole_head_norm"
            if block.head_norm_kind.kind == "layer":
                yield "layer_head_norm"

    def _role(self, role: str, shape: Shape, has: dict[str, Tensor]) -> int:
        place, part = role.rsplit("_", 1)
        size = tensor_size(shape, role)
        if part in ("scale", "bias"):
            if place not in shape.matrices or (part == "bias" and self.architecture.family != "biases"):
                return ABSENT
            columns = shape.matrix(place)[1]
            real = np.resize(_real_rows(shape, place), size)
            if part == "bias":
                return self.tensor(self.normal(size, 0.2) * real)
            # About 1 for inputs of about 1: codes of 74, ratios of 128.
            if place == "qkv" and self.architecture.family == "huge":  # values
                real = real * np.where(np.arange(size) % shape.qkv_width < shape.qkv_width - shape.key_width, 1, 1e6)
            scale = 1.5 / (74 * 128 * np.sqrt(columns * (shape.slices if place in ("out", "down") else 1)))
            return self.tensor((scale * self.random.uniform(0.5, 1.5, size) * real).astype(np.float32))
        if f"{place}_gamma" not in has or (part == "beta" and f"{place}_beta" not in has):
            return ABSENT
        if part == "beta" and self.architecture.family == "no betas":
            return ABSENT
        values = self.normal(size, 0.2, about=1.0 if part == "gamma" else 0.0)
        if place not in ("query_norm", "key_norm"):
            values[shape.hidden :] = 0
        return self.tensor(values)

    def record(self, shape: Shape, level: int, seed: int) -> bytes:
        """One record, the same for whatever plan reads it."""
        layout = record_layout(shape, level, self.made.nested, self.made.full_bits, group=GROUP)
        data = np.zeros(layout.size, np.uint8)
        random = np.random.default_rng((self.made.seed, seed, level))

        def put(at: int, values: NDArray[Any]) -> None:
            raw = np.frombuffer(values.tobytes(), np.uint8)
            data[at : at + len(raw)] = raw

        for m, name in enumerate(shape.matrices):
            rows, columns = shape.matrix(name)
            if level == FULL:
                weight = random.normal(0, 1 / np.sqrt(columns), (rows, columns)) * _real_rows(shape, name)[:, None]
                put(layout.planes[m][0], weight.astype(f"<f{self.made.full_bits // 8}"))
                continue
            for at in layout.planes[m][: planes_in(level, self.made.nested)]:
                put(at, random.integers(0, 256, rows * columns // 8).astype(np.uint8))
            codes = 1 << LEVEL_BITS[level]
            put(layout.tables[m], np.sort(random.integers(-127, 128, codes)).astype(np.int8))
            if level == 0 or not self.made.nested:
                put(layout.ratios[m], random.integers(0, 256, rows * shape.groups(name, GROUP)).astype(np.uint8))
        return data.tobytes()

    def shards(self) -> tuple[NDArray[Any], bytes]:
        """Table RECORD of all blocks, and shards.bin."""
        tables, file = [], _Appended()
        for b, shape in enumerate(self.shapes):
            table = np.zeros((LEVELS, shape.slices), RECORD)
            for level in range(LEVELS):
                file.put(b"", BLOCK)
                for s in self.stored[b][level]:
                    record = self.record(shape, level, 1000 * b + s)
                    table[level, s] = (file.put(record, ALIGN), len(record), zlib.crc32(record))
            tables.append(table.reshape(-1))
        file.put(b"", BLOCK)
        return np.concatenate(tables), bytes(file.data)

    def model(self) -> NDArray[Any]:
        """MODEL; its tensors go to the trunk."""
        a, row = self.architecture, np.zeros(1, MODEL)
        width, features = self.shapes[0].padded_hidden, {rotary.features for rotary in a.rotaries}
        kinds = {norm.kind for block in a.blocks for norm in vars(block.norms).values() if isinstance(norm, Norm)}
        assert len(features) <= 1 and len(kinds) <= 1
        values = {
            "hidden": a.hidden,
            "vocabulary": a.vocabulary,
            "max_length": a.context,
            "chunk": self.made.chunk,
            "causal": 1,
            "output_features": a.head.rows,
            "norm": NORMS.index(kinds.pop()) if kinds else NORMS.index("rms"),
            "cache": CACHES.index(self.made.cache),
            "rotaries": len(a.rotaries),
            "rotary_features": features.pop() if features else 0,
            "embedding_multiplier": a.embedding.multiplier,
            **{f"{name}_at": ABSENT for name in ("token_type", "embedding_gamma", "embedding_beta")},
            "position_at": ABSENT,
            "rotary_at": ABSENT,
        }
        if a.embedding.positions:
            rows = np.zeros((a.context, width), np.float16)
            rows[:, : a.hidden] = self.random.normal(0, 0.3, (a.context, a.hidden))
            values["position_at"] = self.tensor(rows)
        if a.rotaries:
            turns = []
            for rotary in (rotary.at(a.context) for rotary in a.rotaries):
                angle = np.arange(a.context)[:, None] * np.array(rotary.frequencies)
                turns.append(rotary.magnitude * np.concatenate([np.cos(angle), np.sin(angle)], axis=1))
            values["rotary_at"] = self.tensor(np.array(turns, np.float32))
        for name, value in values.items():
            row[name] = value
        return row

    def write(self, kernels: bytes) -> None:
        a, made, folder = self.architecture, self.made, self.folder
        records, shards = self.shards()
        model, blocks = self.model(), self.blocks()
        (folder / "trunk.bin").write_bytes(bytes(self.trunk.data) + bytes(-len(self.trunk.data) % ALIGN))
        (folder / "shards.bin").write_bytes(shards)
        (folder / "embeddings.bin").write_bytes(self._embeddings())
        (folder / "kernels.so").write_bytes(kernels)
        (folder / "plan.json").write_text(json.dumps(self._description()))
        header = np.zeros(1, HEADER)
        index = _Appended(HEADER.itemsize)
        shapes = np.zeros(len(dict.fromkeys(self.shapes)), SHAPE)
        for row, shape in zip(shapes, dict.fromkeys(self.shapes), strict=True):
            for name in SHAPE.names or ():
                row[name] = KINDS.index(shape.kind) if name == "kind" else getattr(shape, name)
        numbers = {
            "magic": MAGIC,
            "major": MAJOR,
            "minor": MINOR,
            "machine": MACHINES.index(self.target.arch),
            "features": sum(1 << FEATURES.index(name) for name in self.target.features),
            "interleave": interleave(self.target),
            "group": GROUP,
            "nested": int(made.nested),
            "full_bits": made.full_bits if any(16 in b or 32 in b for plan in made.plans for b in plan) else 0,
            "row_stride": row_stride(a.hidden, made.row_type, packed=True),
            "row_type": ROW_TYPES.index(made.row_type),
            "table_resident": int(made.table_resident),
            "threads": made.threads,
            "lanes": made.lanes,
            "row_lanes": made.lanes,
            "request_bytes": 1 << 16,
            "stack_bytes": 128 << 10,
            "shapes": len(shapes),
            "blocks": len(blocks),
            "plans": len(made.plans),
        }
        for name, value in numbers.items():
            header[name] = value
        header["model_at"] = index.put(model, 8)
        files = sorted(path for path in folder.iterdir())
        table = np.zeros(len(files), FILE)
        for row, path in zip(table, files, strict=True):
            content = path.read_bytes()
            row["name"], row["bytes"], row["crc"] = path.name.encode(), len(content), zlib.crc32(content)
        header["files_at"], header["files"] = index.put(table, 8), len(table)
        header["shapes_at"], header["blocks_at"] = index.put(shapes, 8), index.put(blocks, 8)
        header["records_at"], header["dense_at"] = index.put(records, 8), index.put(b"", 8)
        facts = SimpleNamespace(
            **{name: header[0][name].item() for name in HEADER.names or ()},
            **{name: model[0][name].item() for name in MODEL.names or ()},
            trunk=(folder / "trunk.bin").stat().st_size,
            embeddings=(folder / "embeddings.bin").stat().st_size,
        )
        regions, start = lay_out_regions(self.shapes, facts)
        plans = np.zeros(len(made.plans), PLAN)
        for number, (plan, bits) in enumerate(zip(plans, made.plans, strict=True)):
            extents = place_plan(plan, start, number, made, self.shapes, records)
            plan["bits_at"] = index.put(np.concatenate([np.array(b, np.uint8) for b in bits]), 8)
            plan["extents_at"] = index.put(extents, 8)
        header["regions_at"], header["plans_at"] = index.put(regions, 8), index.put(plans, 8)
        header["index_bytes"] = len(index.data)
        index.data[: HEADER.itemsize] = header.tobytes()
        header["index_crc"] = zlib.crc32(index.data)
        index.data[: HEADER.itemsize] = header.tobytes()
        (folder / "index.bin").write_bytes(bytes(index.data))

    def _embeddings(self) -> bytes:
        from stic.compiler.package.trunk import build_embeddings

        if self.made.row_type == "tied":
            return b""
        word = self.random.normal(0, 1, (self.architecture.vocabulary, self.architecture.hidden))
        return build_embeddings(word.astype(np.float32), self.made.row_type, packed=True)

    def _description(self) -> dict[str, Any]:
        shape = DecoderShape.of(self.architecture, self.made.row_type, self.made.cache)
        decided = {
            "plan": {
                "format": 1,
                "planner": "test",
                "layers": [],
                "table_resident": self.made.table_resident,
                "read_ahead": 1,
                "overlap": True,
                "budget": {"latency_us": None, "memory_bytes": None, "preload_bytes": None},
                "margin": 0.0,
                "proof": {"status": "heuristic", "objective": 0.0, "bound": None, "solve_seconds": 0.0},
                "notes": [],
            },
            "predicted_us": 1000,
            "claimed_bytes": 0,
            "timeline": [],
        }
        model = {"name": "random", "activation": shape.activation, "epsilon": shape.epsilon}
        family = {"family": [decided] * len(self.made.plans)} if len(self.made.plans) > 1 else {}
        return {"format": 1, "model": model, "target": self.target.name, "quantizer": "random", **family, **decided}


def write_decoder(architecture: Architecture, made: Made, target: Target, folder: Path, compiled: bool = True) -> Path:
    """Write a random decoder to an empty folder, its kernels compiled for a target, or left out."""
    from stic.compiler.package.kernels import generate

    kernels = folder.with_suffix(".so")
    if compiled:
        generate(DecoderShape.of(architecture, made.row_type, made.cache), target, kernels)
    _Writer(architecture, made, target, folder).write(kernels.read_bytes() if compiled else b"no code")
    return folder
