"""Elementary functions, norms, quantisation and embedding of every target: the bits of `stic.runtime.arithmetic`, which
tests/runtime/test_arithmetic.py holds against float64; no access past a buffer's end.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stic.runtime import arithmetic
from stic.runtime.format import TILE
from stic.schedules.cpu import vector_math
from stic.schedules.cpu.isa import panel_zero
from stic.schedules.pack import interleave, pad16
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, build, kernel, load, loop, store
from stic.targets.target import Target
from stic.targets.toolchain import link_shared

SHAPES = (
    KernelShape(hidden=52, head_dim=20, activation="gelu", embed_epsilon=1e-5, norm_epsilon=1e-12),
    KernelShape(hidden=5, head_dim=8, activation="gelu_tanh", embed_epsilon=1e-5, norm_epsilon=1e-12),
    KernelShape(hidden=384, head_dim=64, activation="relu", embed_epsilon=1e-5, norm_epsilon=1e-12),
)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"h{shape.hidden}")
quick = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SPECIAL = (0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-30, 0.5, -0.5, 87.9, 88.1, 1e4, 3e38)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def vectors(*parts: Any) -> np.ndarray:
    """Both signs of all values in vectors of 16, filled up with zeros."""
    values = np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts])
    values = np.concatenate([values, -values])
    return np.pad(values, (0, -len(values) % LANES)).reshape(-1, LANES)


def every_size(count: int) -> np.ndarray:
    """`count` positive floats, evenly spaced in their bits."""
    return np.linspace(1, 0x7F7FFFFF, count).astype(np.uint32).view(np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether all bits are the same."""
    return a.dtype == b.dtype and a.tobytes() == np.ascontiguousarray(b).tobytes()


def elementwise(name: str, function: Callable[[Any], Any]) -> Any:
    """A kernel that applies a function of vector_math in place."""

    def body(x: Any, count: Any) -> None:
        with loop(count) as i:
            store(x, i * LANES, function(load(x, i * LANES)))

    return kernel(f"stic_{name}", [("x", "float32"), ("count", "scalar")], body)


@pytest.fixture(scope="module")
def exponentials(encoder: Any) -> Any:
    """The machine with single functions of vector_math."""
    target: Target = encoder.target

    def kernels(shape: KernelShape) -> Any:
        library = encoder.folder / "exponentials.so"
        if not library.is_file():
            functions = [elementwise(name, getattr(vector_math, name)) for name in ("exp2_16", "exp16")]
            compiled = library.with_suffix(".o")
            build(functions, dict(target.tvm)).write_to_file(str(compiled))
            link_shared([compiled], library, target)
        return library

    return replace(encoder, kernels=kernels)


@pytest.mark.parametrize("name", ["exp2_16", "exp16"])
def test_exponentials(exponentials: Any, name: str) -> None:
    rng = np.random.default_rng(1)
    x = vectors(np.arange(0, 130, 0.5), np.linspace(0, 90, 5000), rng.uniform(0, 1, 999), every_size(999), SPECIAL)
    x = np.minimum(x, np.float32(88 if name == "exp16" else 128))
    mirror = arithmetic.exp if name == "exp16" else arithmetic.exp2
    assert same(exponentials.run([(f"stic_{name}", [x, len(x)])], SHAPES[0])[0][0], mirror(x))


@every_shape
def test_activation(encoder: Any, shape: KernelShape) -> None:
    rng = np.random.default_rng(2)
    x = vectors(np.linspace(0, 12, 5000), rng.standard_normal(5000), every_size(3000), SPECIAL)
    y = encoder.run([("stic_activation", [x, len(x)])], shape)[0][0]
    assert np.isfinite(y).all()
    mirror = arithmetic.activation(shape.activation)(x)
    assert same(y + np.float32(0), mirror + np.float32(0))  # whose zeros are positive


