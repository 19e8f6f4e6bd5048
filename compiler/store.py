"""Where each record of a store lies in shards.bin: sizes and offsets, known before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stic.runtime.format import BLOCK, FULL, LEVELS
from stic.runtime.layout import Shape, levels_of, pad, record_layout


@dataclass(frozen=True, eq=False)
class Store:
    """Sizes and offsets of all records of one model.

    Levels 0..6 come first, block by block; full precision, where present, follows them all.
    """

    shapes: tuple[Shape, ...]  # of each block
    nested: bool
    full_bits: int  # 0: level 7 is absent
    bytes: NDArray[np.int64]  # (blocks, LEVELS, most slices); 0: absent, as behind a block's slices
    offset: NDArray[np.int64]  # (blocks, LEVELS, most slices); behind a block's slices, where they end
    total_bytes: int  # multiple of BLOCK
    group: int = 0  # columns that share a ratio; 0: none do

    @property
    def blocks(self) -> int:
        return len(self.shapes)

    @cached_property
    def slices(self) -> tuple[int, ...]:
        """Slices of each block."""
        return tuple(shape.slices for shape in self.shapes)

    @property
    def most_slices(self) -> int:
        """Slices of the block that has most of them."""
        return max(self.slices)

    @cached_property
    def cuts(self) -> tuple[Shape, ...]:
        """The shapes that blocks have, in the order of their first."""
        return tuple(dict.fromkeys(self.shapes))

    @cached_property
    def cut_of(self) -> tuple[int, ...]:
        """Which of `cuts` is the shape of each block."""
        return tuple(self.cuts.index(shape) for shape in self.shapes)

    def only(self, wanted: NDArray[np.bool_]) -> Store:
        """The store without what nobody reads: of each block and level, the records from the first wanted one to the
        last, at the same places in their blocks, so that reads of them have the same bytes.

        wanted: (blocks, LEVELS, most slices). Raises ValueError if a wanted record is absent.
        """
        if np.any(wanted & (self.bytes == 0)):
            raise ValueError("the store lacks records that are wanted of it")
        size, offset = np.zeros_like(self.bytes), np.zeros_like(self.offset)
        at = 0
        for block, level in sorted(np.argwhere(wanted.any(axis=2)).tolist(), key=lambda run: run[1] == FULL):
            slices = np.flatnonzero(wanted[block, level])
            first, end = int(slices[0]), int(slices[-1]) + 1
            start, length = self.extent(block, level, first, end - first)
            size[block, level, first:end] = self.bytes[block, level, first:end]
            offset[block, level, first:end] = self.offset[block, level, first:end] - start + at
            at += length
        full_bits = self.full_bits if wanted[:, FULL].any() else 0
        return replace(self, full_bits=full_bits, bytes=size, offset=offset, total_bytes=at)

    def shard_bytes(self, block: int, slice_: int, bits: int) -> int:
        """Bytes that a shard at `bits` reads."""
        return int(sum(self.bytes[block, level, slice_] for level in levels_of(bits, self.nested)))

    def extent(self, block: int, level: int, first: int, count: int) -> tuple[int, int]:
        """(file offset, bytes) of the aligned read that covers slices first .. first + count - 1 of one level."""
        start = int(self.offset[block, level, first]) // BLOCK * BLOCK
        last = first + count - 1
        end = pad(int(self.offset[block, level, last] + self.bytes[block, level, last]), BLOCK)
        return start, end - start


def lay_out(
    shapes: Sequence[Shape],
    outliers: Sequence[NDArray[np.int64]] | NDArray[np.int64] | None,
    nested: bool,
    full_bits: int,
    max_bits: int = 8,
    group: int = 0,
) -> Store:
    """Lay out a store of blocks of these shapes.

    `outliers` counts, for each block, the entries of each matrix (slices, matrices), the same with every bitwidth where
    the store is not nested; None: there are none, as in groups of `group` columns.
    """
    most = max(shape.slices for shape in shapes)
    size = np.zeros((len(shapes), LEVELS, most), np.int64)
    offset = np.zeros_like(size)
    at = 0
    planes = [(block, level) for block in range(len(shapes)) for level in range(max_bits - 1)]
    full = [(block, FULL) for block in range(len(shapes))] if full_bits else []
    for block, level in planes + full:
        at = pad(at, BLOCK)
        shape = shapes[block]
        for s in range(shape.slices):
            counts = () if outliers is None else tuple(int(c) for c in outliers[block][s])
            size[block, level, s] = record_layout(shape, level, nested, full_bits, counts, group).size
            offset[block, level, s] = at
            at += int(size[block, level, s])
        offset[block, level, shape.slices :] = at
    return Store(tuple(shapes), nested, full_bits, size, offset, pad(at, BLOCK), group)
