"""Float arithmetic of the decoders' kernels, operation by operation, in numpy; see `stic.runtime.arithmetic`.

Arrays are float32 with tokens in the last axis, (features, tokens), unless said otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stic.runtime.arithmetic import LOG2_E, Floats, exp2, fma, quantize, softcap
from stic.runtime.format import TILE

GROUP = 64  # columns that share scales


def groups_of(columns: int) -> list[slice]:
    """The groups of a slice's columns; the last one may be shorter."""
    return [slice(first, min(first + GROUP, columns)) for first in range(0, columns, GROUP)]


def quantize_grouped(x: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Quantise x (K, tokens), the columns of one slice, by groups: codes (K, tokens), scales (groups, tokens)."""
    parts = [quantize(x[group]) for group in groups_of(len(x))]
    return np.concatenate([codes for codes, _ in parts]), np.stack([scale for _, scale in parts])


def add_grouped(
    sums: Floats, weights: NDArray[np.int8], ratio: NDArray[np.uint8], codes: NDArray[np.int32], scale: Floats
) -> Floats:
    """Add one slice's product to `sums` (N, tokens): weights (N, K) int8, ratio (N, groups), codes (K, tokens)."""
    for g, group in enumerate(groups_of(weights.shape[1])):
        dot = weights[:, group].astype(np.float64) @ codes[group].astype(np.float64)  # exact, and so is the conversion
        sums = fma(dot.astype(np.float32), scale[g] * ratio[:, g, None].astype(np.float32), sums)
    return sums


def finish_grouped(sums: Floats, scale: Floats, bias: Floats) -> Floats:
    """bias (N,) + scale (N,) * sums (N, tokens)."""
    return fma(scale[:, None], sums, bias[:, None])


def rope(x: Floats, turns: Floats) -> Floats:
    """Rotate one head x (head_dim, tokens); turns (features, tokens) are cosines, then sines, of the first features."""
    half = len(turns) // 2
    a, b, cosine, sine = x[:half], x[half : 2 * half], turns[:half], turns[half:]
    return np.concatenate([fma(-b, sine, a * cosine), fma(a, sine, b * cosine), x[2 * half :]])


def cached_attention(
    query: Floats,
    keys: NDArray[np.float16] | NDArray[np.int8],
    values: NDArray[np.float16] | NDArray[np.int8],
    position: int,
    window: int = 0,
    cap: float | None = None,
    scales: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Causal attention of the queries (queries, head_dim, tokens) of one key head, the scale in the queries.

    The tokens are at `position` and after; keys and values are (head_dim, at least position + tokens), float16, or
    int8 with `scales` (keys, values) a token each. A token reads itself and what is before it, `window` tokens in all
    where that is not 0. Returns (queries, head_dim, tokens).
    """
    queries, width, tokens = query.shape
    end = position + tokens
    rows = query.transpose(2, 0, 1).reshape(-1, width)  # (tokens * queries, head_dim)
    last = np.repeat(np.arange(position, end), queries)[:, None]
    first = np.maximum(last - window + 1, 0) if window else np.zeros_like(last)
    here = (np.arange(end) >= first) & (np.arange(end) <= last)

    scores = np.zeros((len(rows), end), np.float32)
    for feature in range(width):
        scores = fma(rows[:, feature, None], keys[feature, :end].astype(np.float32), scores)
    if scales is not None:
        scores = scores * scales[0][:end]
    if cap is not None:
        scores = softcap(scores, cap)
    greatest = np.where(here, scores, -np.inf).max(axis=1, keepdims=True).astype(np.float32)
    weights = np.where(here, exp2(fma(scores, LOG2_E, -(greatest * LOG2_E))), np.float32(0))
    total = _sum_by_lanes(weights)
    if scales is not None:
        weights = weights * scales[1][:end]

    context = np.zeros_like(rows)
    for key in range(end):
        context = fma(weights[:, key, None], values[:, key].astype(np.float32), context)
    context = context * (np.float32(1) / total)[:, None]
    result: Floats = context.reshape(tokens, queries, width).transpose(1, 2, 0)
    return result


def _sum_by_lanes(weights: Floats) -> Floats:
    """Sums of the rows (rows, keys): key k goes to lane k % 16, in order; then lanes are added by halves."""
    padded = np.pad(weights, ((0, 0), (0, -weights.shape[1] % TILE)))
    lanes = np.zeros((len(weights), TILE), np.float32)
    for first in range(0, padded.shape[1], TILE):
        lanes = lanes + padded[:, first : first + TILE]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    total: Floats = lanes[:, 0]
    return total
