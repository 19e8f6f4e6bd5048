"""Every kernel of every target against numpy: integers exactly, floats closely; no access past a buffer's end.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

import math
import subprocess
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stic.schedules.pack import TILE, pack_planes, pad16
from stic.schedules.rule import kernels_for
from stic.schedules.shape import KernelShape
from stic.targets.target import FEATURES, load, names

# Few shapes that differ in everything, because a machine compiles its kernels once for each.
SHAPES = (
    KernelShape(hidden=52, head_dim=20, activation="gelu", embed_epsilon=1e-5, norm_epsilon=1e-12),
    KernelShape(hidden=5, head_dim=8, activation="gelu_tanh", embed_epsilon=1e-5, norm_epsilon=1e-12),
    KernelShape(hidden=384, head_dim=64, activation="relu", embed_epsilon=1e-5, norm_epsilon=1e-12),
)
SHAPE = SHAPES[0]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"h{shape.hidden}")
ROWS = (1, 15, 16, 17, 33, 64, 100)
quick = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32 - 1)


def tiles_of(rows: int) -> int:
    return -(-rows // TILE)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def as_lanes(q: np.ndarray) -> np.ndarray:
    """(tiles, K, 16) int8 -> (tiles, K/4, 16, 4), the layout of quantised activations."""
    tiles, k, _ = q.shape
    return np.ascontiguousarray(q.reshape(tiles, k // 4, 4, TILE).transpose(0, 1, 3, 2))


def panel_call(rng: np.random.Generator, bits: int, count: int) -> tuple[Any, np.ndarray]:
    """Random codes, a random table, and the call that decodes them."""
    codes = rng.integers(0, 1 << bits, (count, 64)).astype(np.uint8)
    lut = rng.integers(-127, 128, 1 << bits).astype(np.int8)
    planes = pack_planes(codes, bits)
    unused = [np.zeros(8, np.uint8)] * (8 - bits)
    panel = np.zeros(count * 64, np.uint8)
    return (f"stic_unpack_b{bits}", [*planes, *unused, lut, panel, count]), lut[codes].reshape(-1)


def panel_values(machine: Any, panel: np.ndarray) -> np.ndarray:
    """What a panel means: VNNI targets store the weight + 128."""
    if "avx512_vnni" in machine.target.features:
        return (panel.astype(np.int32) - 128).astype(np.int8)
    return panel.view(np.int8)


def as_panel(machine: Any, weights: np.ndarray) -> np.ndarray:
    """The panel bytes of int8 weights."""
    if "avx512_vnni" in machine.target.features:
        return (weights.astype(np.int32) + 128).astype(np.uint8)
    return weights.view(np.uint8)


@quick
@given(seed=seeds)
def test_unpack(machine: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = [panel_call(rng, bits, count) for bits in range(2, 9) for count in (1, 3, 16)]
    for (_, expected), answer in zip(cases, machine.run([call for call, _ in cases], SHAPE), strict=True):
        assert (panel_values(machine, answer[9]) == expected).all()


def dot_case(
    rng: np.random.Generator, machine: Any, rows: int, ks: int, slices: int, whole: bool = True
) -> tuple[Any, np.ndarray, np.ndarray]:
    """A dot product over `slices` of the features that x holds; extremes of int8 are frequent."""
    tiles, held = tiles_of(rows), slices * ks + (0 if whole else 16)
    extreme = rng.random() < 0.3

    def draw(*size: int) -> np.ndarray:
        values = rng.choice([-127, 127], size) if extreme else rng.integers(-127, 128, size)
        return values.astype(np.int8)

    weights, q = draw(slices, 16, ks), draw(tiles, held, 16)
    xscale, scale = np.abs(normal(rng, tiles, 16)), normal(rng, 16)
    y_rows = 16 * int(rng.integers(1, 3))
    y = np.zeros((tiles, y_rows, 16), np.float32)
    used = q[:, held - slices * ks :].reshape(tiles, slices, ks, 16).astype(np.int64)
    total = np.einsum("snk,tskl->tnl", weights.astype(np.int64), used).astype(np.float32)
    expected = y.copy()
    expected[:, :16] = xscale[:, None] * (scale[None, :, None] * total)
    x = as_lanes(q).reshape(-1)[(held - slices * ks) * 16 :]  # a pointer into the first tile
    xsum = q.astype(np.int32).sum(1, dtype=np.int32)
    call = [as_panel(machine, weights), x, xsum, xscale, scale, y, slices, ks, held * 16, y_rows, tiles]
    return ("stic_dot", call), expected, total


def check_dots(machine: Any, cases: list[Any]) -> None:
    """y is zero before, so every value is one float32 product of exact integers: two roundings at most."""
    for (_, expected, _), answer in zip(cases, machine.run([case[0] for case in cases], SHAPE), strict=True):
        np.testing.assert_allclose(answer[5], expected, rtol=3e-7, atol=0)


def test_dot_shapes(machine: Any) -> None:
    rng = np.random.default_rng(1)
    shapes = [(rows, ks, slices) for rows in ROWS for ks in (16, 32, 64, 384) for slices in (1, 3)]
    cases = [dot_case(rng, machine, *shape, whole=whole) for shape in shapes for whole in (True, False)]
    check_dots(machine, cases)


@quick
@given(seed=seeds, rows=st.integers(1, 130), blocks=st.integers(1, 12), slices=st.integers(1, 4), whole=st.booleans())
def test_dot(machine: Any, seed: int, rows: int, blocks: int, slices: int, whole: bool) -> None:
    check_dots(machine, [dot_case(np.random.default_rng(seed), machine, rows, 16 * blocks, slices, whole)])


def test_dot_integers_are_exact(machine: Any) -> None:
    """With unit scales and sums below 2**24, y is the integer itself; a second call adds to it."""
    rng = np.random.default_rng(2)
    (name, call), _, total = dot_case(rng, machine, 100, 384, 1)
    call[3], call[4] = np.ones_like(call[3]), np.ones_like(call[4])
    assert np.abs(total).max() < 2**24
    once = machine.run([(name, call)], SHAPE)[0][5]
    assert (once[:, :16] == total).all() and not once[:, 16:].any()
    call[5] = once
    assert (machine.run([(name, call)], SHAPE)[0][5][:, :16] == 2 * total).all()


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The contract, in numpy: x (K, 16) -> q, scale, sum."""
    amax = np.abs(x).max(0)
    with np.errstate(divide="ignore"):
        inverse = np.where(amax > 0, np.float32(127) / amax, np.float32(0)).astype(np.float32)
    q = np.rint(x * inverse).astype(np.int8)
    return q, (amax / np.float32(127)).astype(np.float32), q.astype(np.int32).sum(0, dtype=np.int32)


