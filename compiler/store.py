"""Where each record of a store lies in shards.bin: sizes and offsets, known before a byte is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stic.runtime.format import BLOCK, FULL, LEVELS, Shape, levels_of, pad, record_layout


@dataclass(frozen=True, eq=False)
class Store:
    """Sizes and offsets of all records of one model.

    Levels 0..6 come first, layer by layer; full precision, where present, follows them all.
    """

    shape: Shape
    nested: bool
    full_bits: int  # 0: level 7 is absent
    bytes: NDArray[np.int64]  # (layers, LEVELS, slices); 0: absent
    offset: NDArray[np.int64]  # (layers, LEVELS, slices)
    total_bytes: int  # multiple of BLOCK

    @property
    def layers(self) -> int:
        return int(self.bytes.shape[0])

    @property
    def slices(self) -> int:
        return int(self.bytes.shape[2])

    def only(self, wanted: NDArray[np.bool_]) -> Store:
        """The store without what nobody reads: of each layer and level, the records from the first wanted one to the
        last, at the same places in their blocks, so that reads of them have the same bytes.

        wanted: (layers, LEVELS, slices). Raises ValueError if a wanted record is absent.
        """
        if np.any(wanted & (self.bytes == 0)):
            raise ValueError("the store lacks records that are wanted of it")
        size, offset = np.zeros_like(self.bytes), np.zeros_like(self.offset)
        at = 0
        for layer, level in sorted(np.argwhere(wanted.any(axis=2)).tolist(), key=lambda run: run[1] == FULL):
            slices = np.flatnonzero(wanted[layer, level])
            first, end = int(slices[0]), int(slices[-1]) + 1
            start, length = self.extent(layer, level, first, end - first)
            size[layer, level, first:end] = self.bytes[layer, level, first:end]
            offset[layer, level, first:end] = self.offset[layer, level, first:end] - start + at
            at += length
        full_bits = self.full_bits if wanted[:, FULL].any() else 0
        return replace(self, full_bits=full_bits, bytes=size, offset=offset, total_bytes=at)

    def shard_bytes(self, layer: int, slice_: int, bits: int) -> int:
        """Bytes that a shard at `bits` reads."""
        return int(sum(self.bytes[layer, level, slice_] for level in levels_of(bits, self.nested)))

    def extent(self, layer: int, level: int, first: int, count: int) -> tuple[int, int]:
        """(file offset, bytes) of the aligned read that covers slices first .. first + count - 1 of one level."""
        start = int(self.offset[layer, level, first]) // BLOCK * BLOCK
        last = first + count - 1
        end = pad(int(self.offset[layer, level, last] + self.bytes[layer, level, last]), BLOCK)
        return start, end - start


def lay_out(shape: Shape, outliers: NDArray[np.int64], nested: bool, full_bits: int, max_bits: int = 8) -> Store:
    """Lay out a store.

    `outliers` counts the entries of each matrix: (layers, slices, 4) for a nested store; for independent
    copies (layers, slices, 4) as well, the same outliers being stored with every bitwidth.
    """
    layers, slices, _ = outliers.shape
    size = np.zeros((layers, LEVELS, slices), np.int64)
    offset = np.zeros_like(size)
    at = 0
    planes = [(layer, level) for layer in range(layers) for level in range(max_bits - 1)]
    full = [(layer, FULL) for layer in range(layers)] if full_bits else []
    for layer, level in planes + full:
        at = pad(at, BLOCK)
        for s in range(slices):
            counts = tuple(int(c) for c in outliers[layer, s])
            size[layer, level, s] = record_layout(shape, level, nested, full_bits, counts).size
            offset[layer, level, s] = at
            at += int(size[layer, level, s])
    return Store(shape, nested, full_bits, size, offset, pad(at, BLOCK))
