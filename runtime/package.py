"""Open a package, verify it, and hand out its parts. Nothing is used before its size, bounds and CRC hold."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stic.runtime.blocks import places, unblocked
from stic.runtime.checks import (
    CONTENT_CHECKS,
    FILE_CHECKS,
    HEADER_CHECKS,
    RECORD_CHECKS,
    Rows,
    check_bounds,
    check_shards,
    fields,
    require,
)
from stic.runtime.errors import InputError, PackageError
from stic.runtime.format import (
    BLOCK_ENTRY,
    DENSE,
    EXTENT,
    FILE,
    FULL,
    HEADER,
    LEVELS,
    MAGIC,
    MAJOR,
    MINOR,
    MODEL,
    PLAN,
    RECORD,
    REGION,
    REGIONS,
    ROW_TYPES,
    SHAPE,
    TILE,
    RecordLayout,
    Shape,
    levels_of,
    offset_of,
    pad,
    record_layout,
    row_bytes,
)
from stic.runtime.gpu_format import PLACES
from stic.runtime.gpu_package import GpuPart, read_gpu
from stic.runtime.package_contents import OUTLIER, check_record, check_tensors, check_trunk
from stic.runtime.package_memory import check_extents, check_regions
from stic.runtime.package_model import read_model
from stic.runtime.package_plans import PlanEntry, check_family, read_plans
from stic.runtime.plan_file import read_plan_file

MOST_INDEX_BYTES = 1 << 26
REQUIRED_FILES = ("trunk.bin", "embeddings.bin", "shards.bin", "kernels.so", "plan.json")
CHECKED_BY_PART = ("embeddings.bin", "shards.bin")  # rows and records carry their own CRCs


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix of one shard at one bitwidth, as stored."""

    codes: NDArray[np.uint8] | None  # (N, K); None at full precision
    table: NDArray[np.int8] | None  # (2 ** bits,)
    ratios: NDArray[np.uint8] | None  # (N, groups), of a store in groups
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
        self.header = np.frombuffer(index, HEADER, 1)[0]
        header, refuse = fields(self.header), self._refuse
        check_bounds(header, refuse)
        require(HEADER_CHECKS, refuse, header)
        self.model = self._table("model", MODEL, 1)[0]
        rows = self._table("files", FILE, header.files)
        shapes = self._table("shapes", SHAPE, header.shapes)
        self.blocks = self._table("blocks", BLOCK_ENTRY, header.blocks)
        self.dense = self._table("dense", DENSE, header.dense)
        regions = self._table("regions", REGION, len(REGIONS))
        self._table("plans", PLAN, header.plans)
        self._facts = h = SimpleNamespace(**vars(header), **vars(fields(self.model)))
        self.shapes = read_model(h, shapes, self.blocks, refuse)  # of each block
        self._shards = sum(shape.slices for shape in self.shapes)
        self.records = self._by_block(self._table("records", RECORD, LEVELS * self._shards), LEVELS)
        self.regions = {name: (int(r["offset"]), int(r["bytes"])) for name, r in zip(REGIONS, regions, strict=True)}
        self._read_files(rows)
        self._check_records()
        self._tensors = check_trunk(h, self.blocks, self.dense, self.shapes, refuse)
        self.plans = read_plans(index, header, self._shards, self.regions, refuse)
        self._select()
        self.gpu = self._gpu()  # None: every block runs on the CPU

    @classmethod
    def open(cls, path: str | Path) -> Package:
        """Open the package in directory `path` and check its index, under every plan, and the sizes of its files."""
        path = Path(path)
        file = path / "index.bin"
        try:
            readable = file.stat().st_size <= MOST_INDEX_BYTES and file.is_file()
            index = file.read_bytes() if readable else b""
        except OSError as error:
            raise PackageError(f"{path} is not a stic package: cannot read {file.name} ({error.strerror})") from error
        if len(index) < HEADER.itemsize or not index.startswith(MAGIC):
            sentence = f"{path} is not a stic package: {file.name} does not start with a stic header"
            raise PackageError(sentence, check="magic")
        head = np.frombuffer(index, HEADER, 1)[0]
        if head["major"] != MAJOR or head["minor"] > MINOR:
            raise PackageError(
                f"{path} has package format {head['major']}.{head['minor']}; this stic reads {MAJOR}.0 to"
                f" {MAJOR}.{MINOR}: {'compile it again' if head['major'] < MAJOR else 'update stic'}"
            )
        if head["index_bytes"] != len(index):
            sizes = f"{len(index)} bytes of {head['index_bytes']}"
            raise PackageError(f"{file} is truncated: {sizes}; compile it again", check="index_size")
        zeroed = bytearray(index)
        at = offset_of(HEADER, "index_crc")
        zeroed[at : at + 4] = bytes(4)
        if zlib.crc32(zeroed) != head["index_crc"]:
            sentence = f"{file} is corrupt (its checksum does not match): copy or compile the package again"
            raise PackageError(sentence, check="index_checksum")
        package = cls(path, index)
        for number in range(1, len(package.plans)):
            package.with_plan(number)
        for name, row in package.files.items():
            package._check_size(name, int(row["bytes"]))
        return package

    def with_plan(self, number: int) -> Package:
        """The package under another of its plans: `entry`, bits, extents, regions and `plan` are that one's.

        Raises InputError if it has no such plan.
        """
        if not 0 <= number < len(self.plans):
            raise InputError(f"{self.path} has no plan {number}: it has {len(self.plans)}, counted from 0")
        return Package(self.path, self._index, number)

    def _select(self) -> None:
        """Have everything say what is so under this plan, and check that it can be."""
        entry, refuse = self.entry, self._refuse
        self.regions |= {"preload": entry.preload, "working": entry.working}
        self.bits = self._by_block(np.frombuffer(self._index, np.uint8, self._shards, entry.bits_at))
        self.extents = np.frombuffer(self._index, EXTENT, entry.extents, entry.extents_at)
        self.kept = np.sum(self.bits > 0, axis=1)  # slices of each block
        check_shards(self._facts, self.shapes, self.bits, refuse)
        facts = SimpleNamespace(**vars(self._facts) | vars(entry))
        check_regions(facts, self.shapes, self.dense, self.regions, self.kept, refuse)
        check_extents(facts, self.shapes, self.extents, self.records, self.bits, self.regions, refuse)
        if len(self.plans) > 1:
            check_family(entry, self.plans[0], self.regions, self.extents, self.records, refuse)

    def record_number(self, block: int, level: int, slice_: int) -> int:
        """Which entry of table RECORD a record is."""
        before = sum(shape.slices for shape in self.shapes[:block])
        return before * LEVELS + level * self.shapes[block].slices + slice_

    def _by_block(self, flat: NDArray[Any], rows: int = 1) -> NDArray[Any]:
        """A table with so many rows of slices for each block, zeros behind the slices: (blocks, most slices), or with
        several rows (blocks, rows, most slices)."""
        most = max(shape.slices for shape in self.shapes)
        table, at = np.zeros((len(self.shapes), rows, most), flat.dtype), 0
        for block, shape in zip(table, self.shapes, strict=True):
            block[:, : shape.slices] = flat[at : at + rows * shape.slices].reshape(rows, shape.slices)
            at += rows * shape.slices
        return table[:, 0] if rows == 1 else table

    def _refuse(self, check: str, what: str) -> PackageError:
        plan = f"plan {self.number}: " if self.number else ""
        return PackageError(f"{self.path} is not a valid package: {plan}{what}", check)

    def _table(self, name: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        at = int(self.header[f"{name}_at"])
        if at % 8 or at + count * dtype.itemsize > len(self._index):
            raise self._refuse("table_place", f"table {name} lies outside index.bin")
        return np.frombuffer(self._index, dtype, count, at)

    def _read_files(self, rows: NDArray[Any]) -> None:
        """Read the table of files; what the facts say of their bytes is checked here, the files themselves are not."""
        require(FILE_CHECKS, self._refuse, self._facts, Rows(rows))
        self.files = {row["name"].decode(): row for row in rows}
        for name in REQUIRED_FILES:
            if name not in self.files:
                raise self._refuse("files_required", f"it lists no {name}")
        for name in ("trunk", "embeddings", "shards"):
            setattr(self._facts, name, int(self.files[f"{name}.bin"]["bytes"]))
        require(CONTENT_CHECKS, self._refuse, self._facts)

    def _check_size(self, name: str, size: int) -> None:
        path = self.path / name
        try:
            facts = path.stat()
        except OSError as error:
            raise PackageError(f"{path} is missing: copy or compile the package again") from error
        if not path.is_file():
            raise PackageError(f"{path} is not a file: copy or compile the package again")
        if facts.st_size != size:
            sentence = f"{path} has {facts.st_size} bytes of {size}: copy the package again"
            raise PackageError(sentence, check="file_bytes")

    def _check_records(self) -> None:
        block, level, slice_ = np.nonzero(self.records["bytes"])
        layouts = {shape: [self._layout(shape, level) for level in range(LEVELS)] for shape in set(self.shapes)}
        least = np.array([[layout.size for layout in layouts[shape]] for shape in self.shapes], object)
        alone = np.array([[bool(layout.blocks) for layout in layouts[shape]] for shape in self.shapes])
        present = self.records[block, level, slice_]
        rows = Rows(present, level=level, least=least[block, level], alone=alone[block, level])
        require(RECORD_CHECKS, self._refuse, self._facts, rows)

    def _layout(self, shape: Shape, level: int, outliers: tuple[int, ...] = ()) -> RecordLayout:
        h = self._facts
        return record_layout(shape, level, self.nested, h.full_bits, outliers, h.group)

    def _gpu(self) -> GpuPart | None:
        if not self._facts.gpu_at:
            return None
        sizes = {name: int(row["bytes"]) for name, row in self.files.items()}
        kept = self.kept.astype(object)
        return read_gpu(self._index, self._facts, self.shapes[0], kept, sizes, self.regions, self._refuse)

    @property
    def entry(self) -> PlanEntry:
        """What the index says of this plan."""
        return self.plans[self.number]

    @property
    def places(self) -> tuple[str, ...]:
        """Where each block runs as planned: "cpu" or "gpu"."""
        return self.gpu.places if self.gpu is not None else (PLACES[0],) * len(self.shapes)

    @property
    def nested(self) -> bool:
        return bool(self.header["nested"])

    @property
    def interleave(self) -> int:
        """Columns of a row that lie together in the blocks of codes."""
        return int(self.header["interleave"])

    @property
    def hidden(self) -> int:
        """Features of the hidden states."""
        return int(self.model["hidden"])

    @property
    def max_length(self) -> int:
        """Tokens of the longest input."""
        return int(self.model["max_length"])

    @cached_property
    def trunk(self) -> bytes:
        """trunk.bin, verified."""
        data = self.read("trunk.bin")
        check_tensors(data, self._tensors, self._refuse)
        return data

    @cached_property
    def plan(self) -> dict[str, Any]:
        """plan.json, verified: the plan, its predicted timeline, and what the model is called."""
        try:
            found = read_plan_file(self.read("plan.json"))
        except ValueError as error:
            raise PackageError(f"{self.path}: {error}: copy or compile the package again") from error
        if len(found.get("family", (found,))) < len(self.plans):
            raise PackageError(f"{self.path}: plan.json does not say what plan {self.number} is: compile it again")
        return found | found["family"][self.number] if self.number else found

    @property
    def tokenizer(self) -> bytes | None:
        """tokenizer.json, verified, if the package carries one."""
        return self.read("tokenizer.json") if "tokenizer.json" in self.files else None

    @property
    def template(self) -> bytes | None:
        """chat_template.jinja, verified, if the package carries one."""
        return self.read("chat_template.jinja") if "chat_template.jinja" in self.files else None

    def read(self, name: str) -> bytes:
        """Contents of one of the package's files, its size and CRC verified."""
        self._check_size(name, int(self.files[name]["bytes"]))
        data = (self.path / name).read_bytes()
        if name not in CHECKED_BY_PART and zlib.crc32(data) != self.files[name]["crc"]:
            sentence = f"{self.path / name} is corrupt (its checksum does not match): copy the package again"
            raise PackageError(sentence, check="file_checksum")
        return data

    def _open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")

    def tensor(self, at: int, dtype: str, *shape: int) -> NDArray[Any]:
        """A tensor of the trunk."""
        count = int(np.prod(shape))
        if at % 64 or at + count * np.dtype(dtype).itemsize > len(self.trunk):
            raise self._refuse("tensor_place", "a tensor lies outside trunk.bin")
        return np.frombuffer(self.trunk, dtype, count, at).reshape(shape)

    def record(self, block: int, level: int, slice_: int) -> bytes:
        """One record of shards.bin, its CRC and its inside verified."""
        row = self.records[block, level, slice_]
        where = f"block {block} slice {slice_} level {level}"
        if not row["bytes"]:
            raise PackageError(f"{self.path} is not a valid package: {where} is not stored")
        with self._open("shards.bin") as file:
            file.seek(int(row["offset"]))
            data = file.read(int(row["bytes"]))
        if zlib.crc32(data) != row["crc"] or len(data) != row["bytes"]:
            raise PackageError(
                f"{self.path / 'shards.bin'} is corrupt at block {block}, slice {slice_}, level {level}"
                " (checksum): copy the package again",
                check="record_checksum",
            )
        check_record(data, level, self.shapes[block], self._facts, where, self._refuse)
        return data

    @property
    def row_type(self) -> str:
        """Type of the values of an embedding row, one of ROW_TYPES."""
        return ROW_TYPES[int(self.header["row_type"])]

    def embedding_rows(self, ids: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Word embeddings as values (len(ids), hidden) of `row_type` and scales (len(ids),), each row's CRC and numbers
        verified; None: values of float16 have no scale."""
        hidden, stride = self.hidden, int(self.header["row_stride"])
        kind = np.dtype(self.row_type).newbyteorder("<")
        checked, scale_at = row_bytes(hidden, self.row_type) - 4, pad(hidden, 4)
        values, scales = np.empty((len(ids), hidden), kind), np.empty(len(ids), np.float32)
        with self._open("embeddings.bin") as file:
            for i, token in enumerate(ids):
                file.seek(int(token) * stride)
                data = file.read(checked + 4)
                if zlib.crc32(data[:checked]) != int.from_bytes(data[checked:], "little"):
                    sentence = f"{self.path / 'embeddings.bin'} is corrupt at token {token} (checksum)"
                    raise PackageError(f"{sentence}: copy the package again", check="row_checksum")
                values[i] = np.frombuffer(data, kind, hidden)
                if self.row_type == "int8":
                    scales[i] = np.frombuffer(data, "<f4", 1, scale_at)[0]
        numbers = scales[:, None] if self.row_type == "int8" else values
        if not (finite := np.isfinite(numbers).all(axis=1)).all():
            token = ids[np.argmin(finite)]
            raise self._refuse(
                "row_scale", f"the row of token {token} in embeddings.bin holds a number that is not finite"
            )
        return values, scales if self.row_type == "int8" else None

    def matrix(self, block: int, slice_: int, name: str, bits: int) -> Matrix:
        """One matrix of one shard as a plan at `bits` uses it."""
        shape = self.shapes[block]
        m = shape.matrices.index(name)
        n, k = shape.matrix(name)
        empty = np.zeros(0, np.int64)
        if bits > 8:
            data = self.record(block, FULL, slice_)
            at = record_layout(shape, FULL, self.nested, bits).planes[m][0]
            weight = np.frombuffer(data, f"<f{bits // 8}", n * k, at).reshape(n, k).astype(np.float32)
            return Matrix(None, None, None, weight, empty, empty, empty.astype(np.float32))
        flat = np.zeros(n * k, np.uint8)
        table = np.zeros(0, np.int8)
        outliers, ratios = (empty, empty, empty.astype(np.float32)), None
        for level in levels_of(bits, self.nested):
            data = self.record(block, level, slice_)
            layout = self._layout(shape, level)
            for at in layout.planes[m]:
                plane = np.frombuffer(data, np.uint8, n * k // 8, at)
                flat = (flat << np.uint8(1)) | np.unpackbits(plane, bitorder="little")
            table = np.frombuffer(data, np.int8, 1 << (level + 2), layout.tables[m])
            if layout.blocks:
                outliers = self._outliers(data, shape, level, m)
            if layout.ratios:
                groups = shape.groups(name, self._facts.group)
                stored = np.frombuffer(data, np.uint8, n * groups, layout.ratios[m]).reshape(n // TILE, groups, TILE)
                ratios = stored.transpose(0, 2, 1).reshape(n, groups)
        codes, middle = unblocked(flat, (n, k), self.interleave), 1 << (bits - 1)
        if np.any(codes[outliers[0], outliers[1]] != middle):
            where = f"block {block} slice {slice_}"
            raise self._refuse("outlier_code", f"{where}: an outlier of {name} has another code than {middle}")
        return Matrix(codes, table, ratios, None, *outliers)

    def _outliers(
        self, data: bytes, shape: Shape, level: int, m: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Rows, columns and values of the outliers of matrix `m` in a record that was checked."""
        counts = [shape.matrix(name)[0] // TILE + 1 for name in shape.matrices]
        starts = [
            np.frombuffer(data, "<u4", count, at).astype(np.int64)
            for count, at in zip(counts, self._layout(shape, level).blocks, strict=True)
        ]
        layout = self._layout(shape, level, tuple(int(start[-1]) for start in starts))
        entries = np.frombuffer(data, OUTLIER, int(starts[m][-1]), layout.outliers[m])
        block = np.repeat(np.arange(len(starts[m]) - 1), np.diff(starts[m]))
        row, column = places(entries["position"], self.interleave)
        return block * TILE + row, column, entries["value"].astype(np.float32)

    def verify(self) -> None:
        """Check everything in the package: every CRC, the insides of records and rows, the trunk, plan.json."""
        for name in self.files:
            self.read(name)
        _ = self.trunk, self.plan
        for block, level, s in np.argwhere(self.records["bytes"] > 0):
            self.record(int(block), int(level), int(s))
        self.embedding_rows(np.arange(int(self.model["vocabulary"])))
