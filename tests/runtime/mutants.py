"""Packages with one thing changed and every checksum right again, so that the checks behind them are reached."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stic.runtime.format import (
    BLOCK_ENTRY,
    DENSE,
    EXTENT,
    FILE,
    HEADER,
    LEVELS,
    MODEL,
    PLAN,
    RECORD,
    REGION,
    REGIONS,
    SHAPE,
)
from stic.runtime.gpu_format import GPU, GPU_REGIONS, LAUNCH
from stic.runtime.layout import pad
from stic.runtime.package import Package

Files = dict[str, bytes | None]  # what a mutant has in place of the original's files; None: nothing

_NAMES = (
    b"",
    b"a",
    b".x",
    b"a/b",
    b"index.bin",
    b"trunk.bin",
    b"plan\0x",
    b"\xff\xfe",
    b"kernels.cl",
    b"x" * 24,
    b"y" * 32,
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 9, 1 << 70, 0.5, -1e30, float("nan"), float("inf"), "", "cpu", "relu", "tanh", [],
    [1], [[]], ["a"], {}, {"a": 1}, {"plan": []},
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """What was changed, in words, and the files that differ."""

    what: str
    files: Files


class Original:
    """A good package, in memory."""

    def __init__(self, path: Path) -> None:
        self.package = Package.open(path)
        self.files = {file.name: file.read_bytes() for file in path.iterdir()}
        self.index = self.files["index.bin"]
        self.tables = dict(self._tables())

    def _tables(self) -> Iterator[tuple[str, tuple[int, np.dtype[Any], int]]]:
        """Every table as (offset, row, rows)."""
        head = self.package.header
        shards = sum(shape.slices for shape in self.package.shapes)
        tables = {"files": FILE, "shapes": SHAPE, "blocks": BLOCK_ENTRY, "dense": DENSE, "plans": PLAN}
        yield "header", (0, HEADER, 1)
        yield "model", (int(head["model_at"]), MODEL, 1)
        yield "records", (int(head["records_at"]), RECORD, shards * LEVELS)
        yield "regions", (int(head["regions_at"]), REGION, len(REGIONS))
        for name, structure in tables.items():
            yield name, (int(head[f"{name}_at"]), structure, int(head[name]))
        for plan in self.package.plans:
            yield f"bits of plan {plan.number}", (plan.bits_at, np.dtype([("bits", "u1")]), shards)
            yield f"extents of plan {plan.number}", (plan.extents_at, EXTENT, plan.extents)
        if head["gpu_at"]:
            gpu = np.frombuffer(self.index, GPU, 1, int(head["gpu_at"]))[0]
            yield "gpu", (int(head["gpu_at"]), GPU, 1)
            yield "launches", (int(gpu["launches_at"]), LAUNCH, int(gpu["launches"]))
            yield "places", (int(gpu["places_at"]), np.dtype([("place", "u1")]), int(head["blocks"]))
            yield "state", (int(gpu["state_at"]), REGION, len(GPU_REGIONS))

    def filed(self, index: bytes | bytearray, name: str, data: bytes) -> Files:
        """A file, and an index that has its size and checksum."""
        changed = bytearray(index)
        at, dtype, rows = self.tables["files"]
        for row in np.frombuffer(changed, dtype, rows, at):
            if row["name"] == name.encode():
                row["bytes"], row["crc"] = len(data), zlib.crc32(data)
        return {name: data, "index.bin": sealed(changed)}

    def record(self, place: tuple[int, int, int], changes: dict[int, bytes]) -> Mutant:
        """Other bytes at offsets into the record of (block, level, slice), under the record's own checksum."""
        records = self.package.records
        offset, size = int(records[place]["offset"]), int(records[place]["bytes"])
        data, index = bytearray(self.files["shards.bin"]), bytearray(self.index)
        for at, new in changes.items():
            data[offset + at : offset + at + len(new)] = new
        at, dtype, _ = self.tables["records"]
        start = at + dtype.itemsize * self.package.record_number(*place)
        index[start + 12 : start + 16] = struct.pack("<I", zlib.crc32(data[offset : offset + size]))
        return Mutant(f"record {place}", self.filed(index, "shards.bin", bytes(data)))

    def embedding(self, token: int, changes: dict[int, bytes]) -> Mutant:
        """Other bytes at offsets into the row of a token, under the row's own checksum."""
        data, checked = bytearray(self.files["embeddings.bin"]), pad(self.package.hidden, 4) + 4
        start = token * int(self.package.header["row_stride"])
        for at, new in changes.items():
            data[start + at : start + at + len(new)] = new
        crc = zlib.crc32(data[start : start + checked])
        data[start + checked : start + checked + 4] = struct.pack("<I", crc)
        return Mutant(f"row {token}", self.filed(self.index, "embeddings.bin", bytes(data)))


