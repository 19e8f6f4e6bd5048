"""Open a package, verify it, and hand out its parts. Nothing is used before its size, bounds and CRC hold."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from stic.runtime.blocks import places, unblocked
from stic.runtime.errors import PackageError
from stic.runtime.format import FULL, HEADER, MAGIC, MAJOR, MINOR, TILE, offset_of
from stic.runtime.layout import Shape, levels_of, pad, record_layout, row_bytes
from stic.runtime.package_contents import OUTLIER, check_record, check_tensors
from stic.runtime.package_index import Index
from stic.runtime.plan_file import read_plan_file

MOST_INDEX_BYTES = 1 << 26
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


class Package(Index):
    """A package on disk, and one of its plans: `number` of `plans`, the default being 0.

    `open` checks the index; the other files are checked when they are first used. Raises PackageError wherever the
    package is missing, truncated, corrupt, or of a newer format.
    """

    @classmethod
    def open(cls, path: str | Path) -> Self:
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
        if self.row_type != "tied":
            self.embedding_rows(np.arange(int(self.model["vocabulary"])))
