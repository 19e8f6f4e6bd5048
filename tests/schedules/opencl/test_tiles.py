"""The kernels that take a tile each: stic_add_norm, stic_embed, stic_quantize."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stic.runtime.arithmetic import layer_norm, quantize
from stic.runtime.layout import pad
from stic.runtime.layout import row_stride as stride_of
from stic.schedules.opencl import embed, norm
from stic.schedules.opencl import quantize as quantize_
from stic.schedules.opencl.program import Kernel, assemble
from stic.schedules.shape import KernelShape

STORAGES = ("float16", "float32")
# Results differ from numpy's in the order of sums; half precision then rounds to 11 bits.
TOLERANCE = {"float16": 2.0**-11, "float32": 2e-6}


def shape_of(hidden: int) -> KernelShape:
    return KernelShape(hidden, 8, "gelu", 1e-12, 1e-5)


def tiled(x: np.ndarray, storage: str = "float32") -> np.ndarray:
    """(features, 16 * tiles) as (tiles, pad16(features), 16), padded with zeros."""
    features, tokens = x.shape
    out = np.zeros((tokens // 16, pad(features, 16), 16), storage)
    out[:, :features] = x.reshape(features, -1, 16).swapaxes(0, 1)
    return out


def untiled(x: np.ndarray, features: int) -> np.ndarray:
    """(tiles, rows, 16) as (features, 16 * tiles), in float32."""
    return x[:, :features].swapaxes(0, 1).reshape(features, -1).astype(np.float32)


def run(device, kernel: Kernel, grid: tuple[int, ...], arguments: list, arithmetic: int = 0) -> list[np.ndarray]:
    return device.run(assemble([kernel]).text, {"DOT": arithmetic, "WIDTHS": 0}, kernel.launch, grid, arguments)


def close(storage: str, size: float = 1.0) -> Callable[[np.ndarray, np.ndarray], None]:
    tolerance = TOLERANCE[storage]
    return lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=size * tolerance)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("hidden", "tiles"),
    [pytest.param(24, 2, id="tiny"), pytest.param(384, 3, id="384"), pytest.param(1000, 1, id="1000")],
)
def test_add_norm_normalises_the_sum(device, storage, hidden, tiles):
    rng = np.random.default_rng(hidden)
    x = (rng.standard_normal((hidden, 16 * tiles)) + 3).astype(storage)
    y = (2 * rng.standard_normal(x.shape) - 5).astype(np.float32)
    trunk = rng.standard_normal(3 * hidden).astype(np.float32)
    gamma_at, beta_at = 7, 2 * hidden - 3
    kernel = norm.add_norm("mali", shape_of(hidden), storage)
    out = run(device, kernel, (tiles,), [tiled(x, storage), tiled(y), trunk, gamma_at, beta_at, tiles])[0]
    gamma, beta = trunk[gamma_at : gamma_at + hidden], trunk[beta_at : beta_at + hidden]
    close(storage, 4)(untiled(out, hidden), layer_norm(x.astype(np.float32) + y, gamma, beta, 1e-5))
    assert not out[:, hidden:].any()  # padding becomes zero, whatever was there


def test_groups_beyond_the_last_tile_do_nothing(device):
    x = np.ones((3, 32, 16), np.float32)
    kernel = norm.add_norm("mali", shape_of(24), "float32")
    out = run(device, kernel, (3,), [x, x, np.ones(48, np.float32), 0, 24, 1])[0]
    assert (out[1:] == 1).all() and (out[0, 24:] == 0).all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("hidden", "n"), [pytest.param(22, 5, id="tiny"), pytest.param(384, 40, id="384"), pytest.param(48, 16, id="48")]
)
def test_embed_adds_the_tables_and_normalises(device, storage, hidden, n):
    rng = np.random.default_rng(n)
    padded, stride, tiles = pad(hidden, 16), stride_of(hidden), -(-n // 16)
    codes = rng.integers(-127, 128, (n, hidden)).astype(np.int8)
    scales = rng.uniform(0.5, 2, n).astype(np.float32)
    rows = rng.integers(0, 256, (n, stride)).astype(np.uint8)  # what follows a row is not read
    rows[:, :hidden] = codes.view(np.uint8)
    rows[:, pad(hidden, 4) : pad(hidden, 4) + 4] = scales[:, None].view(np.uint8)
    types = rng.integers(0, 3, n).astype(np.int32)
    position, kinds = (np.zeros((count, padded), np.float16) for count in (n, 3))
    position[:, :hidden] = 40 * rng.standard_normal((n, hidden))
    kinds[:, :hidden] = 40 * rng.standard_normal((3, hidden))
    gamma, beta = rng.standard_normal((2, hidden)).astype(np.float32)
    halfs = [table.view(np.float32).ravel() for table in (position, kinds)]
    trunk = np.concatenate([np.zeros(5, np.float32), gamma, beta, *halfs])
    position_at = 2 * (5 + 2 * hidden)
    scalars = [n, stride, position_at, position_at + position.size, 5, 5 + hidden]
    kernel = embed.embed("mali", shape_of(hidden), storage)
    x = np.full((tiles, padded, 16), np.nan, storage)
    out = run(device, kernel, (tiles,), [rows, types, trunk, trunk.view(np.float16), x, *scalars])[4]
    raw = codes.astype(np.float32) * scales[:, None] + position[:, :hidden].astype(np.float32) + kinds[types, :hidden]
    values = untiled(out, hidden)
    close(storage, 4)(values[:, :n], layer_norm(raw.T, gamma, beta, 1e-12))
    assert np.isfinite(values).all()  # lanes past the last token too
    assert not out[:, hidden:].any()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("width", "tiles"),
    [pytest.param(16, 2, id="tiny"), pytest.param(384, 3, id="384"), pytest.param(1520, 1, id="1520")],
)
def test_quantize_is_the_references(device, storage, width, tiles):
    """Codes are those of numpy but for divisions, which OpenCL may round otherwise: one code of a rounding boundary."""
    rng = np.random.default_rng(width)
    x = (rng.standard_normal((width, 16 * tiles)) * rng.uniform(0, 100, 16 * tiles)).astype(storage)
    x[:, 3], x[0, 4], x[1, 5] = 0, -200, 200
    x[1:, 6], x[0, 6] = np.arange(1, width), 254  # codes at boundaries: halves round to even
    outputs = [
        np.zeros((tiles, width // 4, 16, 4), np.int8),
        np.zeros((tiles, 16), np.float32),
        np.zeros((tiles, 16), np.int32),
    ]
    kernel = quantize_.quantize("mali", shape_of(24), storage)
    _, xq, scale, total = run(device, kernel, (tiles,), [tiled(x, storage), *outputs, width, tiles], arithmetic=4)
    codes = xq.transpose(1, 3, 0, 2).reshape(width, -1)
    expected, scales = quantize(x.astype(np.float32))
    assert np.abs(codes - expected).max() <= 1 and np.mean(codes != expected) < 1e-4
    np.testing.assert_allclose(scale.ravel(), scales, rtol=1e-6)
    assert (total.ravel() == codes.astype(int).sum(axis=0)).all()
    assert not codes[:, 3].any()


def test_tokens_without_a_feature_that_counts_quantise_to_zero(device):
    x = np.zeros((1, 16, 16), np.float32)
    x[0, :, 0], x[0, :, 1] = 3e-37, 1e-38
    x[0, :, 2] = 1
    outputs = [np.zeros((1, 4, 16, 4), np.int8), np.zeros((1, 16), np.float32), np.zeros((1, 16), np.int32)]
    kernel = quantize_.quantize("mali", shape_of(24), "float32")
    xq = run(device, kernel, (1,), [x, *outputs, 16, 1], arithmetic=4)[1]
    assert not xq[0, :, [0, 1, 3]].any() and (xq[0, :, 2] == 127).all()
