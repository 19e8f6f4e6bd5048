"""Every target has every kernel, in a library that needs nothing else; the float products against numpy.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from stic.runtime.format import FEATURES, TILE
from stic.schedules.rule import kernels_for
from stic.schedules.shape import KernelShape
from stic.targets.target import load, names

# One shape, because a machine compiles all its kernels for each.
SHAPE = KernelShape(hidden=52, head_dim=20, activation="gelu", embed_epsilon=1e-5, norm_epsilon=1e-12)
ROWS = (1, 15, 16, 17, 33, 64, 100)
quick = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32 - 1)


def tiles_of(rows: int) -> int:
    return -(-rows // TILE)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_matmul(machine: Any, dtype: Any) -> None:
    rng = np.random.default_rng(6)
    calls, expected = [], []
    for rows in ROWS:
        for ks in (16, 64, 384):
            tiles, x_rows, y_rows = tiles_of(rows), ks, 32
            w, x, y = normal(rng, 16, ks).astype(dtype), normal(rng, tiles, x_rows, 16), normal(rng, tiles, y_rows, 16)
            reference = y.astype(np.float64)
            reference[:, :16] += np.einsum("nk,tkl->tnl", w.astype(np.float64), x)
            expected.append(reference)
            name = "stic_matmul_f16" if dtype == np.float16 else "stic_matmul_f32"
            calls.append((name, [w, x, y, ks, x_rows, y_rows, tiles]))
    for answer, reference in zip(machine.run(calls, SHAPE), expected, strict=True):
        np.testing.assert_allclose(answer[2], reference, rtol=1e-4, atol=1e-4)


def test_bias(machine: Any) -> None:
    rng = np.random.default_rng(7)
    y, bias = normal(rng, 3, 32, 16), normal(rng, 16)
    answer = machine.run([("stic_bias", [y, bias, 32, 3])], SHAPE)[0][0]
    assert (answer[:, :16] == bias[None, :, None]).all() and (answer[:, 16:] == y[:, 16:]).all()


@pytest.mark.parametrize("name", names())
def test_every_target_has_every_kernel(name: str) -> None:
    symbols = [str(function.attrs["global_symbol"]) for function in kernels_for(load(name), SHAPE)]
    by_width = {f"{kind}_b{bits}" for kind in ("unpack", "rows") for bits in range(2, 9)}
    products = "dot dot_activated rows_finish rows_finish_activated outliers rows_outliers matmul_f16 matmul_f32"
    rest = "attention embed embed_f16 quantize activation bias add_norm"
    assert sorted(symbols) == sorted(f"stic_{name}" for name in (*by_width, *products.split(), *rest.split()))
    assert set(load(name).features) <= set(FEATURES)


def test_objects_need_nothing(machine: Any) -> None:
    """The library exports stic_* alone and has no undefined symbol: no libm, no libc, no TVM."""
    tool = "aarch64-linux-gnu-nm" if machine.emulator else "nm"
    library = machine.kernels(SHAPE)
    listed = subprocess.run([tool, "-D", library], capture_output=True, text=True, check=True).stdout
    kinds = {line.split()[-1]: line.split()[-2] for line in listed.splitlines()}
    assert kinds and all(kind == "T" and name.startswith("stic_") for name, kind in kinds.items())


def test_shape_refusals() -> None:
    with pytest.raises(ValueError, match="not one of"):
        KernelShape(16, 16, "swish", 1e-5, 1e-5)
    with pytest.raises(ValueError, match="must be positive"):
        KernelShape(0, 16, "gelu", 1e-5, 1e-5)
    with pytest.raises(ValueError, match="epsilon"):
        KernelShape(16, 16, "gelu", 0.0, 1e-5)
