"""From planes to products: unpack, dot, rows and outliers of every target, bit for bit against numpy.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stic.runtime import arithmetic
from stic.runtime.arithmetic import fma
from stic.runtime.format import TILE
from stic.schedules.cpu.isa import panel_zero
from stic.schedules.pack import interleave, pack_planes
from stic.schedules.shape import KernelShape

SHAPE = KernelShape(hidden=52, head_dim=20, activation="gelu", embed_epsilon=1e-5, norm_epsilon=1e-12)
WIDTHS = range(2, 9)
TOKENS = (1, 15, 16, 17, 33, 64, 100)
quick = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32 - 1)


def tiles_of(tokens: int) -> int:
    return -(-tokens // TILE)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def grouped(values: np.ndarray, q: int) -> np.ndarray:
    """(.., K, 16) -> (.., K/q, 16, q): the layout of panels (16 rows) and of quantised activations (16 tokens)."""
    *front, k, lanes = values.shape
    return np.ascontiguousarray(values.reshape(*front, k // q, q, lanes).swapaxes(-1, -2))


def as_panel(machine: Any, weights: np.ndarray) -> np.ndarray:
    """int8 weights (16, K) as panel bytes."""
    flip = np.uint8(panel_zero(machine.target))
    return grouped(weights.T, interleave(machine.target)).view(np.uint8) ^ flip


def int8s(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random int8 of magnitude 127 at most; now and then extremes only."""
    values = rng.choice([-127, 127], shape) if rng.random() < 0.3 else rng.integers(-127, 128, shape)
    return values.astype(np.int8)