def quantize_cases(rng: np.random.Generator) -> list[np.ndarray]:
    """Tiles (K, 16) of all magnitudes, ties, zeros, tokens whose inverse scale is infinite."""
    cases: list[np.ndarray] = [normal(rng, k, 16) * 10 ** rng.uniform(-30, 30) for k in (16, 48, 384, 1536)]
    halves: np.ndarray = (np.arange(16 * 16).reshape(16, 16) % 255 - 127).astype(np.float32) + 0.5
    halves[0] = 127
    tiny = normal(rng, 16, 16) * np.float32(1e-38)
    tiny[:, ::2] *= np.float32(1e-5)
    uneven = normal(rng, 32, 16) * every_size(17)[:16]
    return [case.astype(np.float32) for case in (*cases, halves, np.zeros((16, 16)), tiny, uneven)]


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_quantize(encoder: Any, seed: int) -> None:
    q, wants_sums = interleave(encoder.target), panel_zero(encoder.target) != 0
    inputs = quantize_cases(np.random.default_rng(seed))
    calls: list[Any] = []
    for x in inputs:
        outputs = [np.ones((len(x) // q, 16, q), np.int8), np.ones(16, np.float32), np.ones(16, np.int32)]
        calls.append(("stic_quantize", [x, *outputs, len(x)]))
    for x, (_, codes, scale, sums) in zip(inputs, encoder.run(calls, SHAPES[0]), strict=True):
        expected, expected_scale = arithmetic.quantize(x)
        assert (codes == expected.reshape(-1, q, 16).transpose(0, 2, 1)).all()
        assert same(scale, expected_scale)
        assert (sums == expected.sum(axis=0) * wants_sums).all()


@every_shape
def test_add_norm(encoder: Any, shape: KernelShape) -> None:
    hidden, rng = shape.hidden, np.random.default_rng(3)
    x, y = normal(rng, pad16(hidden), 16) + 3, normal(rng, pad16(hidden), 16)
    gamma, beta = normal(rng, hidden), normal(rng, hidden)
    answer = encoder.run([("stic_add_norm", [x, y, gamma, beta])], shape)[0][0]
    assert same(answer[:hidden], arithmetic.layer_norm((x + y)[:hidden], gamma, beta, shape.norm_epsilon))
    assert not answer[hidden:].any()


@every_shape
@pytest.mark.parametrize("n", [1, 16, 17, 100])
def test_embed(encoder: Any, shape: KernelShape, n: int) -> None:
    hidden, padded, rng = shape.hidden, pad16(shape.hidden), np.random.default_rng(n)
    tiles, scale_at = -(-n // TILE), -(-hidden // 4) * 4
    words, scales = rng.integers(-127, 128, (n, hidden)).astype(np.int8), np.abs(normal(rng, n)) / 100
    rows = np.zeros((n, scale_at + 4), np.uint8)
    rows[:, :hidden], rows[:, scale_at:] = words.view(np.uint8), scales[:, None].view(np.uint8)
    position, kinds = normal(rng, n, padded).astype(np.float16), normal(rng, 2, padded).astype(np.float16)
    ids = rng.integers(0, 2, n).astype(np.int32)
    gamma, beta = normal(rng, hidden), normal(rng, hidden)
    x = np.full((tiles, padded, TILE), np.nan, np.float32)
    call: Any = ("stic_embed", [rows, position, kinds, ids, gamma, beta, x, n, scale_at + 4])
    answer = encoder.run([call], shape)[0][6]
    place = position[:, :hidden].astype(np.float32) + kinds[ids][:, :hidden].astype(np.float32)
    tokens = np.zeros((hidden, tiles * TILE), np.float32)
    tokens[:, :n] = arithmetic.fma(words.astype(np.float32), scales[:, None], place).T
    expected = arithmetic.layer_norm(tokens, gamma, beta, shape.embed_epsilon).reshape(hidden, tiles, TILE)
    assert same(answer[:, :hidden], expected.transpose(1, 0, 2))
    assert not answer[:, hidden:].any()


@every_shape
@pytest.mark.parametrize("n", [1, 16, 17, 100])
def test_embed_float16(encoder: Any, shape: KernelShape, n: int) -> None:
    hidden, padded, rng = shape.hidden, pad16(shape.hidden), np.random.default_rng(n)
    tiles, halfs = -(-n // TILE), -(-hidden // 2) * 2 + 2  # a row: values, zeros, CRC
    rows = np.full((n, halfs), np.nan, np.float16)
    words = (normal(rng, n, hidden) * 2.0 ** rng.integers(-20, 12, (n, 1))).astype(np.float16)  # subnormal ones, too
    rows[:, :hidden] = words
    position, kinds = normal(rng, n, padded).astype(np.float16), normal(rng, 2, padded).astype(np.float16)
    ids = rng.integers(0, 2, n).astype(np.int32)
    gamma, beta = normal(rng, hidden), normal(rng, hidden)
    x = np.full((tiles, padded, TILE), np.nan, np.float32)
    call: Any = ("stic_embed_f16", [rows, position, kinds, ids, gamma, beta, x, n, 2 * halfs])
    answer = encoder.run([call], shape)[0][6]
    tokens = np.zeros((hidden, tiles * TILE), np.float32)
    place = position[:, :hidden].astype(np.float32) + kinds[ids][:, :hidden].astype(np.float32)
    tokens[:, :n] = (words.astype(np.float32) + place).T
    expected = arithmetic.layer_norm(tokens, gamma, beta, shape.embed_epsilon).reshape(hidden, tiles, TILE)
    assert same(answer[:, :hidden], expected.transpose(1, 0, 2))
    assert not answer[:, hidden:].any()
