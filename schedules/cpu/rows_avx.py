"""The product for few tokens on 256-bit vectors: a group of 64 weights is two registers of 8 rows x 4 features.

    AVX-VNNI, a group     1 vpbroadcastd of a token's 4 features, 2 vpdpbusd        1.5 instructions for 32 weights
    AVX2, a group         1 vpbroadcastd, 2 x (vpsignb, vpmaddubsw, vpmaddwd, vpaddd), 2 vpabsb for all tokens

Each token keeps two accumulators of 8 rows; the decoder's tables leave room for four tokens. Bound by the decoder
(unpack_avx2.py, 14 to 145 instructions a group) up to four tokens, then by the multiplies.
"""

from __future__ import annotations

from stic.schedules.cpu.dot import plain_result
from stic.schedules.cpu.dot_avx2 import magnitude, multiply_add
from stic.schedules.cpu.dot_avx_vnni import vpdpbusd_256
from stic.schedules.cpu.isa import has
from stic.schedules.cpu.rows import RowsKernel
from stic.schedules.cpu.unpack import Vectors
from stic.schedules.tir import LANES, Buffer, Expr, bind, bits, load, splat, store
from stic.targets.target import Target

_WIDTH = 8  # int32 lanes of a ymm register


def _features(x: Buffer, at: Expr) -> Expr:
    """4 features of a token in every lane, int8x32."""
    return bind(bits(splat(bits(load(x, at, 4), "int32"), _WIDTH), "int8x32"))


def _multiply_vnni(acc: Buffer, start: int, tokens: int, weights: Vectors, half: int, x: Buffer, at: Expr) -> None:
    unsigned = [bind(bits(vector, "uint8x32")) for vector, _ in weights]
    for t in range(tokens):
        features = _features(x, at + 4 * t)
        for i, rows in enumerate(unsigned):
            sums = start + t * LANES + i * _WIDTH
            store(acc, sums, vpdpbusd_256(load(acc, sums, _WIDTH), rows, features), _WIDTH)


def _multiply_avx2(acc: Buffer, start: int, tokens: int, weights: Vectors, half: int, x: Buffer, at: Expr) -> None:
    signed = [bind(vector) for vector, _ in weights]
    magnitudes = [bind(magnitude(vector)) for vector in signed]
    for t in range(tokens):
        features = _features(x, at + 4 * t)
        for i, (rows, size) in enumerate(zip(signed, magnitudes, strict=True)):
            sums = start + t * LANES + i * _WIDTH
            store(acc, sums, multiply_add(load(acc, sums, _WIDTH), rows, size, features), _WIDTH)


def rows_avx_vnni(target: Target) -> RowsKernel | None:
    """AVX-VNNI; the decoder's weights are +128."""
    if not has(target, "avx2", "avx_vnni"):
        return None
    return RowsKernel(_multiply_vnni, plain_result(_WIDTH), lanes=_WIDTH, chains=2)


def rows_avx2(target: Target) -> RowsKernel | None:
    """AVX2 without VNNI."""
    if not has(target, "avx2"):
        return None
    return RowsKernel(_multiply_avx2, plain_result(_WIDTH), lanes=_WIDTH, chains=2)
