"""Open a package, verify it, and hand out its parts. Nothing is used before its size, bounds and CRC hold."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stic.runtime.blocks import places, unblocked
from stic.runtime.errors import InputError, PackageError
from stic.runtime.format import (
    BLOCK,
    DENSE,
    EXTENT,
    FILE,
    FULL,
    HEADER,
    INTERLEAVES,
    LAYER,
    LEAST,
    LEVELS,
    LIMITS,
    MAGIC,
    MAJOR,
    MATRICES,
    MINOR,
    PLAN,
    RECORD,
    REGION,
    REGIONS,
    ROW_TYPES,
    TILE,
    Shape,
    levels_of,
    pad,
    record_layout,
    row_bytes,
)
from stic.runtime.gpu_format import PLACES, PROGRAM_FILE
from stic.runtime.gpu_package import GpuPart, check_weights, read_gpu
from stic.runtime.package_plans import check_resident, read_plans

REQUIRED_FILES = ("trunk.bin", "embeddings.bin", "shards.bin", "kernels.so", "plan.json")
CHECKED_BY_PART = ("embeddings.bin", "shards.bin")  # rows and records carry their own CRCs


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix of one shard at one bitwidth, as stored."""

    codes: NDArray[np.uint8] | None  # (N, K); None at full precision
    table: NDArray[np.int8] | None  # (2 ** bits,)
    weight: NDArray[np.float32] | None  # (N, K) at full precision
    outlier_rows: NDArray[np.int64]  # outliers in stored order: block by block, by position
    outlier_columns: NDArray[np.int64]
    outlier_values: NDArray[np.float32]


