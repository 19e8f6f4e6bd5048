"""The reference's projections against plain matrix products in float64. No kernels are compiled."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.arithmetic import quantize
from stic.runtime.format import MATRICES
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.reference_layers import _products

BITS = ((16, 8, 5, 2), (6, 4, 3, 3), (16, 16, 16, 16))
TOKENS = 7


@pytest.fixture(scope="module", params=["x86-64-v3", "aarch64-i8mm"])
def reference(request: pytest.FixtureRequest, make_package: Callable[..., Path]) -> Reference:
    return Reference(Package.open(make_package(BITS, target=request.param, compiled=False)))


def trunk(reference: Reference, layer: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scales and biases of one matrix, (slices, N); the same for all slices where they share them."""
    package, row = reference.package, reference.package.blocks[layer]
    shape = package.shapes[layer]
    n, slices = shape.matrix(name)[0], shape.slices
    size = (slices, n) if name in ("qkv", "up") else (1, n)
    scale, bias = (package.tensor(int(row[f"{name}_{part}_at"]), "<f4", *size) for part in ("scale", "bias"))
    return np.broadcast_to(scale, (slices, n)), np.broadcast_to(bias, (slices, n))


def dense(reference: Reference, layer: int, s: int, name: str) -> np.ndarray:
    """The weights of a shard in float64, as the format defines them."""
    matrix = reference.package.matrix(layer, s, name, int(reference.package.bits[layer, s]))
    if matrix.weight is not None:
        return matrix.weight.astype(np.float64)
    assert matrix.codes is not None and matrix.table is not None and len(matrix.outlier_rows) > 0
    weight = trunk(reference, layer, name)[0][s][:, None].astype(np.float64) * matrix.table[matrix.codes]
    weight[matrix.outlier_rows, matrix.outlier_columns] = matrix.outlier_values
    return weight


def seen(reference: Reference, layer: int, s: int, x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The input as a shard's kernel sees it: as it is at full precision, else quantised."""
    return x.astype(np.float64) if reference.package.bits[layer, s] > 8 else codes * scale.astype(np.float64)


def activations(rows: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((rows, TOKENS)).astype(np.float32)


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize("name", ["qkv", "up"])
@pytest.mark.parametrize("layer", range(len(BITS)))
def test_rows_that_belong_to_slices(reference: Reference, layer: int, name: str) -> None:
    row, x = reference.package.blocks[layer], activations(reference.package.shapes[layer].matrix(name)[1])
    outputs = reference.cpu.split(layer, name, x, int(row[f"{name}_scale_at"]), int(row[f"{name}_bias_at"]))
    codes, scale = quantize(x)
    bias = trunk(reference, layer, name)[1]
    assert len(outputs) == len(BITS[layer])
    for s, got in enumerate(outputs):
        inputs = seen(reference, layer, s, x, codes, scale)
        assert_close(got, dense(reference, layer, s, name) @ inputs + bias[s][:, None])


@pytest.mark.parametrize("name", ["out", "down"])
@pytest.mark.parametrize("layer", range(len(BITS)))
def test_columns_that_belong_to_slices(reference: Reference, layer: int, name: str) -> None:
    row, width = reference.package.blocks[layer], reference.package.shapes[layer].matrix(name)[1]
    inputs = np.split(activations(width * len(BITS[layer])), len(BITS[layer]))
    got = reference.cpu.join(layer, name, inputs, int(row[f"{name}_scale_at"]), int(row[f"{name}_bias_at"]))
    codes, scale = quantize(np.concatenate(inputs))
    want = trunk(reference, layer, name)[1][0][:, None].astype(np.float64)
    for s, x in enumerate(inputs):
        part = codes[s * width : (s + 1) * width]
        want = want + dense(reference, layer, s, name) @ seen(reference, layer, s, x, part, scale)
    assert_close(got, want[: reference.package.hidden])


def test_products_count_outliers_by_their_code(reference: Reference) -> None:
    for name in MATRICES["layer"]:
        matrix = reference.package.matrix(0, 1, name, 8)
        assert matrix.codes is not None and matrix.table is not None
        x = np.random.default_rng(6).integers(-127, 128, (matrix.codes.shape[1], 3)).astype(np.int32)
        want = matrix.table.astype(np.int64)[matrix.codes] @ x.astype(np.int64)
        np.testing.assert_array_equal(_products(matrix, x), want)


def test_the_interleave_does_not_change_the_answer(make_package: Callable[..., Path]) -> None:
    """Within a row, outliers are stored by column at either interleave: every float sum has one order."""
    four, eight = (
        Reference(Package.open(make_package(BITS, target=target, compiled=False)))
        for target in ("aarch64-dotprod", "aarch64-i8mm")
    )
    ids = np.random.default_rng(1).integers(0, 1000, 19)
    np.testing.assert_array_equal(four.run(ids), eight.run(ids))
