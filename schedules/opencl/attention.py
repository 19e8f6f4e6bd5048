"""Softmax attention of all heads, three kernels: scores, softmax over keys, values. All in float32.

A unit is 16 queries of one head. Work-items keep 32 sums in registers and read vectors along the lanes:

    stic_scores    4 keys x 8 queries an item            stic_values    4 features x 8 queries an item
    for every feature d                                  for every 2 keys
      K[d][4 keys]     1 load of 4                         V[feature][2 keys]   4 loads of 2
      Q[d][8 queries]  1 load of 8                         P[key][8 queries]    2 loads of 8
      S[key] += K[d][key] * Q[d]   32 multiply-adds        O[f] += V[f][key] * P[key]   64 multiply-adds

    work-group     items along x: 2 halves of the queries of 2 (Mali) or 4 (Adreno) units
                   items along y: 8 groups of 4 keys or features

At 16 and 11 multiply-adds a load both are bound by the multiply-add pipes while K, Q, V and P come from the
first-level cache: a head of 128 tokens and 32 features is 8 KiB of each in half precision. 32 sums, 8 queries and 4
keys or 8 values leave room for addresses in 64 registers, what a Mali thread has at half occupancy. A group is whole
warps or a wave of 64. Scores lie in memory as (heads, query tiles, keys, 16), so that softmax reads whole vectors too:
three walks over them in `reduction.py`'s pattern, the exponential taken once. No local memory but for that: the items
of a group share loads through the cache on both families.

The scale of the scores is in the query weights.
"""

from __future__ import annotations

from tvm import tirx

from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.opencl.program import Kernel, Launch
from stic.schedules.opencl.reduction import ITEMS, LOCAL_BYTES, share
from stic.schedules.opencl.source import launch, load_real, load_vector, store_real
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, T, bind, f32, kernel, load, local, loop, pick, splat, store, when

_QUERIES, _ROWS = 8, 4  # of one item; rows are keys or features
_STEP = 2  # keys whose values are added at once
_HALVES = LANES // _QUERIES
_ITEMS = 8  # of a group along the rows
_UNITS = {"mali": 2, "adreno": 4}  # of a group
_LEAST = -3.0e38  # below every score


class _Unit:
    """Where the 16 queries of a work-group's unit are, for qkv (tiles, qkv_rows, 16)."""

    def __init__(
        self, unit: Expr, item: Expr, head_dim: int, heads_per_slice: Expr, first_tile: Expr, query_tiles: Expr
    ) -> None:
        head = bind(T.truncdiv(unit, query_tiles))  # not //, which asks about signs
        self.lane = bind(item % _HALVES * _QUERIES)  # of the item's first query
        self.tile = bind(unit - head * query_tiles + first_tile)
        self.slice = bind(T.truncdiv(head, heads_per_slice))
        self.part = bind((head - self.slice * heads_per_slice) * head_dim)  # the head's first feature in its slice


def _launch(name: str, style: Style) -> Launch:
    units = _UNITS[style]
    return Launch(name, (_HALVES * units, _ITEMS), (units, _ROWS * _ITEMS))


