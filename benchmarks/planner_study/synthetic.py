"""Made-up problems with the structure of real ones, for random studies and for property tests.

Gains follow what quantisation does: the error of a shard falls about fourfold with every bit, its weight is
log-normal over layers and slices and mostly falls with the slice index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler import offers
from stic.compiler.memory.placement import Sizes, fixed_bytes
from stic.compiler.plan import BlockCost, Budget, ComputeCost, IoCost, Problem
from stic.compiler.store import Store, lay_out
from stic.runtime.layout import Shape, row_stride

BITS = (*offers.BITS, 16)


@dataclass(frozen=True)
class Geometry:
    """An encoder's sizes."""

    name: str
    shape: Shape
    layers: int
    vocabulary: int

    @property
    def slices(self) -> int:
        """Of each layer."""
        return self.shape.slices


BERT_BASE = Geometry("bert-base", Shape.layer(768, 12, 1, 64, 256), 12, 30522)
BERT_LARGE = Geometry("bert-large", Shape.layer(1024, 16, 1, 64, 256), 24, 30522)
MINILM = Geometry("minilm-l6", Shape.layer(384, 12, 1, 32, 128), 6, 30522)


@dataclass(frozen=True)
class Device:
    """Storage and compute of a phone-like device."""

    name: str
    bytes_per_s: float
    request_us: float
    row_us: float
    macs_per_s: float


DEVICES = (
    Device("emmc-a73", 150e6, 250.0, 180.0, 40e9),
    Device("ufs2-a76", 500e6, 120.0, 60.0, 120e9),
    Device("ufs3-x1", 1500e6, 60.0, 25.0, 300e9),
)


def store_of(geometry: Geometry, seed: int = 0, nested: bool = True, full_bits: int = 16) -> Store:
    """A store whose outlier counts vary between 0.1 and 0.3 % of the weights."""
    rng = np.random.default_rng(seed)
    weights = [n * k for n, k in map(geometry.shape.matrix, geometry.shape.matrices)]
    rate = rng.uniform(0.001, 0.003, (geometry.layers, geometry.slices, 1))
    return lay_out((geometry.shape,) * geometry.layers, (rate * weights).astype(np.int64), nested, full_bits)


def gains(
    layers: int, slices: int, bits: tuple[int, ...], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(gain (layers, slices, bits), presence (layers, slices)) of one made-up task."""
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0, 0.6, (layers, 1)) * rng.lognormal(0, 0.5, (layers, slices))
    if seed % 4:
        weight = -np.sort(-weight, axis=1)  # importance falls with the slice index; every fourth task: not quite
    rate = rng.uniform(1.0, 1.4, (layers, slices, 1))
    error = np.exp(-rate * (np.array(bits) - bits[0]))
    error[:, :, -1] *= rng.uniform(0, 1, (layers, slices))
    gain = weight[:, :, None] * (1 - error)
    gain[:, :, 0] = 0
    return gain, weight * rng.uniform(1.5, 3.0, (layers, slices))


def costs_of(geometry: Geometry, device: Device, length: int, bits: tuple[int, ...]) -> tuple[IoCost, ComputeCost]:
    """Costs by counting multiplications; unpacking costs a little more with every plane."""
    weights = geometry.shape.weights
    slice_us = 1e6 * weights * length / device.macs_per_s
    unpack_us = 1e6 * weights / device.macs_per_s * 8
    io = IoCost(device.request_us, device.bytes_per_s, 1 << 18, device.row_us)
    by_bits = {b: slice_us * (4.0 if b > 8 else 1.0) + unpack_us * (0 if b > 8 else b / 8) for b in bits}
    layer_us = 0.05 * slice_us * geometry.slices
    return io, ComputeCost((BlockCost(layer_us, by_bits),), layer_us, layer_us, 20.0)


def problem_of(
    geometry: Geometry,
    device: Device,
    seed: int,
    budget: Budget,
    elastic: bool = False,
    length: int = 128,
    bits: tuple[int, ...] = BITS,
    nested: bool = True,
) -> Problem:
    """A whole problem."""
    store = store_of(geometry, seed, nested, max(bits) if max(bits) > 8 else 0)
    gain, presence = gains(geometry.layers, geometry.slices, bits, seed)
    io, compute = costs_of(geometry, device, length, bits)
    hidden = geometry.shape.hidden
    stride = row_stride(hidden)
    sizes = Sizes(store.shapes, length, 4 * hidden * 600, stride, hidden, hidden, 2, 2, 8, 1 << 16)
    return Problem(
        store, bits, gain, presence, elastic, io, compute, length,
        fixed_bytes(sizes, store), -(-geometry.vocabulary * stride // 4096) * 4096, budget,
    )  # fmt: skip
