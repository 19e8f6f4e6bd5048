"""stic_attention: one head, one tile of 16 queries, all keys. Lanes are queries, so the softmax is vertical.

    scores   S[j][16 queries] = sum_d K[d][j] * Q[d][16 queries]     register tile: 16 keys (AVX-512) or 4 keys
    softmax  E[j] = exp(S[j] - max_j S), sum                         one exp16 a key
    output   O[d][16 queries] = sum_j V[d][j] * E[j][16 queries]     register tile: 16 or 4 features of the head

A step of scores or output is 1 vector load and 16 (4) multiply-adds with a scalar broadcast from memory: bound by the
multiply-adds with 512-bit vectors, by the broadcasts elsewhere. Scores of all keys stay in scratch (64 bytes a key).
"""

from __future__ import annotations

from contextlib import nullcontext

from stic.schedules.cpu.isa import float_rows
from stic.schedules.cpu.vector_math import exp16, maximum
from stic.schedules.pack import TILE
from stic.schedules.shape import KernelShape
from stic.schedules.tir import (
    LANES,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    f32,
    kernel,
    load,
    local,
    loop,
    splat,
    store,
    when,
)
from stic.targets.target import Target

_LEAST = -3.0e38  # below every score


def attention(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_attention(f32* q, f32* k, f32* v, f32* out, f32* scratch, i32 qkv_rows, i32 rows).

    q, k, v (tiles, qkv_rows, 16) at this head's first row, q at its query tile; out (head_dim, 16); scratch
    (rows, 16). Softmax over keys 0 .. rows-1, rows >= 1; the scale is in the query weights.
    """
    keys = features = float_rows(target)
    head_dim = shape.head_dim

    def scores(
        q: Buffer, k: Buffer, scratch: Buffer, greatest: Buffer, tile: Expr, qkv_rows: Expr, rows: Expr | None
    ) -> None:
        """Emit the scores of one tile of keys; given `rows`, only keys below it are kept."""
        with loop(TILE // keys) as block, local((keys * LANES, "float32")) as (acc,):
            for j in range(keys):
                store(acc, j * LANES, f32(0.0))
            with loop(head_dim) as d:
                query = bind(load(q, d * LANES))
                for j in range(keys):
                    key = splat(k[(tile * qkv_rows + d) * TILE + block * keys + j])
                    store(acc, j * LANES, load(acc, j * LANES) + key * query)
            for j in range(keys):
                at = tile * TILE + block * keys + j
                with nullcontext() if rows is None else when(at < rows):
                    score = bind(load(acc, j * LANES))
                    store(greatest, 0, maximum(score, load(greatest, 0)))
                    store(scratch, at * LANES, score)

    def output(
        v: Buffer,
        out: Buffer,
        scratch: Buffer,
        inverse: Expr,
        qkv_rows: Expr,
        rows: Expr,
        d: Expr,
        count: int,
    ) -> None:
        """Emit features d .. d + count - 1 of the output."""
        with local((count * LANES, "float32")) as (acc,):
            for i in range(count):
                store(acc, i * LANES, f32(0.0))

            def add(tile: Expr, j: Expr) -> None:
                weight = bind(load(scratch, (tile * TILE + j) * LANES))
                for i in range(count):
                    value = splat(v[(tile * qkv_rows + d + i) * TILE + j])
                    store(acc, i * LANES, load(acc, i * LANES) + value * weight)

            with loop(rows // TILE) as tile, loop(TILE) as j:
                add(tile, j)
            with loop(rows % TILE) as j:
                add(rows // TILE, j)
            for i in range(count):
                store(out, (d + i) * LANES, load(acc, i * LANES) * inverse)

    def body(q: Buffer, k: Buffer, v: Buffer, out: Buffer, scratch: Buffer, qkv_rows: Expr, rows: Expr) -> None:
        with local((LANES, "float32"), (LANES, "float32")) as (greatest, total):
            store(greatest, 0, f32(_LEAST))
            with loop(rows // TILE) as tile:
                scores(q, k, scratch, greatest, tile, qkv_rows, None)
            with when(rows % TILE > 0):
                scores(q, k, scratch, greatest, rows // TILE, qkv_rows, rows)
            store(total, 0, f32(0.0))
            with loop(rows) as j:
                weight = exp16(load(scratch, j * LANES) - load(greatest, 0))
                store(scratch, j * LANES, weight)
                store(total, 0, load(total, 0) + weight)
            inverse = bind(f32(1.0) / load(total, 0))
            with loop(head_dim // features) as group:
                output(v, out, scratch, inverse, qkv_rows, rows, group * features, features)
            if head_dim % features:
                last = head_dim - head_dim % features
                output(v, out, scratch, inverse, qkv_rows, rows, last, head_dim % features)

    scalars = [("qkv_rows", "scalar"), ("rows", "scalar")]
    pointers = [(name, "float32") for name in ("q", "k", "v", "out", "scratch")]
    return kernel("stic_attention", pointers + scalars, body)
