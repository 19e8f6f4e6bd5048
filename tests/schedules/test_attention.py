"""Attention of every target: the bits of the numpy mirror, close to softmax in float64; no access past a buffer's end.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stic.runtime import arithmetic
from stic.runtime.format import TILE
from stic.schedules.pack import pad16
from stic.schedules.shape import KernelShape

SHAPES = (
    KernelShape(hidden=52, head_dim=20, activation="gelu", embed_epsilon=1e-5, norm_epsilon=1e-12),
    KernelShape(hidden=5, head_dim=8, activation="gelu_tanh", embed_epsilon=1e-5, norm_epsilon=1e-12),
    KernelShape(hidden=384, head_dim=64, activation="relu", embed_epsilon=1e-5, norm_epsilon=1e-12),
)
TOKENS = (1, 3, 16, 17, 31, 64, 100)


def case(rng: np.random.Generator, head_dim: int, tokens: int, spread: float) -> tuple[list[Any], np.ndarray]:
    """Arguments for one head, all queries; and q, k, v (3, head_dim, tokens). Lanes past the input hold rubbish."""
    tiles, padded = -(-tokens // TILE), pad16(head_dim)
    qkv = (spread * rng.standard_normal((3, tiles, head_dim, TILE))).astype(np.float32)
    floats = np.zeros(272 * tiles + 2 * padded, np.float32)
    bytes_ = np.zeros(tiles * TILE * (2 * padded + TILE) + TILE * padded, np.int8)
    out = np.zeros((tiles, head_dim, TILE), np.float32)
    plain = qkv.transpose(0, 2, 1, 3).reshape(3, head_dim, -1)[..., :tokens]
    return [*qkv, out, floats, bytes_, head_dim, head_dim, tokens, tiles], plain


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"d{shape.head_dim}")
def test_attention(encoder: Any, shape: KernelShape) -> None:
    rng = np.random.default_rng(9)
    cases = [case(rng, shape.head_dim, tokens, spread) for tokens in TOKENS for spread in (0.1, 1.0)]
    answers = encoder.run([("stic_attention", call) for call, _ in cases], shape)
    for (call, (query, key, value)), answer in zip(cases, answers, strict=True):
        out = answer[3].transpose(1, 0, 2).reshape(shape.head_dim, -1)[:, : call[8]]
        np.testing.assert_array_equal(out, arithmetic.attention(query, key, value))


def test_later_queries_alone(encoder: Any) -> None:
    """A head may be split between threads by tiles of queries."""
    rng = np.random.default_rng(10)
    shape, tokens = SHAPES[0], 40
    call, (query, key, value) = case(rng, shape.head_dim, tokens, 1.0)
    call[0], call[3], call[9] = call[0][1:], call[3][1:], 2
    answer = encoder.run([("stic_attention", call)], shape)[0][3]
    out = answer.transpose(1, 0, 2).reshape(shape.head_dim, -1)[:, : tokens - TILE]
    np.testing.assert_array_equal(out, arithmetic.attention(query, key, value)[:, TILE:])


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_mirror_is_softmax_attention(spread: float) -> None:
    """Rounding operands to int8 costs about a percent of the values' spread."""
    rng = np.random.default_rng(11)
    query, key, value = (spread * rng.standard_normal((3, 32, 100))).astype(np.float32)
    scores = key.T.astype(np.float64) @ query
    weights = np.exp(scores - scores.max(0))
    exact = value @ (weights / weights.sum(0))
    error = arithmetic.attention(query, key, value) - exact
    assert np.sqrt((error**2).mean()) < 0.02 * value.std()
