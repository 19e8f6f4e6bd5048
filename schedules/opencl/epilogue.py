"""What follows the sums of a product: scales, outliers, bias, activation, and the stores.

For each row of a tile one multiplication by the row's scale, one by the tokens' where x was quantised, one addition;
for each outlier of the item's rows one load of a feature and a multiply-add a row. Every item looks at all entries of
its block and skips other rows': with one outlier in 400 weights that is one entry for 25 columns.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.opencl.activation import activated
from stic.schedules.opencl.decode import OUTLIERS, STARTS, TABLE, offset, position
from stic.schedules.opencl.product import ACCUMULATE, ACTIVATED, FULL, JOINED, Block
from stic.schedules.opencl.source import load_real, load_vector, store_real, store_vector
from stic.schedules.opencl.sums import Sums
from stic.schedules.tir import LANES, Expr, T, bind, bits, cast, load, loop, pick, splat, store, when


def finish(work: Sums, block: Block, row: Expr) -> None:
    """Emit all of it for one item, whose first row in the block is `row`."""
    a, product, lanes, results = work.a, work.product, work.lanes, work.results
    first, token = bind(block.row + row), bind(work.tile * LANES + work.lane)

    def each(change: Callable[[int, Expr], Expr]) -> None:
        for r in range(work.rows):
            store(results, r * lanes, change(r, load(results, r * lanes, lanes)), lanes)

    def line(row: Expr) -> Expr:  # of y or out
        return bind((work.tile * a.y_rows + row) * LANES + work.lane)

    if product.width not in FULL:
        for r in range(work.rows):
            total = cast(load(work.sums, r * lanes, lanes), f"float32x{lanes}")
            store(results, r * lanes, splat(bind(a.trunk[a.scale_at + first + r]), lanes) * total, lanes)
        _add_outliers(work, block, row)
    if product.integers:
        factor = bind(load_vector(a.token_scale, token, lanes))
        each(lambda r, value: factor * value)
    with when((a.flags & ACCUMULATE) == 0):
        each(lambda r, value: splat(bind(a.trunk[a.bias_at + first + r]), lanes) + value)
    with when((a.flags & ACCUMULATE) != 0):
        each(lambda r, value: load_vector(a.y, line(first + r), lanes) + value)
    with when((a.flags & ACTIVATED) != 0):
        each(lambda r, value: activated(product.shape, value, lanes))
    with when((a.flags & JOINED) != 0):
        for r in range(work.rows):
            store_vector(a.y, line(first + r), load(results, r * lanes, lanes), lanes)
    with when((a.flags & JOINED) == 0):
        for r in range(work.rows):
            store_real(a.out, line(a.out_first + first + r), load(results, r * lanes, lanes), lanes)


def _add_outliers(work: Sums, block: Block, row: Expr) -> None:
    """Add what the exact weights of the item's rows give beyond their code's share, entry by entry."""
    a, product, lanes, results = work.a, work.product, work.lanes, work.results
    with loop(block.slices) as s:
        entry = bind(block.entry + s)
        table = offset(a.codes, entry, TABLE)
        middle = bind(cast(bits(a.weights[table + (1 << (product.width - 1))], "int8"), "float32"))
        starts = bind((offset(a.codes, entry, STARTS) >> 2) + block.within)
        begin, end = (bind(cast(a.weights32[starts + i], "int32")) for i in (0, 1))
        entries = bind((offset(a.codes, entry, OUTLIERS) >> 2) + begin)
        with loop(end - begin) as i:
            place = bind(cast(a.weights32[entries + i] & T.uint32(0xFFFF), "int32"))
            in_block, column = position(place, product.q)
            mine = bind(in_block - row)
            with when(T.And(mine >= 0, mine < work.rows)):
                value = load_real(a.weights16, 2 * (entries + i) + 1, 1)
                beyond = bind(value - a.trunk[a.scale_at + block.row + in_block] * middle)
                x = work.feature(a.x_first + s * a.columns + column)
                for r in range(work.rows):
                    weight = bind(pick(mine == r, beyond, T.float32(0.0)))
                    grown = load(results, r * lanes, lanes) + splat(weight, lanes) * x
                    store(results, r * lanes, grown, lanes)