class Package:
    """A package on disk, and one of its plans: `number` of `plans`, the default being 0.

    `open` checks the index; the other files are checked when they are first used. Raises PackageError wherever the
    package is missing, truncated, corrupt, or of a newer format.
    """

    def __init__(self, path: Path, index: bytes, number: int = 0) -> None:
        self.path = path
        self.number = number
        self._index = index
        self.header = np.frombuffer(index, HEADER, 1)[0].copy()
        self._check_header()
        self.files = {row["name"].decode(): row for row in self._table("files", FILE, int(self.header["files"]))}
        layers, slices = int(self.header["layers"]), int(self.header["slices"])
        self.layers = self._table("layers", LAYER, layers).copy()
        self.records = self._table("records", RECORD, layers * LEVELS * slices).reshape(layers, LEVELS, slices)
        self.dense = self._table("dense", DENSE, int(self.header["dense"]))
        rows = self._table("regions", REGION, len(REGIONS))
        self.regions = {name: (int(row["offset"]), int(row["bytes"])) for name, row in zip(REGIONS, rows, strict=True)}
        self.plans = read_plans(index, self.header, self.regions, self._refuse)
        self._select()
        self.bits = self._table("bits", np.dtype("u1"), layers * slices).reshape(layers, slices)
        self.extents = self._table("extents", EXTENT, int(self.header["extents"]))
        if number:
            self.layers["slices"], self.layers["full"] = np.sum(self.bits > 0, axis=1), np.sum(self.bits > 8, axis=1)
        self._check_tables()
        self.gpu = self._gpu()  # None: every layer runs on the CPU

    @classmethod
    def open(cls, path: str | Path) -> Package:
        """Open the package in directory `path` and check its index."""
        path = Path(path)
        file = path / "index.bin"
        try:
            index = file.read_bytes()
        except OSError as error:
            raise PackageError(f"{path} is not a stic package: cannot read {file.name} ({error.strerror})") from error
        if len(index) < HEADER.itemsize or not index.startswith(MAGIC):
            raise PackageError(f"{path} is not a stic package: {file.name} does not start with a stic header")
        head = np.frombuffer(index, HEADER, 1)[0]
        if head["major"] != MAJOR or head["minor"] > MINOR:
            raise PackageError(
                f"{path} has package format {head['major']}.{head['minor']}; this stic reads {MAJOR}.0 to"
                f" {MAJOR}.{MINOR}: compile it again, or update stic"
            )
        if head["index_bytes"] != len(index):
            raise PackageError(f"{file} is truncated: {len(index)} bytes of {head['index_bytes']}; compile it again")
        zeroed = bytearray(index)
        at = HEADER.fields["index_crc"][1]
        zeroed[at : at + 4] = bytes(4)
        if zlib.crc32(zeroed) != head["index_crc"]:
            raise PackageError(f"{file} is corrupt (its checksum does not match): copy or compile the package again")
        package = cls(path, index)
        for number in range(1, len(package.plans)):
            package.with_plan(number)
        return package

    def with_plan(self, number: int) -> Package:
        """The package under another of its plans: header, bits, extents, regions, layers and `plan` are that one's.

        Raises InputError if it has no such plan.
        """
        if not 0 <= number < len(self.plans):
            raise InputError(f"{self.path} has no plan {number}: it has {len(self.plans)}, counted from 0")
        return Package(self.path, self._index, number)

    def _select(self) -> None:
        """Have the header and the regions say what is so under this plan."""
        entry = self.plans[self.number]
        for name in PLAN.names or ():
            if name in HEADER.fields and name != "reserved":
                self.header[name] = getattr(entry, name)
        self.regions |= {"preload": entry.preload, "working": entry.working}

    def _refuse(self, what: str) -> PackageError:
        return PackageError(f"{self.path} is not a valid package: {what}")

    def _check_header(self) -> None:
        head = self.header
        for name, most in LIMITS.items():
            if not LEAST.get(name, 0) <= int(head[name]) <= most:
                raise self._refuse(f"{name} is {head[name]}, outside {LEAST.get(name, 0)} to {most}")
        if head["padding"] > head["vocabulary"]:
            raise self._refuse(f"the padding is token {head['padding'] - 1} of {head['vocabulary']}")
        if head["row_stride"] < row_bytes(int(head["hidden"]), self.row_type):
            raise self._refuse(f"an embedding row does not fit row_stride {head['row_stride']}")
        if 0 < head["row_lanes"] < head["lanes"]:
            raise self._refuse(f"{head['row_lanes']} lanes read rows and {head['lanes']} extents")
        if head["full_bits"] not in (0, 16, 32):
            raise self._refuse(f"full_bits is {head['full_bits']}")
        if head["interleave"] not in INTERLEAVES:
            raise self._refuse(f"interleave is {head['interleave']}, not one of {INTERLEAVES}")

    def _table(self, name: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        at = int(self.header[f"{name}_at"])
        if at % 8 or at + count * dtype.itemsize > len(self._index):
            raise self._refuse(f"table {name} lies outside index.bin")
        return np.frombuffer(self._index, dtype, count, at)

    def _check_tables(self) -> None:
        for name in REQUIRED_FILES:
            if name not in self.files:
                raise self._refuse(f"it lists no {name}")
        for name, row in self.files.items():
            if "/" in name or name.startswith(".") or name == "index.bin":
                raise self._refuse(f"file name {name!r}")
            try:
                size = (self.path / name).stat().st_size
            except OSError as error:
                raise PackageError(f"{self.path / name} is missing: copy or compile the package again") from error
            if size != row["bytes"]:
                raise PackageError(f"{self.path / name} has {size} bytes of {row['bytes']}: copy the package again")
        for offset, size in self.regions.values():
            if offset % 64 or offset + size > int(self.header["arena_bytes"]):
                raise self._refuse("a memory region lies outside the arena")
        if self.header["load_first"] and np.any(self.extents["wait_layer"] != -1):
            raise self._refuse("it is loaded before it is computed, yet a read waits for a layer")
        if len(self.plans) > 1:
            resident = self.extents[: int(self.header["resident_extents"])]
            check_resident(resident, self.records, self.number, self._refuse)
        total = int(self.files["shards.bin"]["bytes"])
        for layer, row in enumerate(self.layers):
            bits = self.bits[layer]
            kept = int(row["slices"])
            rises = np.any(np.diff(bits[:kept].astype(int)) > 0)
            if kept > len(bits) or rises or np.any(bits[:kept] == 0) or np.any(bits[kept:]):
                raise self._refuse(f"layer {layer}: bits {bits.tolist()} for {kept} slices")
            if int(row["full"]) != int(np.sum(bits > 8)):
                raise self._refuse(f"layer {layer}: {row['full']} slices at full precision, bits {bits.tolist()}")
            for s in range(kept):
                b = int(bits[s])
                if b not in range(2, 9) and b != int(self.header["full_bits"]):
                    raise self._refuse(f"layer {layer} slice {s}: {b} bits")
                for level in levels_of(b, self.nested):
                    record = self.records[layer, level, s]
                    if record["bytes"] == 0 or int(record["offset"]) + int(record["bytes"]) > total:
                        raise self._refuse(f"layer {layer} slice {s} level {level}: no such record")

    def _gpu(self) -> GpuPart | None:
        if not self.header["gpu_at"]:
            return None
        if PROGRAM_FILE not in self.files:
            raise self._refuse(f"it has a GPU part, but lists no {PROGRAM_FILE}")
        check_weights(self.regions, self._refuse)
        return read_gpu(self._index, self.header, self.layers, self.shape, self._refuse)

    @property
    def places(self) -> tuple[str, ...]:
        """Where each layer runs as planned: "cpu" or "gpu"."""
        return self.gpu.places if self.gpu is not None else (PLACES[0],) * len(self.layers)

    @property
    def nested(self) -> bool:
        return bool(self.header["nested"])

    @property
    def interleave(self) -> int:
        """Columns of a row that lie together in the blocks of codes."""
        return int(self.header["interleave"])

    @cached_property
    def shape(self) -> Shape:
        head = self.header
        return Shape(*(int(head[n]) for n in ("hidden", "heads_per_slice", "head_dim", "neurons_per_slice")))

    @cached_property
    def trunk(self) -> bytes:
        """trunk.bin, verified."""
        return self.read("trunk.bin")

    @cached_property
    def plan(self) -> dict[str, Any]:
        """plan.json, verified: the plan, its predicted timeline, and what the model is called."""
        try:
            found: dict[str, Any] = json.loads(self.read("plan.json"))
            return found | found["family"][self.number] if self.number else found
        except ValueError as error:
            raise self._refuse(f"plan.json is not JSON ({error})") from error
        except (KeyError, IndexError, TypeError) as error:
            raise self._refuse(f"plan.json does not say what plan {self.number} is") from error

    @property
    def tokenizer(self) -> bytes | None:
        """tokenizer.json, verified, if the package carries one."""
        return self.read("tokenizer.json") if "tokenizer.json" in self.files else None

    def read(self, name: str) -> bytes:
        """Contents of one of the package's files, its CRC verified."""
        data = (self.path / name).read_bytes()
        if name not in CHECKED_BY_PART and zlib.crc32(data) != self.files[name]["crc"]:
            raise PackageError(f"{self.path / name} is corrupt (its checksum does not match): copy the package again")
        return data

    def _open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")

    def tensor(self, at: int, dtype: str, *shape: int) -> NDArray[Any]:
        """A tensor of the trunk."""
        count = int(np.prod(shape))
        if at % 64 or at + count * np.dtype(dtype).itemsize > len(self.trunk):
            raise self._refuse("a tensor lies outside trunk.bin")
        return np.frombuffer(self.trunk, dtype, count, at).reshape(shape)

    def record(self, layer: int, level: int, slice_: int) -> bytes:
        """One record of shards.bin, its CRC verified."""
        row = self.records[layer, level, slice_]
        if not row["bytes"]:
            raise self._refuse(f"layer {layer} slice {slice_} level {level} is not stored")
        with self._open("shards.bin") as file:
            file.seek(int(row["offset"]))
            data = file.read(int(row["bytes"]))
        if zlib.crc32(data) != row["crc"] or len(data) != row["bytes"]:
            raise PackageError(
                f"{self.path / 'shards.bin'} is corrupt at layer {layer}, slice {slice_}, level {level}"
                " (checksum): copy the package again"
            )
        return data

    @property
    def row_type(self) -> str:
        """Type of the values of an embedding row, one of ROW_TYPES."""
        return ROW_TYPES[int(self.header["row_type"])]

    def embedding_rows(self, ids: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Word embeddings as values (len(ids), hidden) of `row_type` and scales (len(ids),), each row's CRC verified;
        None: values of float16 have no scale."""
        hidden, stride = self.shape.hidden, int(self.header["row_stride"])
        kind = np.dtype(self.row_type).newbyteorder("<")
        checked, scale_at = row_bytes(hidden, self.row_type) - 4, pad(hidden, 4)
        values, scales = np.empty((len(ids), hidden), kind), np.empty(len(ids), np.float32)
        with self._open("embeddings.bin") as file:
            for i, token in enumerate(ids):
                file.seek(int(token) * stride)
                data = file.read(checked + 4)
                if zlib.crc32(data[:checked]) != int.from_bytes(data[checked:], "little"):
                    raise PackageError(f"{self.path / 'embeddings.bin'} is corrupt at token {token} (checksum)")
                values[i] = np.frombuffer(data, kind, hidden)
                if self.row_type == "int8":
                    scales[i] = np.frombuffer(data, "<f4", 1, scale_at)[0]
        return values, scales if self.row_type == "int8" else None

    def matrix(self, layer: int, slice_: int, name: str, bits: int) -> Matrix:
        """One matrix of one shard as a plan at `bits` uses it."""
        m = MATRICES.index(name)
        n, k = self.shape.matrix(name)
        empty = np.zeros(0, np.int64)
        if bits > 8:
            data = self.record(layer, FULL, slice_)
            at = record_layout(self.shape, FULL, self.nested, bits).planes[m][0]
            weight = np.frombuffer(data, f"<f{bits // 8}", n * k, at).reshape(n, k).astype(np.float32)
            return Matrix(None, None, weight, empty, empty, empty.astype(np.float32))
        flat = np.zeros(n * k, np.uint8)
        table = np.zeros(0, np.int8)
        outliers = (empty, empty, empty.astype(np.float32))
        for level in levels_of(bits, self.nested):
            data = self.record(layer, level, slice_)
            layout = record_layout(self.shape, level, self.nested)
            for at in layout.planes[m]:
                plane = np.frombuffer(data, np.uint8, n * k // 8, at)
                flat = (flat << 1) | np.unpackbits(plane, bitorder="little")
            table = np.frombuffer(data, np.int8, 1 << (level + 2), layout.tables[m])
            if layout.blocks:
                outliers = self._outliers(data, layer, level, slice_, m)
        codes, middle = unblocked(flat, (n, k), self.interleave), 1 << (bits - 1)
        if np.any(codes[outliers[0], outliers[1]] != middle):
            raise self._refuse(f"layer {layer} slice {slice_}: an outlier of {name} has another code than {middle}")
        return Matrix(codes, table, None, *outliers)

    def _outliers(
        self, data: bytes, layer: int, level: int, slice_: int, m: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        where = f"layer {layer} slice {slice_} level {level}: outliers of {MATRICES[m]}"
        layout = record_layout(self.shape, level, self.nested)
        starts = []
        for name, at in zip(MATRICES, layout.blocks, strict=True):
            count = self.shape.matrix(name)[0] // TILE + 1
            if at + 4 * count > len(data):
                raise self._refuse(where + " are outside the record")
            starts.append(np.frombuffer(data, "<u4", count, at).astype(np.int64))
        totals = tuple(int(start[-1]) for start in starts)
        if max(totals) > len(data):
            raise self._refuse(where + " are outside the record")
        layout = record_layout(self.shape, level, self.nested, outliers=totals)
        k = self.shape.matrix(MATRICES[m])[1]
        if layout.size != len(data) or starts[m][0] or np.any(np.diff(starts[m]) < 0):
            raise self._refuse(where + " do not fit their blocks")
        entries = np.frombuffer(data, [("position", "<u2"), ("value", "<f2")], totals[m], layout.outliers[m])
        position = entries["position"].astype(np.int64)
        if np.any(position >= TILE * k):
            raise self._refuse(where + " are outside their block")
        block = np.repeat(np.arange(len(starts[m]) - 1), np.diff(starts[m]))
        if np.any(np.diff(block * TILE * k + position) <= 0):
            raise self._refuse(where + " are out of order")
        if not np.isfinite(entries["value"]).all():
            raise self._refuse(where + " are not finite numbers")
        row, column = places(position, self.interleave)
        return block * TILE + row, column, entries["value"].astype(np.float32)

    def verify(self) -> None:
        """Check every CRC in the package: files, records and embedding rows."""
        for name in self.files:
            self.read(name)
        for layer, level, s in np.argwhere(self.records["bytes"] > 0):
            self.record(int(layer), int(level), int(s))
        if int(self.files["embeddings.bin"]["bytes"]) % BLOCK:
            raise self._refuse("embeddings.bin is not a whole number of blocks")
        self.embedding_rows(np.arange(int(self.header["vocabulary"])))