def test_quantize(machine: Any) -> None:
    rng = np.random.default_rng(3)
    inputs: list[np.ndarray] = [normal(rng, k, 16) * scale for k in (4, 16, 52, 384) for scale in (1e-3, 1, 1e4)]
    halves: np.ndarray = (np.arange(16 * 16).reshape(16, 16) % 255 - 127).astype(np.float32) + 0.5  # ties
    halves[0] = 127
    inputs += [halves, np.zeros((16, 16), np.float32)]
    calls = []
    for x in inputs:
        k = len(x)
        outputs = [np.zeros((k // 4, 16, 4), np.int8), np.zeros(16, np.float32), np.zeros(16, np.int32)]
        calls.append(("stic_quantize", [x, *outputs, k]))
    for x, (_, q, scale, total) in zip(inputs, machine.run(calls, SHAPE), strict=True):
        expected_q, expected_scale, expected_sum = quantized(x)
        assert (q == as_lanes(expected_q[None])[0]).all()
        assert (scale == expected_scale).all() and (total == expected_sum).all()


def exact_activation(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        return x * np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.reshape(-1)]).reshape(x.shape)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@every_shape
def test_activation(machine: Any, shape: KernelShape) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4000), [0, -0.0, 1e-30, -1e4, 1e4, 88, -88, 1e-3] * 2])
    x = x.astype(np.float32).reshape(-1, 16)
    y = machine.run([("stic_activation", [x, len(x)])], shape)[0][0]
    np.testing.assert_allclose(y, exact_activation(shape.activation, x), rtol=3e-7, atol=1e-6)


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    """x (.., H, 16) float64."""
    mean, variance = x.mean(-2, keepdims=True), x.var(-2, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma[:, None] + beta[:, None]


@every_shape
def test_add_norm(machine: Any, shape: KernelShape) -> None:
    hidden = shape.hidden
    rng = np.random.default_rng(4)
    x, y = normal(rng, pad16(hidden), 16) + 3, normal(rng, pad16(hidden), 16)
    gamma, beta = normal(rng, hidden), normal(rng, hidden)
    answer = machine.run([("stic_add_norm", [x, y, gamma, beta])], shape)[0][0]
    expected = layer_norm((x + y)[:hidden].astype(np.float64), gamma, beta, 1e-12)
    np.testing.assert_allclose(answer[:hidden], expected, rtol=1e-4, atol=1e-5)
    assert not answer[hidden:].any()


@every_shape
def test_embed(machine: Any, shape: KernelShape) -> None:
    hidden = shape.hidden
    rng = np.random.default_rng(5)
    padded, scale_at = pad16(hidden), -(-hidden // 4) * 4
    calls, expected = [], []
    for n in ROWS:
        word, scale = rng.integers(-127, 128, (n, hidden)).astype(np.int8), np.abs(normal(rng, n)) / 100
        table = np.zeros((n, scale_at + 4), np.uint8)
        table[:, :hidden] = word.view(np.uint8)
        table[:, scale_at:] = scale[:, None].view(np.uint8)
        position = np.zeros((n, padded), np.float16)
        position[:, :hidden] = normal(rng, n, hidden)
        kinds = np.zeros((2, padded), np.float16)
        kinds[:, :hidden] = normal(rng, 2, hidden)
        ids = rng.integers(0, 2, n).astype(np.int32)
        gamma, beta = normal(rng, hidden), normal(rng, hidden)
        x = np.full((tiles_of(n), padded, 16), np.nan, np.float32)
        rows = word * scale[:, None].astype(np.float64) + position[:, :hidden] + kinds[ids][:, :hidden]
        lanes = np.zeros((tiles_of(n) * 16, hidden))
        lanes[:n] = rows
        lanes = lanes.reshape(-1, 16, hidden).transpose(0, 2, 1)
        expected.append(layer_norm(lanes, gamma, beta, 1e-5))
        calls.append(("stic_embed", [table, position, kinds, ids, gamma, beta, x, n, scale_at + 4]))
    for answer, reference in zip(machine.run(calls, shape), expected, strict=True):
        np.testing.assert_allclose(answer[6][:, :hidden], reference, rtol=1e-4, atol=2e-5)
        assert not answer[6][:, hidden:].any()


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


@pytest.mark.parametrize("count", [0, 1, 40])
def test_outliers(machine: Any, count: int) -> None:
    rng = np.random.default_rng(8)
    ks, tiles, y_rows = 52, 3, 32
    index = rng.choice(16 * ks, count, replace=False).astype(np.uint16)
    values = normal(rng, count).astype(np.float16)
    entries = np.stack([index, values.view(np.uint16)], 1) if count else np.zeros((1, 2), np.uint16)
    q = rng.integers(-127, 128, (tiles, ks, 16)).astype(np.int8)
    xscale, y = np.abs(normal(rng, tiles, 16)), normal(rng, tiles, y_rows, 16)
    expected = y.astype(np.float64)
    for at, value in zip(index, values, strict=True):
        expected[:, at // ks] += xscale * (np.float64(value) * q[:, at % ks])
    weights = rng.integers(-127, 128, (16, ks)).astype(np.int8)
    masked = weights.copy()
    masked.reshape(-1)[index] = 0
    calls = [
        ("stic_outliers", [entries, as_lanes(q), xscale, y, count, ks, ks * 16, y_rows, tiles]),
        ("stic_outlier_mask", [as_panel(machine, weights), entries, count]),
    ]
    sums, mask = machine.run(calls, SHAPE)
    np.testing.assert_allclose(sums[3], expected, rtol=1e-4, atol=1e-3)
    assert (panel_values(machine, mask[0]) == masked).all()


@every_shape
def test_attention(machine: Any, shape: KernelShape) -> None:
    head_dim = shape.head_dim
    rng = np.random.default_rng(9)
    calls, expected = [], []
    for rows in ROWS:
        tiles = tiles_of(rows)
        qkv = normal(rng, 3, tiles, head_dim, 16)  # q, k, v of one head, each on its own
        query_tile = tiles - 1
        scratch, out = np.zeros((rows, 16), np.float32), np.zeros((head_dim, 16), np.float32)
        q, k, v = qkv
        keys = k.transpose(0, 2, 1).reshape(-1, head_dim)[:rows].astype(np.float64)
        values = v.transpose(0, 2, 1).reshape(-1, head_dim)[:rows].astype(np.float64)
        scores = keys @ q[query_tile]
        weights = np.exp(scores - scores.max(0))
        expected.append(values.T @ (weights / weights.sum(0)))
        calls.append(("stic_attention", [q[query_tile], k, v, out, scratch, head_dim, rows]))
    for answer, reference in zip(machine.run(calls, shape), expected, strict=True):
        np.testing.assert_allclose(answer[3], reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", names())
def test_every_target_has_every_kernel(name: str) -> None:
    symbols = [str(function.attrs["global_symbol"]) for function in kernels_for(load(name), SHAPE)]
    unpack = {f"stic_unpack_b{bits}" for bits in range(2, 9)}
    rest = "embed quantize activation outlier_mask dot outliers matmul_f16 matmul_f32 bias attention add_norm"
    assert sorted(symbols) == sorted(unpack | {f"stic_{name}" for name in rest.split()})
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
