"""index.bin, parsed and checked: what the tables say of a package, and of one of its plans."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

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
    HEADER,
    LEVELS,
    MODEL,
    PLAN,
    RECORD,
    REGION,
    REGIONS,
    ROW_TYPES,
    SHAPE,
    RowType,
)
from stic.runtime.gpu_format import PLACES
from stic.runtime.gpu_package import GpuPart, read_gpu
from stic.runtime.layout import RecordLayout, Shape, record_layout
from stic.runtime.package_contents import check_trunk
from stic.runtime.package_memory import check_extents, check_regions
from stic.runtime.package_model import read_model
from stic.runtime.package_plans import PlanEntry, check_family, read_plans

REQUIRED_FILES = ("trunk.bin", "embeddings.bin", "shards.bin", "kernels.so", "plan.json")


class Index:
    """What index.bin, whose checksum holds, says of a package in directory `path`, under plan `number` of `plans`.

    Raises PackageError where tables do not fit each other or a plan cannot be.
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

    def with_plan(self, number: int) -> Self:
        """The package under another of its plans: `entry`, bits, extents, regions and `plan` are that one's.

        Raises InputError if it has no such plan.
        """
        if not 0 <= number < len(self.plans):
            raise InputError(f"{self.path} has no plan {number}: it has {len(self.plans)}, counted from 0")
        return type(self)(self.path, self._index, number)

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

    @property
    def row_type(self) -> RowType:
        """Type of the values of an embedding row, one of ROW_TYPES."""
        return ROW_TYPES[int(self.header["row_type"])]