def _keys(n: Expr) -> Expr:
    return bind((n + LANES - 1) // LANES * LANES)


def scores(style: Style, shape: KernelShape, storage: GpuPrecision) -> Kernel:
    """(qkv: S, scores: f32, heads_per_slice, width, qkv_rows, n, first_tile, query_tiles): scores (heads, query_tiles,
    keys, 16) of `query_tiles` tiles of queries from `first_tile` on, keys = pad16(n). Units: heads * query_tiles; keys.

    The rows of slice s in qkv (tiles, qkv_rows = slices * 3 width, 16): q at 3 s width, then k, then v.
    """
    launch_, dim = _launch("stic_scores", style), shape.head_dim

    def body(
        qkv: Buffer,
        out: Buffer,
        heads_per_slice: Expr,
        width: Expr,
        qkv_rows: Expr,
        n: Expr,
        first_tile: Expr,
        query_tiles: Expr,
    ) -> None:
        sums_and_keys = ((_ROWS * _QUERIES, "float32"), (_ROWS, "float32"))
        with launch(2, launch_.local) as ((units, group), (part, item)), local(*sums_and_keys) as (acc, four):
            keys, key = _keys(n), bind((group * _ITEMS + item) * _ROWS)
            unit = bind(units * _UNITS[style] + part // _HALVES)
            count = T.truncdiv(qkv_rows, 3 * width) * heads_per_slice * query_tiles
            with when(tirx.And(key < keys, unit < count)):
                here = _Unit(unit, part, dim, heads_per_slice, first_tile, query_tiles)
                row = bind(here.slice * 3 * width + here.part)
                q_at = bind((here.tile * qkv_rows + row) * LANES + here.lane)
                k_at = bind((key // LANES * qkv_rows + row + width) * LANES + key % LANES)
                for r in range(_ROWS):
                    store(acc, r * _QUERIES, f32(0.0, _QUERIES), _QUERIES)
                with loop(dim) as d:
                    store(four, 0, load_real(qkv, k_at + d * LANES, _ROWS), _ROWS)
                    query = bind(load_real(qkv, q_at + d * LANES, _QUERIES))
                    for r in range(_ROWS):
                        term = splat(bind(four[r]), _QUERIES) * query
                        store(acc, r * _QUERIES, load(acc, r * _QUERIES, _QUERIES) + term, _QUERIES)
                out_at = bind((unit * keys + key) * LANES + here.lane)
                for r in range(_ROWS):
                    store(out, out_at + r * LANES, load(acc, r * _QUERIES, _QUERIES), _QUERIES)

    names = ("heads_per_slice", "width", "qkv_rows", "n", "first_tile", "query_tiles")
    pointers = [("qkv", storage), ("scores", "float32")]
    return Kernel(kernel(launch_.name, [*pointers, *((name, "scalar") for name in names)], body), launch_)


def softmax(style: Style, shape: KernelShape, storage: GpuPrecision) -> Kernel:
    """(scores: f32, n, count): in place softmax over keys 0 .. n-1 of `count` units (keys, 16); later keys become 0."""
    launch_, width = Launch("stic_softmax", (ITEMS,), (1,), LOCAL_BYTES), _QUERIES

    def body(out: Buffer, n: Expr, count: Expr) -> None:
        with share(count) as part:
            keys = _keys(n)
            start = bind(part.unit * keys * LANES + part.lane)

            def read(key: Expr) -> Expr:
                return bind(load_vector(out, start + key * LANES, width))

            def greater(a: Expr, b: Expr) -> Expr:
                return pick(a > b, a, b)

            store(part.result, 0, f32(_LEAST, width), width)
            part.rows(n, lambda key: store(part.result, 0, greater(read(key), load(part.result, 0, width)), width))
            greatest = part.reduce(greater)
            store(part.result, 0, f32(0.0, width), width)

            def exponential(key: Expr) -> None:
                power = bind(T.exp(read(key) - greatest))
                store(out, start + key * LANES, power, width)
                store(part.result, 0, load(part.result, 0, width) + power, width)

            part.rows(n, exponential)
            inverse = bind(f32(1.0, width) / part.reduce(lambda a, b: a + b))
            part.rows(n, lambda key: store(out, start + key * LANES, read(key) * inverse, width))
            with when(part.strip < keys - n):
                store(out, start + (part.strip + n) * LANES, f32(0.0, width), width)

    arguments = [("scores", "float32"), ("n", "scalar"), ("count", "scalar")]
    return Kernel(kernel(launch_.name, arguments, body), launch_)


def values(style: Style, shape: KernelShape, storage: GpuPrecision) -> Kernel:
    """(scores: f32, qkv: S, context: S, heads_per_slice, width, qkv_rows, context_rows, n, first_tile, query_tiles):
    weighted sums of values, scores as softmax leaves them. Units: heads * query_tiles; features of a head.

    context (tiles, context_rows = slices * width, 16): a head's features at slice * width + part * head_dim. Others
    are not written.
    """
    launch_, dim = _launch("stic_values", style), shape.head_dim

    def body(
        weights: Buffer,
        qkv: Buffer,
        context: Buffer,
        heads_per_slice: Expr,
        width: Expr,
        qkv_rows: Expr,
        context_rows: Expr,
        n: Expr,
        first_tile: Expr,
        query_tiles: Expr,
    ) -> None:
        sums_and_values = ((_ROWS * _QUERIES, "float32"), (_ROWS * _STEP, "float32"))
        with launch(2, launch_.local) as ((units, group), (part, item)), local(*sums_and_values) as (acc, few):
            keys, first = _keys(n), bind((group * _ITEMS + item) * _ROWS)
            unit = bind(units * _UNITS[style] + part // _HALVES)
            count = T.truncdiv(context_rows, width) * heads_per_slice * query_tiles
            with when(tirx.And(first < dim, unit < count)):
                here = _Unit(unit, part, dim, heads_per_slice, first_tile, query_tiles)
                v_row = bind(here.slice * 3 * width + 2 * width + here.part)
                p_at = bind(unit * keys * LANES + here.lane)
                for f in range(_ROWS):
                    store(acc, f * _QUERIES, f32(0.0, _QUERIES), _QUERIES)
                with loop(keys // _STEP) as step:
                    key = bind(step * _STEP)
                    v_at = bind((key // LANES * qkv_rows + v_row) * LANES + key % LANES)
                    for f in range(_ROWS):
                        feature = first + f if dim % _ROWS == 0 else T.min(first + f, dim - 1)  # none past the head
                        store(few, f * _STEP, load_real(qkv, v_at + feature * LANES, _STEP), _STEP)
                    for j in range(_STEP):
                        weight = bind(load_vector(weights, p_at + (key + j) * LANES, _QUERIES))
                        for f in range(_ROWS):
                            term = splat(bind(few[f * _STEP + j]), _QUERIES) * weight
                            store(acc, f * _QUERIES, load(acc, f * _QUERIES, _QUERIES) + term, _QUERIES)
                row = bind(here.tile * context_rows + here.slice * width + here.part + first)
                for f in range(_ROWS):
                    with when(first + f < dim):
                        at = (row + f) * LANES + here.lane
                        store_real(context, at, load(acc, f * _QUERIES, _QUERIES), _QUERIES)

    names = ("heads_per_slice", "width", "qkv_rows", "context_rows", "n", "first_tile", "query_tiles")
    pointers = [("scores", "float32"), ("qkv", storage), ("context", storage)]
    return Kernel(kernel(launch_.name, [*pointers, *((name, "scalar") for name in names)], body), launch_)
