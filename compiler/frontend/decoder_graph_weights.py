"""A decoder's matrices as an ONNX file stores them, read by rows when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array
from stic.compiler.frontend.decoder_graph_file import MICROSOFT
from stic.compiler.frontend.decoder_graph_values import DecoderGraph, attribute
from stic.runtime.errors import UnsupportedModelError

Rows = NDArray[np.int64]
_COMPARED_ROWS = 1024  # of two matrices at a time


class Stored(Protocol):
    """A matrix (rows, columns) of a file."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def take(self, rows: Rows) -> Array:
        """Rows of it, float32."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix that is stored as it is, or turned."""

    array: NDArray[Any]
    turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.array.shape[::-1] if self.turned else self.array.shape
        return rows, columns

    def take(self, rows: Rows) -> Array:
        """See `Stored.take`."""
        whole = len(rows) > 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        chosen: Any = slice(int(rows[0]), int(rows[0]) + len(rows)) if whole else rows
        return np.asarray(self.array[:, chosen].T if self.turned else self.array[chosen], np.float32)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Integers of 2, 4 or 8 bits, low bits first, with a scale and a zero point for every block of a row."""

    codes: NDArray[np.uint8]  # (rows, columns, padded to whole blocks, * bits / 8)
    scales: NDArray[Any]  # (rows, blocks)
    zeros: NDArray[Any] | None  # (rows, blocks) floats, or packed as the codes; None: half of the codes' range
    bits: int
    block: int  # columns that share a scale
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.codes), self.columns

    def take(self, rows: Rows) -> Array:
        """See `Stored.take`: (code - zero) * scale."""
        blocks = self.scales.shape[1]
        codes = self._unpacked(self.codes[rows]).reshape(len(rows), blocks, self.block)
        zero: Any = np.float32(1 << (self.bits - 1))
        if self.zeros is not None:
            stored = self.zeros[rows]
            packed = stored.dtype == np.uint8
            zero = (self._unpacked(stored)[:, :blocks] if packed else stored.astype(np.float32))[:, :, None]
        found = (codes - zero) * self.scales[rows].astype(np.float32)[:, :, None]
        return np.asarray(found.reshape(len(rows), -1)[:, : self.columns], np.float32)

    def _unpacked(self, packed: NDArray[np.uint8]) -> Array:
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        codes = (packed[..., None] >> shifts) & np.uint8((1 << self.bits) - 1)
        return codes.reshape(len(packed), -1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows and columns of a stored matrix in the order of their use, times a factor for all or each row."""

    stored: Stored
    rows: Rows
    columns: Rows | None = None
    factor: NDArray[np.float32] | float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.stored.shape[1] if self.columns is None else len(self.columns)

    def read(self, first: int = 0, count: int | None = None) -> Array:
        """Rows first .. first + count - 1 (None: all), float32."""
        chosen = slice(first, None if count is None else first + count)
        found = self.stored.take(self.rows[chosen])
        found = found if self.columns is None else np.ascontiguousarray(found[:, self.columns])
        factor = np.asarray(self.factor, np.float32)
        if factor.ndim:
            return np.asarray(found * factor[chosen, None])
        return np.ascontiguousarray(found) if factor == 1.0 else found * factor

    def times(self, factor: float) -> Matrix:
        return self if factor == 1.0 else replace(self, factor=np.asarray(self.factor, np.float32) * np.float32(factor))

    def same(self, other: Matrix) -> bool:
        """Whether two matrices hold the same numbers; reads a part of them at a time."""
        return self.shape == other.shape and all(
            np.array_equal(self.read(first, _COMPARED_ROWS), other.read(first, _COMPARED_ROWS))
            for first in range(0, self.shape[0], _COMPARED_ROWS)
        )


def whole(stored: Stored) -> Matrix:
    """All of a stored matrix."""
    return Matrix(stored, np.arange(stored.shape[0]))


def dense(graph: DecoderGraph, name: str, turned: bool = False) -> Dense | None:
    """The constant matrix `name`, through casts and transpositions; None if it is none of two axes."""
    value, turns = name, turned
    while value not in graph.weights and graph.op(value) in ("Cast", "Identity", "Transpose"):
        turns ^= graph.op(value) == "Transpose"
        value = graph.producers[value].input[0]
    if value in graph.weights:
        array = graph.weights[value]
    elif graph.is_constant(name) and name not in graph.features:
        array, turns = graph.value(name), turned
    else:
        return None
    return Dense(array, turns) if array.ndim == 2 and array.dtype.kind not in "biu" else None


def quantised(graph: DecoderGraph, value: str) -> Blocks:
    """The matrix of a MatMulNBits, (N, K), or the table of a GatherBlockQuantized, (rows, hidden)."""
    node = graph.producers[value]
    assert node.domain == MICROSOFT
    gathers = node.op_type == "GatherBlockQuantized"
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 128 if gathers else 32))
    names = [*node.input, "", "", ""]
    codes, scales, zeros = names[0 if gathers else 1], names[2], names[3]
    extra = [] if gathers else [name for name in names[4:5] if name]  # g_idx
    axes = (attribute(node, "gather_axis", 0), attribute(node, "quantize_axis", 1)) if gathers else (0, 1)
    if bits not in (2, 4, 8) or extra or axes != (0, 1) or not all(map(graph.is_constant, (codes, scales))):
        raise graph.refuse(value, "constant codes of 2, 4 or 8 bits in blocks of their columns' order (no g_idx)")
    packed = graph.value(codes)
    if packed.dtype != np.uint8:
        raise graph.refuse(value, "codes packed in bytes (uint8)")
    rows = packed.shape[0] if gathers else int(attribute(node, "N", 0))
    packed, scale = packed.reshape(rows, -1), graph.value(scales).reshape(rows, -1)
    width = packed.shape[1] * 8 // bits
    columns = width if gathers else int(attribute(node, "K", 0))
    if width != scale.shape[1] * block or not 0 <= width - columns < block:
        raise graph.refuse(value, f"codes and scales of blocks of {block} columns")
    zero = graph.value(zeros).reshape(rows, -1) if zeros else None
    return Blocks(packed, scale, zero, bits, block, columns)


@dataclass(frozen=True, eq=False)
class GraphWeights:
    """`stic.compiler.decoder.model.Weights` of a graph: matrices from their file, vectors as they were recognised."""

    where: str
    held: Mapping[tuple[int | None, str], Matrix | Array]

    def read(self, block: int | None, role: str) -> Array | None:
        """See `stic.compiler.decoder.model.Weights.read`."""
        held = self.held.get((block, role))
        return held if held is None else self._finite(role, held.read() if isinstance(held, Matrix) else held)

    def rows(self, role: str, first: int, count: int) -> Array:
        """See `stic.compiler.decoder.model.Weights.rows`."""
        held = next(held for (_, name), held in self.held.items() if name == role)
        assert isinstance(held, Matrix)
        return self._finite(role, held.read(first, count))

    def _finite(self, role: str, array: Array) -> Array:
        if not np.isfinite(array).all():
            raise UnsupportedModelError(
                f"{self.where}: a weight ({role}) holds values that are NaN or infinite; export the model again"
            )
        return array