def planes_of(machine: Any, rng: np.random.Generator, bits: int, k: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Arguments p0 .. p7, lut of a random block of 16 rows, and its weights (16, k)."""
    codes = rng.integers(0, 1 << bits, (TILE, k)).astype(np.uint8)
    lut = int8s(rng, 1 << bits)
    planes = pack_planes(codes, bits, interleave(machine.target))
    return [*planes, *[np.zeros(8, np.uint8)] * (8 - bits), lut], lut[codes]


@quick
@given(seed=seeds)
def test_unpack(machine: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    calls, expected = [], []
    for bits in WIDTHS:
        for k in (16, 32, 48, 16 * int(rng.integers(4, 40))):
            arguments, weights = planes_of(machine, rng, bits, k)
            calls.append((f"stic_unpack_b{bits}", [*arguments, np.zeros(TILE * k, np.uint8), k // 4]))
            expected.append(as_panel(machine, weights).reshape(-1))
    for answer, panel in zip(machine.run(calls, SHAPE), expected, strict=True):
        assert (answer[9] == panel).all()


def finished(
    total: np.ndarray, scale: np.ndarray, extra: np.ndarray, token: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """Exact sums (.., 16 rows, 16 tokens) -> outputs, in the kernels' order."""
    inner = fma(scale[:, None], total.astype(np.float32), extra)
    return fma(token[..., None, :], inner, bias[:, None])


def dot_case(
    machine: Any, rng: np.random.Generator, tokens: int, k: int, whole: bool = True
) -> tuple[str, list[Any], np.ndarray]:
    """A dot product over k of the features that x holds, all of them if `whole`."""
    tiles, held, y_rows = tiles_of(tokens), k + (0 if whole else 32), 16 * int(rng.integers(1, 3))
    weights, x = int8s(rng, TILE, k), int8s(rng, tiles, held, TILE)
    token, scale, bias = np.abs(normal(rng, tiles, TILE)), normal(rng, TILE), normal(rng, TILE)
    extra, y = normal(rng, tiles, TILE, TILE), normal(rng, tiles, y_rows, TILE)
    total = np.einsum("nk,tkl->tnl", weights.astype(np.int64), x[:, held - k :].astype(np.int64))
    expected = y.copy()
    expected[:, :TILE] = finished(total, scale, extra, token, bias)
    name = "stic_dot"
    if rng.random() < 0.5:
        name, expected[:, :TILE] = "stic_dot_activated", arithmetic.activation("gelu")(expected[:, :TILE])
    data = grouped(x, interleave(machine.target)).reshape(-1)[(held - k) * TILE :]  # a pointer into the first tile
    sums = x.astype(np.int32).sum(1, dtype=np.int32)
    call = [as_panel(machine, weights), data, sums, token, scale, bias, extra, y, k, held * TILE, y_rows, tiles]
    return name, call, expected


def check_dots(machine: Any, cases: list[tuple[str, list[Any], np.ndarray]]) -> None:
    answers = machine.run([(name, call) for name, call, _ in cases], SHAPE)
    for (_, _, expected), answer in zip(cases, answers, strict=True):
        np.testing.assert_array_equal(answer[7], expected)
        assert not answer[6].any()


def test_dot_shapes(machine: Any) -> None:
    rng = np.random.default_rng(1)
    shapes = [(tokens, k, whole) for tokens in TOKENS for k in (16, 32, 48, 384) for whole in (True, False)]
    check_dots(machine, [dot_case(machine, rng, *shape) for shape in shapes])


@quick
@given(seed=seeds, tokens=st.integers(1, 130), blocks=st.integers(1, 40), whole=st.booleans())
def test_dot(machine: Any, seed: int, tokens: int, blocks: int, whole: bool) -> None:
    check_dots(machine, [dot_case(machine, np.random.default_rng(seed), tokens, TILE * blocks, whole)])


def test_dot_sums_reach_31_bits(machine: Any) -> None:
    """The greatest sums a package can ask for: 127 * 127 * 16,384 features, of one sign."""
    k = 16384
    weights, x = np.full((TILE, k), 127, np.int8), np.full((1, k, TILE), 127, np.int8)
    ones, zeros = np.ones(TILE, np.float32), np.zeros((1, TILE, TILE), np.float32)
    data, sums = grouped(x, interleave(machine.target)), x.astype(np.int32).sum(1, dtype=np.int32)
    call = [as_panel(machine, weights), data, sums, ones[None], ones, zeros[0, 0], zeros, zeros, k, k * TILE, TILE, 1]
    assert (machine.run([("stic_dot", call)], SHAPE)[0][7] == np.float32(127 * 127 * k)).all()


@quick
@given(seed=seeds, tokens=st.integers(1, 8))
def test_rows(machine: Any, seed: int, tokens: int) -> None:
    """Products for few tokens over two slices of different bitwidths, then what finishes them."""
    rng, q = np.random.default_rng(seed), interleave(machine.target)
    acc, total = np.zeros((TILE, TILE), np.int32), np.zeros((TILE, TILE), np.int64)
    sums = np.zeros(TILE, np.int32)
    for bits in (int(rng.integers(2, 9)), int(rng.integers(2, 9))):
        k, pitch = 16 * int(rng.integers(1, 40)), int(rng.choice([8, 16]))
        arguments, weights = planes_of(machine, rng, bits, k)
        x = int8s(rng, k, pitch)
        total[:, :tokens] += weights.astype(np.int64) @ x[:, :tokens].astype(np.int64)
        sums[:tokens] += x[:, :tokens].astype(np.int32).sum(0, dtype=np.int32)
        call = [*arguments, grouped(x, q), acc, k // 4, pitch * q, tokens]
        acc = machine.run([(f"stic_rows_b{bits}", call)], SHAPE)[0][10]
    offset = panel_zero(machine.target) * sums
    assert (acc[:tokens].T == total[:, :tokens] + offset[:tokens]).all()
    token, scale, bias = np.abs(normal(rng, TILE)), normal(rng, TILE), normal(rng, TILE)
    extra, y = normal(rng, TILE, TILE), np.zeros((TILE, TILE), np.float32)
    arguments = [acc, sums, token, scale, bias, extra.T.copy(), y, tokens]
    names = ("stic_rows_finish", "stic_rows_finish_activated")
    plain, activated = machine.run([(name, arguments) for name in names], SHAPE)
    expected = finished(total, scale, extra, token, bias)
    np.testing.assert_array_equal(plain[6][:, :tokens], expected[:, :tokens])
    np.testing.assert_array_equal(activated[6][:, :tokens], arithmetic.activation("gelu")(expected[:, :tokens]))


@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("tiles", [1, 3, 7, 13])
def test_outliers(machine: Any, count: int, tiles: int) -> None:
    """Whole tiles, and the first tokens of the first tile by the kernel for few."""
    rng, q = np.random.default_rng(8), interleave(machine.target)
    k, dense = 48, -3
    position = np.sort(rng.choice(TILE * k, count, replace=False)).astype(np.uint16)
    values = normal(rng, count).astype(np.float16)
    entries = np.stack([position, values.view(np.uint16)], 1) if count else np.zeros((1, 2), np.uint16)
    x, scale, extra = int8s(rng, tiles, k, TILE), normal(rng, TILE), normal(rng, tiles, TILE, TILE)
    expected = extra.copy()
    for at, value in zip(position.astype(int), values, strict=True):
        row, column = at // q % TILE, at // (TILE * q) * q + at % q
        weight = fma(-scale[row], np.float32(dense), value.astype(np.float32))
        expected[:, row] = fma(weight, x[:, column].astype(np.float32), expected[:, row])
    data, few = grouped(x, q), 1 + tiles % 8
    calls = [
        ("stic_outliers", [entries, scale, data, extra, count, dense, TILE * q, k * TILE, tiles]),
        ("stic_rows_outliers", [entries, scale, data, extra[0].T.copy(), count, dense, TILE * q, few]),
    ]
    all_of_them, some = machine.run(calls, SHAPE)
    np.testing.assert_array_equal(all_of_them[3], expected)
    np.testing.assert_array_equal(some[3][:few], expected[0].T[:few])
    np.testing.assert_array_equal(some[3][few:], extra[0].T[few:])
