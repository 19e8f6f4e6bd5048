"""The product for few tokens on AArch64: a group of 64 weights is four registers, lanes are rows.

    smmla, a group of 8 rows x 8 features     4 smmla for two tokens (their 16 bytes are one load), 4 for a single one
    sdot, a group of 16 rows x 4 features     4 sdot a token, by element: one load for four tokens
    smull, the same group                     a token: 1 ld1r, 8 smull (low and high halves), 8 sadalp

Accumulators: sdot four registers a token; smmla eight for two tokens; smull eight a token, with two half sums a row.
Bound by the decoder (unpack_neon.py, 23 to 90 instructions a group) up to about four tokens, then by the multiplies.
"""

from __future__ import annotations

from stic.schedules.cpu.dot import plain_result
from stic.schedules.cpu.dot_neon import add_pairs, join_halves, of_pair, sdot, smmla, smull
from stic.schedules.cpu.isa import has
from stic.schedules.cpu.rows import RowsKernel
from stic.schedules.cpu.unpack import Vectors
from stic.schedules.tir import LANES, Buffer, Expr, bind, bits, load, shuffle, splat, store
from stic.targets.target import Target

_WIDTH = 4  # int32 lanes of a q register
_PAIR = 2 * LANES  # int32 elements of two tokens, or of one with half sums


def _multiply_smmla(acc: Buffer, start: int, tokens: int, weights: Vectors, half: int, x: Buffer, at: Expr) -> None:
    for t in range(0, tokens, 2):
        if tokens == 1:
            features = bind(bits(splat(bits(load(x, at, 8), "int64"), 2), "int8x16"))
        else:
            features = bind(load(x, at + 8 * t, 16))
        for i, (rows, _) in enumerate(weights):
            sums = start + t * _PAIR + (4 * half + i) * _WIDTH
            store(acc, sums, smmla(load(acc, sums, _WIDTH), features, rows), _WIDTH)


def _smmla_result(acc: Buffer, at: int) -> Expr:
    """Tokens 2 i and 2 i + 1 share the accumulators of token 2 i."""
    token = at // _PAIR
    return of_pair(acc, (token - token % 2) * _PAIR, token % 2)


def _multiply_sdot(acc: Buffer, start: int, tokens: int, weights: Vectors, half: int, x: Buffer, at: Expr) -> None:
    together = min(tokens, 4)  # tokens that one load brings
    rows = [bind(vector) for vector, _ in weights]
    for first in range(0, tokens, together):
        if together == 1:
            words = splat(bits(load(x, at, 4), "int32"), 4)
        else:
            words = bind(bits(load(x, at + 4 * first, 4 * together), f"int32x{together}"))
        for t in range(together):
            element = words if together == 1 else shuffle([words, words], [t] * 4)
            features = bind(bits(element, "int8x16"))
            for i, vector in enumerate(rows):
                sums = start + (first + t) * LANES + i * _WIDTH
                store(acc, sums, sdot(load(acc, sums, _WIDTH), vector, features), _WIDTH)


def _multiply_smull(acc: Buffer, start: int, tokens: int, weights: Vectors, half: int, x: Buffer, at: Expr) -> None:
    rows = [bind(vector) for vector, _ in weights]
    halves = [bind(shuffle([vector], range(first, first + 8))) for vector in rows for first in (0, 8)]
    for t in range(tokens):
        features = bind(bits(splat(bits(load(x, at + 4 * t, 4), "int32"), 2), "int8x8"))
        for i, vector in enumerate(halves):
            sums = start + t * _PAIR + i * _WIDTH
            store(acc, sums, add_pairs(load(acc, sums, _WIDTH), smull(vector, features)), _WIDTH)


def rows_smmla(target: Target) -> RowsKernel | None:
    """ARMv8.6 cores with the 8-bit matrix multiply extension."""
    if not has(target, "i8mm"):
        return None
    return RowsKernel(_multiply_smmla, _smmla_result, lanes=_WIDTH, width=_PAIR, chains=1)


def rows_sdot(target: Target) -> RowsKernel | None:
    """ARMv8.2 cores with the dot product extension."""
    if not has(target, "asimddp"):
        return None
    return RowsKernel(_multiply_sdot, plain_result(_WIDTH), lanes=_WIDTH, chains=1)


def rows_smull(target: Target) -> RowsKernel | None:
    """Any AArch64 core."""
    if not has(target, "asimd"):
        return None
    return RowsKernel(_multiply_smull, join_halves, lanes=_WIDTH, width=_PAIR, chains=1)
