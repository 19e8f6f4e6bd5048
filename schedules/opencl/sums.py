"""The sums of one work-item: a register tile of rows by tokens, which grows by a quad, four columns, at a time.

    float arithmetic    for each column a weight of every row, and a vector of the tokens' x:  sums[row] += weight * x
    int8 arithmetic     weights of a row and x of a token as four int8 in a word:  sum = stic_dot4(weights, x, sum)

Weights come from planes, from local memory or, at full precision, as they are stored. Where a table gives them, a float
weight is looked up right before it multiplies: sixteen at once would take sixteen registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stic.runtime.format import TILE
from stic.schedules.opencl.decode import QUAD, Planes, byte, offset
from stic.schedules.opencl.product import FULL, Arguments, Block, Product
from stic.schedules.opencl.program import HALF_WEIGHTS
from stic.schedules.opencl.source import load_real, load_vector
from stic.schedules.tir import LANES, Buffer, Expr, T, bind, bits, cast, f32, i32, load, shuffle, splat, store


class Matrix:
    """The weights of one block in one of its slices, and the first feature of x that they take."""

    def __init__(self, product: Product, a: Arguments, block: Block, s: Expr) -> None:
        self.x_first = bind(a.x_first + s * a.columns)
        entry = bind(block.entry + s)
        self.planes: Planes | None = None
        if product.width in FULL:
            self._a, self._half = a, product.width == HALF_WEIGHTS
            first = offset(a.codes, entry, 0) >> (1 if self._half else 2)
            self._first = bind(first + block.within * TILE * a.columns)
        else:
            weights = (a.weights, a.weights32)
            self.planes = Planes(product.width, product.q, weights, a.codes, entry, block.within, a.columns)

    def full(self, row: Expr, quad: Expr) -> Expr:
        """Four columns of a row at full precision."""
        at = bind(self._first + row * self._a.columns + quad * QUAD)
        if self._half:
            return load_real(self._a.weights16, at, QUAD)
        return bits(bind(load_vector(self._a.weights32, at, QUAD)), f"float32x{QUAD}")


@dataclass(frozen=True)
class Sums:
    """The sums of one work-item, `rows` rows of a block by `lanes` tokens of a tile, and how they grow by a quad."""

    product: Product
    a: Arguments
    rows: int
    lanes: int
    buffers: Sequence[Buffer]  # as `local_buffers` says
    tile: Expr
    lane: Expr  # first token in the tile

    @staticmethod
    def local_buffers(product: Product, rows: int, lanes: int) -> tuple[tuple[int, str], ...]:
        """What an item keeps in registers: sums; where products are in integers, the quads of x, and results."""
        if product.integers:
            return (rows * lanes, "int32"), (lanes, "int32"), (rows * lanes, "float32")
        return ((rows * lanes, "float32"),)

    @property
    def sums(self) -> Buffer:
        """(rows, lanes), int32 or float32."""
        return self.buffers[0]

    @property
    def results(self) -> Buffer:
        """(rows, lanes) float32: what becomes of the sums at the end; their own buffer if they are float32."""
        return self.buffers[-1]

    def clear(self) -> None:
        """Set the sums to zero."""
        zero = i32(0, self.lanes) if self.product.integers else f32(0.0, self.lanes)
        for r in range(self.rows):
            store(self.sums, r * self.lanes, zero, self.lanes)

    def matrix(self, block: Block, s: Expr) -> Matrix:
        """The weights of `block` in slice `s` of those that give it."""
        return Matrix(self.product, self.a, block, s)

    def step(self, matrix: Matrix, quad: Expr, row: Expr) -> None:
        """Add the products of the item's rows, of which `row` is the first, with one quad of x."""
        planes, feature = matrix.planes, matrix.x_first + quad * QUAD
        if planes is None:
            weights = [bind(matrix.full(row + r, quad)) for r in range(self.rows)]
            self.add(feature, weights, lambda four, column: bind(shuffle([four], [column])))
            return
        words, decode = planes.load(*planes.word(quad, row)), planes.packed if self.product.integers else planes.quad
        self.add(feature, [decode(words, r * planes.q) for r in range(self.rows)], planes.value)

    def add(self, feature: Expr, quads: Sequence[Expr], value: Callable[[Expr, int], Expr] = byte) -> None:
        """Add the products of one quad of each row with features `feature` to `feature` + 3 of x.

        Quads are four int8 in a uint32, or anything of which `value` takes one column as float32.
        """
        lanes, at = self.lanes, bind(self.tile * self.a.x_rows + feature)
        if not self.product.integers:
            for j in range(QUAD):
                weights = [value(quad, j) for quad in quads]
                x = bind(load_real(self.a.x, (at + j) * LANES + self.lane, lanes))
                for r, weight in enumerate(weights):
                    store(self.sums, r * lanes, load(self.sums, r * lanes, lanes) + splat(weight, lanes) * x, lanes)
            return
        self._load_tokens(at)
        for r, quad in enumerate(quads):
            weight = bind(bits(bind(quad), "int8x4"))
            for t in range(lanes):
                x = bits(bind(self.buffers[1][t]), "int8x4")
                grown = T.call_extern("int32", "stic_dot4", weight, x, self.sums[r * lanes + t])
                store(self.sums, r * lanes + t, grown, 1)

    def _load_tokens(self, at: Expr) -> None:
        """Read the int8 quads of the item's tokens that hold feature `at`, a multiple of 4 counted over tiles."""
        some = min(self.lanes, 4)  # a vector has 16 elements at most
        start = bind(((at >> 2) * LANES + self.lane) * QUAD)
        for t in range(0, self.lanes, some):
            quads = bind(load_vector(self.a.xq, start + t * QUAD, some * QUAD))
            store(self.buffers[1], t, bits(quads, f"int32x{some}"), some)

    def feature(self, column: Expr) -> Expr:
        """The values of one feature as float32: x, or int8 codes."""
        at = bind(self.tile * self.a.x_rows + column)
        if not self.product.integers:
            return bind(load_real(self.a.x, at * LANES + self.lane, self.lanes))
        self._load_tokens(at)
        left = splat(bind((3 - (at & 3)) * 8), self.lanes)
        codes = (load(self.buffers[1], 0, self.lanes) << left) >> i32(24, self.lanes)
        return bind(cast(codes, f"float32x{self.lanes}"))
