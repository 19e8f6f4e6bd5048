"""stic_gemm_* and stic_gemv_*: products, outliers and epilogues, on numbers whose sums are exact in any order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stic.runtime.arithmetic import activation
from stic.runtime.blocks import positions
from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.opencl.gemm import gemm_kernels
from stic.schedules.opencl.product import ACCUMULATE, ACTIVATED, FULL, JOINED, Product
from stic.schedules.opencl.program import FLOAT_WEIGHTS, HALF_WEIGHTS, Kernel, assemble
from stic.schedules.opencl.source import lower
from stic.schedules.pack import pack_planes
from stic.schedules.shape import KernelShape

STYLES = ("mali", "adreno")
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
FULL_DTYPES = {HALF_WEIGHTS: "<f2", FLOAT_WEIGHTS: "<f4"}
SCALE, TOKEN_SCALE, BIAS = 2.0**-7, 2.0**-5, 2.0**-6  # of which rows and tokens have small multiples


@cache
def kernel_of(product: Product, style: str, kind: str) -> tuple[Kernel, str]:
    """A kernel and the text of a program with it alone."""
    kernels = gemm_kernels(style, product.shape, product.storage, product.q)
    name = f"stic_{kind}_{product.suffix}"
    (kernel,) = (each for each in kernels if (each.launch.name, each.condition) == (name, product.condition))
    return kernel, assemble([kernel]).text


@dataclass(frozen=True)
class Matrices:
    """Matrices of the slices of a run, as numbers and as the memory that kernels read."""

    weights: list[np.ndarray]  # (rows, columns) float64
    memory: np.ndarray
    codes: np.ndarray  # (entries, 12)


class Memory:
    """Byte strings at multiples of 64, with other bytes between."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.bytes = rng, bytearray(rng.bytes(64))

    def add(self, data: np.ndarray) -> int:
        at = len(self.bytes)
        self.bytes += data.tobytes()
        self.bytes += self.rng.bytes(-len(self.bytes) % 64 + 64 * int(self.rng.integers(1, 3)))
        return at


