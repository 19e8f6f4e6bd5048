"""Weights of a block of 16 rows from their one-bit planes: four neighbouring columns of a row, a quad, at a time.

The bits of a quad are one nibble of every plane, since q = 4 or 8 columns of a row lie together (see
`stic.runtime.blocks`). Eight quads make a 32-bit word of a plane:

    q = 4   word 2 c + h       quad c of rows 8 h .. 8 h + 7, one a nibble
    q = 8   word 4 (c / 2) + h quads c and c + 1 of rows 4 h .. 4 h + 3, a row a byte

From nibbles to four int8 in one word, most significant plane first:

    nibble     d c b a                        shift, and
    spread     0000000d 0000000c 0000000b 0000000a     multiplication by 2^21 + 2^14 + 2^7 + 1, and
    codes      2 codes + spread               shift-or
    values     2 or 3 bits: a tree of selections among table values kept in registers, on four bytes at once
               else a load from the table for each code; its 16 to 256 bytes stay in the first-level cache

    operations a quad        2 bits   3     4     5     6     7     8
    planes to codes, masks     10    15    22    28    34    40    46
    values                      7    17    11    11    11    11    11
    loads of the table                      4     4     4     4     4
    packing four int8                       6     6     6     6     6

The tree needs 4 or 8 registers; 4 bits would need 16, and 37 operations where the load unit, idle otherwise, takes 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from stic.schedules.tir import Buffer, Expr, T, bind, bits, cast, shuffle

QUAD = 4  # columns
CODES_WORDS = 12  # of an entry of the codes table: 8 planes, value table, first outliers, outliers, 0
TABLE, STARTS, OUTLIERS = 8, 9, 10  # words of an entry; before them one for each plane
_SPREAD, _BYTES = 0x204081, 0x01010101
_MOST_IN_REGISTERS = 3  # bits


def offset(codes: Buffer, entry: Expr, word: int) -> Expr:
    """A byte offset of the codes table, as int32: weights take less than 2 GiB."""
    return bind(cast(codes[entry * CODES_WORDS + word], "int32"))


def position(place: Expr, q: int) -> tuple[Expr, Expr]:
    """(row in the block, column) at a position of a block, bound."""
    row = bind((place >> (q.bit_length() - 1)) & 15)
    return row, bind((place >> ((16 * q).bit_length() - 1)) * q + (place & (q - 1)))


def byte(quad: Expr, column: int) -> Expr:
    """One of four int8 in a uint32, as float32."""
    return bind(cast(shuffle([bits(bind(quad), "int8x4")], [column]), "float32"))


class Planes:
    """One block of 16 rows and `columns` columns of the matrix at `entry` of the codes table."""

    def __init__(
        self,
        bit_count: int,
        q: int,
        weights: tuple[Buffer, Buffer],  # as bytes and as 32-bit words
        codes: Buffer,
        entry: Expr,
        block: Expr,
        columns: Expr,
    ) -> None:
        self.q = q
        self._bytes, self._words = weights
        first = bind(block * (columns >> 1))  # a block has columns / 2 words of a plane
        self._planes = [bind((offset(codes, entry, p) >> 2) + first) for p in range(bit_count)]
        self._table = offset(codes, entry, TABLE)
        # Nodes of the lowest level of the tree: the even value, and how the odd one differs, in each of four bytes.
        self._pairs: list[tuple[Expr, Expr]] = []
        if bit_count <= _MOST_IN_REGISTERS:
            values = [self._everywhere(code) for code in range(1 << bit_count)]
            self._pairs = [(even, bind(even ^ odd)) for even, odd in zip(values[::2], values[1::2], strict=True)]

    def _everywhere(self, code: int) -> Expr:
        return bind(cast(self._bytes[self._table + code], "uint32") * T.uint32(_BYTES))

    def word(self, quad: Expr, row: Expr) -> tuple[Expr, Expr]:
        """(number of the word, shift of the nibble) where planes have `quad` of `row`; row + 1 is q bits further on."""
        if self.q == QUAD:
            return bind(2 * quad + (row >> 3)), bind((row & 7) * 4)
        return bind((quad >> 1) * 4 + (row >> 2)), bind((row & 3) * 8 + (quad & 1) * 4)

    def strip(self, number: Expr, i: Expr) -> tuple[Expr, Expr, Expr]:
        """(quad, first row, shift) of strip i = 0, 1 of 4 rows whose nibbles are in word `number`: the way back."""
        if self.q == QUAD:
            return bind(number >> 1), bind((number & 1) * 8 + 4 * i), bind(16 * i)
        return bind((number >> 2) * 2 + i), bind((number & 3) * 4), bind(4 * i)

    def load(self, number: Expr, shift: Expr | None = None) -> list[Expr]:
        """Read a word of each plane, shifted right."""
        words = [self._words[plane + number] for plane in self._planes]
        return [bind(word if shift is None else word >> cast(shift, "uint32")) for word in words]

    def quad(self, words: Sequence[Expr], shift: int) -> Expr:
        """The quad whose nibbles start at bit `shift` of the words, in one uint32, first column in the low byte.

        Bytes are int8 values up to 3 bits, which are there at once, and codes above; `value` takes either.
        """
        spread = self._spread(words, shift)
        if self._pairs:
            return self._selected(spread)
        return bind(reduce(lambda code, bit: code << T.uint32(1) | bit, spread))

    def value(self, quad: Expr, column: int) -> Expr:
        """The weight of one column of a `quad`, float32."""
        if self._pairs:
            return byte(quad, column)
        return bind(cast(bits(self._look_up(quad, column), "int8"), "float32"))

    def packed(self, words: Sequence[Expr], shift: int) -> Expr:
        """The int8 values of a quad in one uint32, first column in the low byte."""
        quad = self.quad(words, shift)
        if self._pairs:
            return quad
        values = [cast(self._look_up(quad, j), "uint32") for j in range(QUAD)]
        return bind(reduce(lambda word, j: word | values[j] << T.uint32(8 * j), range(1, QUAD), values[0]))

    def _spread(self, words: Sequence[Expr], shift: int) -> list[Expr]:
        """A bit of each plane, most significant first, in the lowest bit of each byte."""
        nibbles = [(word >> T.uint32(shift) if shift else word) & T.uint32(15) for word in words]
        return [bind(nibble * T.uint32(_SPREAD) & T.uint32(_BYTES)) for nibble in nibbles]

    def _look_up(self, codes: Expr, column: int) -> Expr:
        code = codes >> T.uint32(8 * column) & T.uint32(255)
        return bind(self._bytes[self._table + cast(code, "int32")])

    def _selected(self, spread: Sequence[Expr]) -> Expr:
        masks = [bind(bit * T.uint32(255)) for bit in spread]
        level = [bind(even ^ (masks[-1] & odd)) for even, odd in self._pairs]
        for mask in masks[-2::-1]:
            level = [bind(no ^ (mask & (no ^ yes))) for no, yes in zip(level[::2], level[1::2], strict=True)]
        (value,) = level
        return value
