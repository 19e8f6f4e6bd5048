"""The cache and attention over it, of every target: the bits of `stic.runtime.arithmetic_decoder`, close to softmax in
float64; nothing else is written, and no access goes past a buffer's end.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stic.runtime import arithmetic_decoder as mirror
from stic.runtime.arithmetic import quantize
from stic.runtime.format import TILE
from stic.schedules.pack import pad16
from stic.schedules.shape import DecoderShape
from tests.schedules.decoder_cases import SHAPES, same

every_shape = pytest.mark.parametrize("name", SHAPES)
quick = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32 - 1)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@dataclass
class Cache:
    """One key head's part of the cache: of keys, then of values; scales of int8 alone."""

    width: int
    buffers: list[np.ndarray]

    @classmethod
    def rubbish(cls, rng: np.random.Generator, shape: DecoderShape, context: int) -> Cache:
        """A cache that holds what was there before."""
        sizes = (context // TILE, shape.head_dim, TILE), (context, pad16(shape.head_dim))
        buffers = []
        for size in sizes:
            if shape.cache == "int8":
                buffers += [rng.integers(-128, 128, size).astype(np.int8), np.full(context, np.nan, np.float32)]
            else:
                buffers.append(np.full(size, np.nan, np.float16))
        return cls(shape.head_dim, buffers)

    @property
    def scaled(self) -> bool:
        return len(self.buffers) == 4

    def plain(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values (head_dim, context)."""
        keys, values = self.buffers[:: len(self.buffers) // 2]
        return keys.swapaxes(0, 1).reshape(self.width, -1), values[:, : self.width].T

    def scales(self) -> tuple[np.ndarray, np.ndarray] | None:
        return (self.buffers[1], self.buffers[3]) if self.scaled else None

    def put(self, machine: Any, shape: DecoderShape, tiles: tuple[np.ndarray, np.ndarray], at: int, n: int) -> None:
        """Store tokens by the kernel."""
        name = f"stic_cache_store_{'i8' if self.scaled else 'f16'}"
        self.buffers = [b.copy() for b in machine.run([(name, [*tiles, *self.buffers, at, n])], shape)[0][2:]]


def check_store(machine: Any, rng: np.random.Generator, shape: DecoderShape, at: int, n: int) -> None:
    context = pad16(at + n)
    cache, tiles = (
        Cache.rubbish(rng, shape, context),
        (10 * normal(rng, shape.head_dim, TILE), normal(rng, shape.head_dim, TILE)),
    )
    tiles[1][:, 0] = 0
    before = [part.copy() for part in cache.plain()]
    cache.put(machine, shape, tiles, at, n)
    here = slice(at, at + n)
    for i, (part, tile, old) in enumerate(zip(cache.plain(), tiles, before, strict=True)):
        expected = old.copy()
        if cache.scaled:
            codes, scale = quantize(tile)
            expected[:, here] = codes[:, :n]
            assert same(cache.buffers[2 * i + 1][here], scale[:n])
            assert np.isnan(np.delete(cache.buffers[2 * i + 1], np.arange(at, at + n))).all()
        else:
            expected[:, here] = tile[:, :n].astype(np.float16)
        assert same(np.ascontiguousarray(part), np.ascontiguousarray(expected))
    assert not cache.buffers[-2 if cache.scaled else -1][here, shape.head_dim :].any()


@every_shape
@pytest.mark.parametrize(("at", "n"), [(0, 16), (32, 16), (5, 16), (0, 1), (47, 1), (14, 2), (13, 7), (16, 15)])
def test_store(decoder: Any, name: str, at: int, n: int) -> None:
    check_store(decoder, np.random.default_rng(at + n), SHAPES[name], at, n)


def check_attention(
    machine: Any, rng: np.random.Generator, shape: DecoderShape, queries: int, at: int, n: int, window: int
) -> None:
    """Attention of n tokens at `at`, all together, and as two parts of the work."""
    end, width = at + n, shape.head_dim
    context = pad16(end) + TILE * int(rng.integers(0, 2))
    cache = Cache.rubbish(rng, shape, context)
    for first in range(0, end, TILE):
        tiles = normal(rng, width, TILE), normal(rng, width, TILE)
        cache.put(machine, shape, tiles, first, min(TILE, end - first))
    query = (normal(rng, queries, width, TILE) * rng.choice([0.2, 1.0])).astype(np.float32)
    out, scratch = normal(rng, queries, width, TILE), np.full((4, context), np.nan, np.float32)
    kernel = f"stic_cached_attention_{'i8' if cache.scaled else 'f16'}"

    def call(token: int, count: int) -> tuple[str, list[Any]]:
        at_token = [buffer.reshape(-1)[token:] for buffer in (query, out)]
        rest = [scratch, queries, at + token, count, window, context]
        return kernel, [at_token[0], *cache.buffers, at_token[1], *rest]

    half = n // 2
    calls = [call(0, n)] + ([call(half, n - half)] if half else [])
    answers = machine.run(calls, shape)
    keys, values = (part[:, :end] for part in cache.plain())
    expected = mirror.cached_attention(query[..., :n], keys, values, at, window, shape.cap, cache.scales())
    place = 1 + len(cache.buffers)
    whole = answers[0][place].reshape(out.shape)
    assert same(np.ascontiguousarray(whole[..., :n]), expected)
    assert same(np.ascontiguousarray(whole[..., n:]), np.ascontiguousarray(out[..., n:]))
    if half:
        later = np.concatenate([out.reshape(-1)[:half], answers[1][place]]).reshape(out.shape)
        assert same(np.ascontiguousarray(later[..., half:n]), np.ascontiguousarray(expected[..., half:]))


@every_shape
@pytest.mark.parametrize(
    ("queries", "at", "n", "window"),
    [
        *((1, 0, 1, 0), (3, 100, 1, 0), (8, 64, 1, 33), (2, 15, 1, 1)),
        *((1, 0, 16, 0), (4, 16, 16, 0), (3, 7, 13, 5), (5, 40, 9, 17), (1, 130, 16, 16), (2, 3, 2, 1000)),
    ],
)
def test_attention(decoder: Any, name: str, queries: int, at: int, n: int, window: int) -> None:
    check_attention(decoder, np.random.default_rng(at), SHAPES[name], queries, at, n, window)


@quick
@given(
    seed=seeds,
    name=st.sampled_from(list(SHAPES)),
    queries=st.integers(1, 8),
    at=st.integers(0, 90),
    n=st.integers(1, 16),
    window=st.integers(0, 60),
)
def test_any_attention(decoder: Any, seed: int, name: str, queries: int, at: int, n: int, window: int) -> None:
    check_attention(decoder, np.random.default_rng(seed), SHAPES[name], queries, at, n, window)