def sealed(index: bytes | bytearray) -> bytes:
    """The index with its size and its checksum right."""
    data = bytearray(index)
    if len(data) >= HEADER.itemsize:
        at = HEADER.fields["index_crc"][1]
        data[at - 4 : at + 4] = struct.pack("<II", len(data), 0)  # index_bytes stands before it
        data[at : at + 4] = struct.pack("<I", zlib.crc32(data))
    return bytes(data)


class Mutants:
    """Endless mutants of one package, the same for the same seed."""

    def __init__(self, original: Original, seed: int) -> None:
        self.original = original
        self.chance = random.Random(seed)
        self.kinds = (
            *(self._number,) * 8,
            *(self._header,) * 4,
            *(self._model,) * 4,
            self._row,
            self._trunk,
            self._record,
            self._embedding if original.files["embeddings.bin"] else self._record,
            self._length,
            self._missing,
            *(self._plan,) * 3,
        )

    def __iter__(self) -> Iterator[Mutant]:
        while True:
            yield self.chance.choice(self.kinds)()

    def _value(self, old: int, bits: int) -> int:
        """A number of so many bits that a careless reader may trip over."""
        chance = self.chance
        near = old + chance.choice((-4096, -64, -16, -8, -4, -2, -1, 1, 2, 4, 8, 16, 64, 4096))
        power = (1 << chance.randrange(bits)) + chance.choice((-1, 0, 0, 1))
        own = int(self.original.package.header[chance.choice([n for n in HEADER.names or () if n != "magic"])])
        value = chance.choice((near, near, power, 0, 1, old * 2, old // 2, -1, own, chance.getrandbits(bits)))
        return value % (1 << bits)

    def _field(self, index: bytearray, table: str, name: str | None = None) -> str:
        """Change one field of one row; returns which."""
        at, dtype, rows = self.original.tables[table]
        row = self.chance.randrange(rows)
        names = [n for n in dtype.names or () if n not in ("magic", "index_bytes", "index_crc")]
        name = name or self.chance.choice(names)
        kind, offset = dtype.fields[name][:2]
        start, size = at + row * dtype.itemsize + offset, kind.itemsize
        if kind.char == "S":
            index[start : start + size] = self.chance.choice(_NAMES)[:size].ljust(size, b"\0")
        else:
            size = kind.itemsize if kind.names is None and not kind.shape else 8 if kind.names else 4
            start += size * self.chance.randrange(kind.itemsize // size)
            old = int.from_bytes(index[start : start + size], "little")
            index[start : start + size] = self._value(old, 8 * size).to_bytes(size, "little")
        return f"{name} of {table} {row}"

    def _number(self) -> Mutant:
        """One or two fields of any tables."""
        index = bytearray(self.original.index)
        tables = [name for name, (_, _, rows) in self.original.tables.items() if rows]
        count = self.chance.choice((1, 1, 1, 2))
        what = [self._field(index, self.chance.choice(tables)) for _ in range(count)]
        return Mutant(", ".join(what), {"index.bin": sealed(index)})

    def _header(self) -> Mutant:
        index = bytearray(self.original.index)
        what = self._field(index, "header")
        return Mutant(what, {"index.bin": sealed(index)})

    def _model(self) -> Mutant:
        """A field of what the model is, or of how its blocks are cut."""
        index = bytearray(self.original.index)
        what = self._field(index, self.chance.choice(("model", "shapes", "blocks")))
        return Mutant(what, {"index.bin": sealed(index)})

    def _row(self) -> Mutant:
        """A row of a table over another one, or two rows exchanged."""
        index = bytearray(self.original.index)
        name = self.chance.choice([name for name, (_, _, rows) in self.original.tables.items() if rows > 1])
        at, dtype, rows = self.original.tables[name]
        size = dtype.itemsize
        a, b = (at + size * row for row in self.chance.sample(range(rows), 2))
        one, other = bytes(index[a : a + size]), bytes(index[b : b + size])
        index[a : a + size] = other
        if self.chance.random() < 0.5:
            index[b : b + size] = one
        return Mutant(f"rows of {name}", {"index.bin": sealed(index)})

    def _no_number(self, half: bool) -> bytes:
        """A float16 or float32 that may be NaN, infinite, or of the largest."""
        if half:
            return struct.pack("<H", self.chance.choice((0x7C00, 0xFC00, 0x7E01, 0xFFFF, 0x7BFF, 0)))
        words = (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x7F7FFFFF, 0x3F800000, 0)
        return struct.pack("<I", self.chance.choice(words))

    def _trunk(self) -> Mutant:
        data = bytearray(self.original.files["trunk.bin"])
        number = self._no_number(self.chance.random() < 0.4)
        at = self.chance.randrange(len(data) // 4) * 4
        data[at : at + len(number)] = number
        return Mutant(f"trunk at {at}", self.original.filed(self.original.index, "trunk.bin", bytes(data)))

    def _record(self) -> Mutant:
        records = self.original.package.records
        place = tuple(self.chance.choice(np.argwhere(records["bytes"] > 0).tolist()))
        size, changes = int(records[place]["bytes"]), {}
        for _ in range(self.chance.choice((1, 1, 8))):
            from_end = size - 1 - self.chance.randrange(min(size, 3000))  # where tables and outliers are
            at = self.chance.choice((self.chance.randrange(size), from_end))
            changes[at] = bytes([self.chance.choice((0, 0x80, 0xFF, 0x7C, self.chance.randrange(256)))])
        return self.original.record(place, changes)

    def _embedding(self) -> Mutant:
        """The scale of a row, or any byte of it."""
        model = self.original.package.model
        token, scale = self.chance.randrange(int(model["vocabulary"])), pad(int(model["hidden"]), 4)
        if self.chance.random() < 0.7:
            return self.original.embedding(token, {scale: self._no_number(False)})
        byte = bytes([self.chance.choice((0x80, 0xFF, 0))])
        return self.original.embedding(token, {self.chance.randrange(scale): byte})

    def _length(self) -> Mutant:
        """A file longer or shorter, and an index that says so, or not."""
        name = self.chance.choice(sorted(self.original.files))
        data = self.original.files[name]
        step = self.chance.choice((1, 7, 8, 64, 4096, 8192, len(data)))
        changed = data + bytes(step) if self.chance.random() < 0.5 else data[: max(0, len(data) - step)]
        if name == "index.bin":
            return Mutant(f"length of {name}", {name: sealed(changed) if self.chance.random() < 0.7 else changed})
        if name == "kernels.so" or self.chance.random() < 0.3:  # code that a checksum vouches for is run as it is
            return Mutant(f"length of {name}", {name: changed})
        return Mutant(f"length of {name}, as told", self.original.filed(self.original.index, name, changed))

    def _missing(self) -> Mutant:
        name = self.chance.choice(sorted(self.original.files))
        return Mutant(f"no {name}", {name: None})

    def _plan(self) -> Mutant:
        """A value of plan.json of another type, or none, or one too many; or no JSON."""
        text = self.original.files["plan.json"]
        if self.chance.random() < 0.1:
            broken = (b"", b"\xff\xfe", b"[" * 200_000, text[:-2], b"[]", b"null", b"1" * 5000, b'{"plan": NaN}')
            return Mutant(
                "plan.json as no object",
                self.original.filed(self.original.index, "plan.json", self.chance.choice(broken)),
            )
        data = json.loads(text)
        path, holder = [], data
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = self.chance.choice(keys)
            path.append(key)
            value = holder[key]
            if not isinstance(value, dict | list) or not value or self.chance.random() < 0.2:
                break
            holder = value
        chosen = self.chance.choice(_VALUES)
        action = self.chance.random()
        if action < 0.15:
            del holder[key]
        elif action < 0.25 and isinstance(holder, dict):
            holder["surplus"] = chosen
        elif action < 0.35 and isinstance(holder, list):
            holder.append(chosen)
        else:
            holder[key] = chosen
        what = f"plan.json {'.'.join(map(str, path))}: {chosen!r}"
        return Mutant(what, self.original.filed(self.original.index, "plan.json", json.dumps(data).encode()))