def matrices(product: Product, shape: tuple[int, int], scale: np.ndarray, first: int) -> Matrices:
    """Random matrices of slices with `scale` (slices, rows); entry `first` of `codes` is that of the first slice."""
    width, (slices, rows) = product.width, scale.shape
    rng = np.random.default_rng(width)
    memory, codes = Memory(rng), rng.integers(0, 1 << 20, (first + slices, 12)).astype(np.uint32)
    weights = []
    for s in range(slices):
        if width in FULL:
            weights.append(rng.integers(-64, 65, shape) / 64)
            codes[first + s, 0] = memory.add(weights[-1].astype(FULL_DTYPES[width]))
            continue
        count, middle = 1 << width, 1 << (width - 1)
        table = np.resize(rng.permutation(255) - 127, count).astype(np.int8)
        code = rng.integers(0, count, shape).astype(np.uint8)
        chosen = rng.random(shape) < 0.02
        chosen[:16] &= s != 1  # a block without outliers
        code[chosen] = middle
        value = rng.integers(-40, 41, shape) / 16
        weights.append(np.where(chosen, value, scale[s, :, None] * table[code]))
        for p, plane in enumerate(pack_planes(code, width, product.q)):
            codes[first + s, p] = memory.add(plane)
        row, column = np.nonzero(chosen)
        place = positions(row, column, product.q)
        order = np.lexsort((place, row // 16))
        entries = np.zeros(len(order), [("position", "<u2"), ("value", "<f2")])
        entries["position"], entries["value"] = place[order], value[row, column][order]
        starts = np.searchsorted(row[order] // 16, np.arange(rows // 16 + 1)).astype("<u4")
        codes[first + s, 8:12] = memory.add(table), memory.add(starts), memory.add(entries), 0
    return Matrices(weights, np.frombuffer(bytes(memory.bytes), np.uint8), codes)


def tiled(x: np.ndarray) -> np.ndarray:
    """(features, 16 * tiles) as (tiles, features, 16)."""
    return np.ascontiguousarray(x.reshape(len(x), -1, 16).swapaxes(0, 1))


def untiled(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


@dataclass(frozen=True)
class Case:
    """One launch."""

    product: Product
    style: str
    kind: str  # "gemm" or "gemv"
    rows: int
    columns: int
    slices: int
    n: int
    flags: int

    def run(self, device) -> tuple[np.ndarray, np.ndarray]:
        """(result, expected), both (rows of the run, n). Fails if anything else was written."""
        product, rng = self.product, np.random.default_rng(self.columns)
        joined, integers = bool(self.flags & JOINED), product.integers
        tokens, first = 16 * -(-self.n // 16), 3
        x_first, y_first = (32, 0) if joined else (0, 16)
        features = x_first + self.columns * (self.slices if joined else 1) + 16
        x = rng.integers(-8, 9, (features, tokens)) * (15 if integers else 0.125)
        scale = SCALE * rng.integers(1, 4, (1 if joined else self.slices, self.rows))
        bias = BIAS * rng.integers(-50, 51, scale.size)
        token_scale = TOKEN_SCALE * rng.integers(1, 3, tokens)
        data = matrices(product, (self.rows, self.columns), np.broadcast_to(scale, (self.slices, self.rows)), first)

        if joined:
            parts = [w @ x[x_first + s * self.columns :][: self.columns] for s, w in enumerate(data.weights)]
            expected = np.sum(parts, axis=0)
        else:
            expected = np.concatenate([w @ x[: self.columns] for w in data.weights])
        total = len(expected)
        y = (rng.integers(-50, 51, (total + 32, tokens)) / 4).astype(np.float32)
        expected = expected * token_scale if integers else expected
        expected = expected + (y[:total] if self.flags & ACCUMULATE else bias[:, None])
        if self.flags & ACTIVATED:
            expected = activation(product.shape.activation)(expected.astype(np.float32))

        unused = np.full(1, np.nan, product.storage)
        xs = unused if integers else tiled(x).astype(product.storage)
        xq: NDArray[np.int8] = np.zeros(1, np.int8)
        if integers:
            xq = tiled(x).reshape(-1, features // 4, 4, 16).swapaxes(2, 3).astype(np.int8).copy()
        trunk = np.concatenate([np.full(5, np.nan), scale.ravel(), [np.nan], bias]).astype(np.float32)
        memory, out = data.memory, tiled(y).astype(product.storage)
        arguments = [
            *(memory, memory.view("<u4"), memory.view("<f2"), data.codes, trunk, xs, xq),
            *(token_scale.astype(np.float32), np.zeros(1, np.int32), tiled(y), out),
            *(first, self.slices, self.rows // 16, self.columns, features, total + 32),
            *(5, 5 + scale.size + 1, self.n, self.flags, x_first, y_first),
        ]
        kernel, text = kernel_of(product, self.style, self.kind)
        grid = (total, self.n) if self.kind == "gemm" else (total,)
        defines = {"DOT": 4 if integers else 0, "WIDTHS": 1 << product.width}
        y_after, out_after = device.run(text, defines, kernel.launch, grid, arguments)[9:11]

        (written, before), (kept, same) = [(y_after, tiled(y)), (out_after, out)][:: 1 if joined else -1]
        np.testing.assert_array_equal(kept, same)
        mine = slice(y_first, y_first + total)
        np.testing.assert_array_equal(*(np.delete(array, mine, axis=1) for array in (written, before)))
        return untiled(written)[mine, : self.n], expected[:, : self.n]


RELU = KernelShape(48, 16, "relu", 1e-12, 1e-12)
# (rows, columns, slices, n, flags); all of a kernel in one test, because compiling it takes longer than running it.
TINY = ((16, 16, 2, 1, JOINED), (32, 16, 2, 8, ACTIVATED))
LARGER = (
    (16, 48, 1, 5, 0),
    (80, 16, 3, 9, JOINED),
    (32, 384, 2, 40, JOINED | ACCUMULATE),
    (48, 112, 3, 33, 0),
    (32, 64, 5, 8, JOINED),
)


def quantised() -> list[Any]:
    """Every width, style and arithmetic, tiny cases apart; interleaves and storages take turns."""
    products = []
    for width, integers in itertools.product(WIDTHS, (False, True)):
        storage: GpuPrecision = "float32" if (width + integers) % 2 else "float16"
        product = Product(width, integers, 8 if (width + integers) % 3 == 0 else 4, storage, RELU)
        for style, kind in (("mali", "gemm"), ("adreno", "gemm"), ("mali", "gemv")):  # gemv is one text for both
            name = f"{style}-{kind}-{product.suffix}-{'int8' if integers else 'float'}"
            products.append(pytest.param(product, style, kind, LARGER, id=name))
            if width % 2 == integers:  # one arithmetic of each is enough for what is slow
                products.append(pytest.param(product, style, kind, TINY, id=f"tiny-{name}"))
    return products


@pytest.mark.parametrize(("product", "style", "kind", "cases"), quantised())
def test_quantised_products_are_exact(device, product, style, kind, cases):
    check(device, product, style, kind, cases)


@pytest.mark.parametrize("cases", [pytest.param(TINY, id="tiny"), pytest.param(LARGER, id="larger")])
@pytest.mark.parametrize("kind", ("gemm", "gemv"))
@pytest.mark.parametrize(("width", "storage"), [(HALF_WEIGHTS, "float32"), (FLOAT_WEIGHTS, "float16")])
def test_products_at_full_precision_are_exact(device, width, storage, kind, cases):
    check(device, Product(width, False, 4, storage, RELU), "mali", kind, cases)


def check(device, product: Product, style: Style, kind: str, cases: Iterable[tuple[int, ...]]) -> None:
    for case in cases:
        if kind == "gemv" and case[3] > 8:
            continue
        result, expected = Case(product, style, kind, *case).run(device)
        stored = "float32" if case[-1] & JOINED else product.storage
        # Numbers are such that all sums are exact, in any order; results are rounded once, where they are stored.
        np.testing.assert_array_equal(result, expected.astype(stored), str(case))


@pytest.mark.parametrize("activation", ("gelu", "gelu_tanh"))
@pytest.mark.parametrize("kind", ("gemm", "gemv"))
def test_activation_follows_the_product(device, kind, activation):
    shape = KernelShape(48, 16, activation, 1e-12, 1e-12)
    case = Case(Product(3, False, 4, "float32", shape), "mali", kind, 32, 48, 2, 8, ACTIVATED)
    result, expected = case.run(device)
    # numpy's is within 1e-6 of the size of x; the device's erf and exp are within 16 ulp of a number up to 1.
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))


def test_every_kind_has_one_kernel_for_each_width_and_arithmetic():
    for style in STYLES:
        kernels = gemm_kernels(style, RELU, "float16", 4)
        names = [kernel.launch.name for kernel in kernels]
        suffixes = [*(f"b{width}" for width in WIDTHS for _ in range(2)), *FULL.values()]
        assert sorted(names) == sorted(f"stic_{kind}_{suffix}" for kind in ("gemm", "gemv") for suffix in suffixes)
        assert len({(kernel.launch.name, kernel.condition) for kernel in kernels}) == len(kernels)
        program = assemble(kernels)  # raises if the two arithmetics of a name were launched in different ways
        assert len(program.launches) == 2 * (len(WIDTHS) + len(FULL))
        assert program == assemble(gemm_kernels(style, RELU, "float16", 4))


def test_local_memory_is_small_and_none_is_used_for_tiles_on_mali():
    for style, most in (("mali", 0), ("adreno", 16384)):
        for kernel in gemm_kernels(style, RELU, "float16", 8):
            used = kernel.launch.local_bytes
            assert used <= (most if "gemm" in kernel.launch.name else 8192)
            assert ("__local" in lower(kernel.function)) == (used > 0)
