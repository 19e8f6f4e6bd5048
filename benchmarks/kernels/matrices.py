"""Random matrices as a package holds them, in the driver's memory, and what their products must be."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels import driver as c
from stic.runtime.format import TILE
from stic.schedules.pack import unpack_planes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """(n, k) weights, cut into slices of k."""

    name: str
    n: int
    k: int
    slices: int

    @property
    def ks(self) -> int:
        """Columns of a slice."""
        return self.k // self.slices

    @classmethod
    def of(cls, case: Mapping[str, Any]) -> Shape:
        """From cases.json."""
        return cls(case["name"], case["n"], case["k"], case["slices"])


@dataclass(frozen=True)
class Set:
    """`count` different matrices of one shape and bitwidth, an input, and the driver's view of both."""

    shape: Shape
    bits: int
    count: int
    weights: c.Memory  # all that a product reads of the matrices, and nothing else
    inputs: c.Memory  # the rest
    product: c.Product
    x: NDArray[np.int8]  # (tokens, k)
    arrays: dict[str, NDArray[Any]]  # xscale and y of the product, in `inputs`
    last: list[dict[str, NDArray[Any]]]  # the slices of the last matrix
    scale: NDArray[np.float32]  # (n) of the last matrix
    bias: NDArray[np.float32]

    @property
    def bytes(self) -> int:
        """Bytes of weights that one product of all matrices reads."""
        return self.weights.used_bytes

    def macs(self, tokens: int) -> int:
        """Multiply-adds of one product of all matrices."""
        return self.count * self.shape.n * self.shape.k * tokens

    def with_tokens(self, tokens: int) -> c.Product:
        """The same product over the first tokens only, which lie close together as when a decoder made them."""
        product, q = c.Product.from_buffer_copy(self.product), self.product.interleave
        pitch = 1 << (tokens - 1).bit_length()  # the kernels have loops for powers of two
        packed = np.zeros((self.shape.k // q, pitch, q), np.int8)
        packed[:, :tokens] = self.x[:tokens].reshape(tokens, -1, q).transpose(1, 0, 2)
        self.arrays[f"x of {tokens}"] = self.inputs.put(packed)
        product.tokens, product.x_pitch = tokens, pitch * q
        product.x = _pointer(self.arrays[f"x of {tokens}"], ctypes.c_int8)
        return product

    def check(self, tokens: int) -> None:
        """Compare y, which the last matrix's product left behind, with numpy. Raises ArithmeticError."""
        tiles = -(-tokens // TILE)
        y = self.arrays["y"].reshape(-1)[: tiles * self.shape.n * TILE].reshape(tiles, self.shape.n, TILE)
        found = y.transpose(0, 2, 1).reshape(-1, self.shape.n)[:tokens]
        expected = self._expected()[:tokens]
        error = np.abs(found - expected).max() / np.abs(expected).max()
        if not error < 1e-5:
            raise ArithmeticError(f"{self.shape.name} at {self.bits} bits, {tokens} tokens: wrong by {error:.1e}")

    def _expected(self) -> Floats:
        """What the last matrix's product is, (tokens, n)."""
        q = self.product.interleave
        y = np.zeros((len(self.x), self.shape.n))
        for number, part in enumerate(self.last):
            codes = unpack_planes(list(part["planes"]), (self.shape.n, self.shape.ks), q)
            weights = part["table"].astype(np.float64)[codes]
            weights *= self.scale[:, None].astype(np.float64)
            entries, starts = part["entries"].reshape(-1, 2), part["starts"].astype(int)
            block = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
            position = entries[:, 0].astype(int)
            row = block * TILE + position // q % TILE
            weights[row, position // (TILE * q) * q + position % q] = entries[:, 1].view(np.float16)
            y += self.x[:, number * self.shape.ks :][:, : self.shape.ks].astype(np.float64) @ weights.T
        return self.arrays["xscale"].reshape(-1)[: len(y), None] * y + self.bias


def make(
    library: ctypes.CDLL, shape: Shape, bits: int, count: int, tokens: int, threads: int, interleave: int, rate: float
) -> Set:
    """Draw matrices whose share `rate` of weights are outliers, and an input of so many tokens."""
    rng = np.random.default_rng(bits)
    plane_bytes = shape.n * shape.ks // 8
    part_bytes = bits * plane_bytes + 4 * round(rate * shape.n * shape.ks) + 4 * shape.n + 512
    weights = c.Memory(library, count * (shape.slices * part_bytes + 8 * shape.n + 128))
    parts, rows = (c.Slice * (count * shape.slices))(), (c.Rows * count)()
    scale = rng.uniform(0.001, 0.01, (count, shape.n)).astype(np.float32)
    bias = rng.normal(size=(count, shape.n)).astype(np.float32)
    last: list[dict[str, NDArray[Any]]] = []
    for number in range(count):
        last = [_slice(rng, shape, bits, rate) for _ in range(shape.slices)]
        for i, part in enumerate(last):
            placed = {name: weights.put(value) for name, value in part.items()}
            view = parts[number * shape.slices + i]
            view.planes[:bits] = [_pointer(plane, ctypes.c_uint8) for plane in placed["planes"]]
            view.table, view.entries, view.starts = (
                _pointer(placed["table"], ctypes.c_int8),
                _pointer(placed["entries"], ctypes.c_uint16),
                _pointer(placed["starts"], ctypes.c_uint32),
            )
        rows[number].scale = _pointer(weights.put(scale[number]), ctypes.c_float)
        rows[number].bias = _pointer(weights.put(bias[number]), ctypes.c_float)
    tiles = -(-tokens // TILE)
    x = rng.integers(-127, 128, (tiles * TILE, shape.k)).astype(np.int8)
    packed = x.reshape(tiles, TILE, shape.k // interleave, interleave).transpose(0, 2, 1, 3)
    values = {
        "x": packed,
        "xsum": x.sum(1, dtype=np.int32).reshape(tiles, TILE),
        "xscale": rng.uniform(0.01, 0.1, (tiles, TILE)).astype(np.float32),
        "y": np.zeros((tiles, shape.n, TILE), np.float32),
        "extra": np.zeros((threads, tiles * TILE * TILE), np.float32),
        "panels": np.zeros((threads, TILE * shape.k), np.uint8),
    }
    few = 64 * TILE + 2 * TILE * shape.k  # what with_tokens adds
    inputs = c.Memory(library, few + sum(value.nbytes + 64 for value in values.values()))
    arrays = {name: inputs.put(value) for name, value in values.items()}
    types = {"x": ctypes.c_int8, "xsum": ctypes.c_int32, "panels": ctypes.c_uint8}
    pointers = {name: _pointer(value, types.get(name, ctypes.c_float)) for name, value in arrays.items()}
    sizes = (bits, count, shape.slices, shape.n, shape.ks, tokens, interleave, TILE * interleave)
    product = c.Product(*sizes, parts=parts, rows=rows, **pointers)
    return Set(shape, bits, count, weights, inputs, product, x[:tokens], arrays, last, scale[-1], bias[-1])


def _slice(rng: np.random.Generator, shape: Shape, bits: int, rate: float) -> dict[str, NDArray[Any]]:
    """One slice, in the order in which it lies in memory."""
    block, blocks = TILE * shape.ks, shape.n // TILE
    each = round(rate * block)
    planes = rng.integers(0, 256, (bits, shape.n * shape.ks // 8), np.uint8)
    # One outlier in each of `each` equal stretches of a block: sorted, and no position twice.
    stretch = block // max(each, 1)
    position = stretch * np.arange(each) + rng.integers(0, stretch, (blocks, each))
    flat = (position + block * np.arange(blocks)[:, None]).reshape(-1)
    bit = (1 << (flat % 8)).astype(np.uint8)  # the code of an outlier is 2^(bits-1)
    np.bitwise_or.at(planes[0], flat // 8, bit)
    for plane in planes[1:]:
        np.bitwise_and.at(plane, flat // 8, ~bit)
    entries = np.empty((blocks, each, 2), np.uint16)
    entries[..., 0] = position
    entries[..., 1] = rng.normal(size=(blocks, each)).astype(np.float16).view(np.uint16)
    return {
        "planes": planes,
        "table": np.linspace(-120, 120, 1 << bits).astype(np.int8),
        "starts": (each * np.arange(blocks + 1)).astype(np.uint32),
        "entries": entries,
    }


def _pointer(values: NDArray[Any], kind: type[Any]) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(kind))
