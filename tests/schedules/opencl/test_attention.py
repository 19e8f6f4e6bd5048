"""stic_scores, stic_softmax and stic_values against softmax attention in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from stic.runtime.layout import pad
from stic.schedules.opencl.attention import scores, softmax, values
from stic.schedules.opencl.program import assemble
from stic.schedules.shape import KernelShape

# What half precision loses of context, 2^-11 of values up to 5, doubled; and float32 sums of up to 64 products.
TOLERANCE = {"float16": 5e-3, "float32": 2e-5}


@dataclass(frozen=True)
class Case:
    """One layer's attention: slices of heads, and the chunk of query tiles that is computed at once."""

    n: int
    head_dim: int
    heads_per_slice: int
    slices: int
    first_tile: int
    query_tiles: int

    @property
    def width(self) -> int:
        return pad(self.heads_per_slice * self.head_dim, 16)

    @property
    def keys(self) -> int:
        return pad(self.n, 16)


CASES = {
    "tiny": Case(5, 8, 3, 2, 0, 1),
    "chunk": Case(40, 32, 2, 2, 1, 2),
    "odd-head": Case(17, 10, 3, 1, 0, 2),
    "one-feature": Case(16, 1, 16, 1, 0, 1),
    "long": Case(130, 64, 1, 1, 0, 9),
}


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q (d, queries), k and v (d, keys), in float64: (d, queries)."""
    s = k.T @ q
    p = np.exp(s - s.max(axis=0))
    return v @ (p / p.sum(axis=0))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("storage", ["float16", "float32"])
@pytest.mark.parametrize("style", ["mali", "adreno"])
def test_three_kernels_are_softmax_attention(device, style, storage, name):
    case, shape = CASES[name], KernelShape(16, CASES[name].head_dim, "gelu", 1e-12, 1e-12)
    rng, tiles, width = np.random.default_rng(len(name)), case.keys // 16, case.width
    qkv = rng.standard_normal((tiles, 3 * width * case.slices, 16)).astype(storage)
    heads, rows = case.slices * case.heads_per_slice, qkv.shape[1]
    count = heads * case.query_tiles
    kernels = [rule(style, shape, storage) for rule in (scores, softmax, values)]
    text = assemble(kernels).text
    defines = {"DOT": 0, "WIDTHS": 0}
    place = (case.first_tile, case.query_tiles)
    buffer = np.full((heads, case.query_tiles, case.keys, 16), np.nan, np.float32)
    filled = device.run(
        text,
        defines,
        kernels[0].launch,
        (count, case.keys),
        [qkv, buffer, case.heads_per_slice, width, rows, case.n, *place],
    )[1]
    weights = device.run(text, defines, kernels[1].launch, (count,), [filled, case.n, count])[0]
    assert not weights[:, :, case.n :].any()
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-5)
    context = np.zeros((tiles, width * case.slices, 16), storage)
    arguments = [weights, qkv, context, case.heads_per_slice, width, rows, context.shape[1], case.n, *place]
    out = device.run(text, defines, kernels[2].launch, (count, case.head_dim), arguments)[2]

    flat = qkv.astype(np.float64).reshape(tiles, case.slices, 3, width, 16).transpose(1, 2, 3, 0, 4)
    flat = flat.reshape(case.slices, 3, width, tiles * 16)  # (slice, part, feature, token)
    queries = slice(16 * case.first_tile, 16 * (case.first_tile + case.query_tiles))
    expected = np.zeros((case.slices, width, tiles * 16))
    for head in range(heads):
        s, part = divmod(head, case.heads_per_slice)
        at = slice(part * case.head_dim, (part + 1) * case.head_dim)
        q, k, v = flat[s][:, at]
        expected[s, at, queries] = attention(q[:, queries], k[:, : case.n], v[:, : case.n])
    got = out.astype(np.float64).reshape(tiles, case.slices, width, 16).transpose(1, 2, 0, 3).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE[storage])
    assert not got[:, case.heads_per_slice * case.head_dim :].any()  # padding is not written


def test_softmax_survives_great_scores(device):
    kernel = softmax("mali", KernelShape(16, 8, "gelu", 1e-12, 1e-12), "float32")
    x = np.zeros((1, 16, 16), np.float32)
    x[0, 3, 2], x[0, :, 4], x[0, :, 5] = 3e4, -1e30, 1e30
    out = device.run(assemble([kernel]).text, {"DOT": 0, "WIDTHS": 0}, kernel.launch, (1,), [x, 16, 1])[0]
    assert out[0, 3, 2] == 1 and np.isfinite(out).all()
    np.testing.assert_allclose(out.sum(axis=1), 1, rtol=1e-6)
