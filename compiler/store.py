"""Where each record of a store lies in shards.bin: sizes and offsets, known before a byte is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stic.runtime.format import BLOCK, FULL, LEVELS, Shape, levels_of, pad, record_layout


@dataclass(frozen=True, eq=False)
class Store:
    """Sizes and offsets of all records of one model.

    Levels 0..6 come first, layer by layer; full precision, where present, follows them all, so that a
    package without it is a prefix of one with it.
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

    def without_full(self) -> Store:
        """The store without full precision: of shards.bin, what comes before it."""
        if not self.full_bits:
            return self
        size, offset = self.bytes.copy(), self.offset.copy()
        size[:, FULL] = offset[:, FULL] = 0
        end = pad(int((offset + size).max()), BLOCK)
        return replace(self, full_bits=0, bytes=size, offset=offset, total_bytes=end)

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
