"""Decoding of planes in OpenCL C: exact for every bitwidth, every code, and both orders of columns."""

from __future__ import annotations

import numpy as np
import pytest

from stic.runtime.blocks import places
from stic.schedules.opencl.decode import QUAD, Planes, position
from stic.schedules.opencl.program import Kernel, Launch, assemble
from stic.schedules.opencl.source import launch
from stic.schedules.pack import pack_planes
from stic.schedules.tir import T, kernel, loop, store

ROWS, COLUMNS, BLOCK = 48, 80, 1  # the block in the middle is decoded
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def decode_kernel(bit_count: int, q: int) -> Kernel:
    """Decode a block twice: quads of 4 rows to float32, column by column, as products do that keep weights in
    registers; and the two strips of each word of a plane to packed int8, as those do that share a panel."""
    record = Launch("decode", (1,), (1,))

    def body(weights, words, codes, values, packed, columns) -> None:
        with launch(1, record.local) as (_, _):
            planes = Planes(bit_count, q, (weights, words), codes, T.int32(1), T.int32(BLOCK), columns)
            with loop(columns // QUAD) as c, loop(16 // QUAD) as strip:
                read = planes.load(*planes.word(c, strip * QUAD))
                for r in range(QUAD):
                    quad = planes.quad(read, r * q)
                    for j in range(QUAD):
                        store(values, (strip * QUAD + r) * columns + c * QUAD + j, planes.value(quad, j), 1)
            with loop(columns // 2) as number, loop(2) as i:
                quad, row, shift = planes.strip(number, i)
                read = planes.load(number, shift)
                for r in range(QUAD):
                    store(packed, (row + r) * (columns // QUAD) + quad, planes.packed(read, r * q), 1)

    pointers = [("weights", "uint8"), ("words", "uint32"), ("codes", "uint32"), ("values", "float32")]
    return Kernel(kernel("decode", [*pointers, ("packed", "uint32"), ("columns", "scalar")], body), record)


@pytest.mark.parametrize("q", (4, 8))
@pytest.mark.parametrize("bit_count", WIDTHS)
def test_every_code_decodes_to_its_value(device, bit_count, q):
    rng = np.random.default_rng(bit_count)
    count = 1 << bit_count
    table = np.resize(rng.permutation(255) - 127, count).astype(np.int8)
    parts = np.resize(np.arange(count), ROWS * COLUMNS).astype(np.uint8).reshape(3, -1)
    codes = np.stack([rng.permutation(part) for part in parts]).reshape(ROWS, COLUMNS)
    planes, offsets, at = pack_planes(codes, bit_count, q), np.zeros((2, 12), np.uint32), 64
    memory = rng.integers(0, 256, 16384).astype(np.uint8)
    for word, part in [*enumerate(planes), (8, table.view(np.uint8))]:
        memory[at : at + part.size], offsets[1, word] = part, at
        at += part.size + 64
    values, packed = np.zeros((16, COLUMNS), np.float32), np.zeros((16, COLUMNS // QUAD), np.uint32)
    arguments = [memory, memory.view("<u4"), offsets, values, packed, COLUMNS]
    decode = decode_kernel(bit_count, q)
    values, packed = device.run(assemble([decode]).text, {"DOT": 0, "WIDTHS": 0}, decode.launch, (1,), arguments)[3:]
    expected = table[codes[16 * BLOCK : 16 * BLOCK + 16]]
    assert len(np.unique(codes[16 * BLOCK : 16 * BLOCK + 16])) == count
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(packed.view(np.int8), expected)


@pytest.mark.parametrize("q", (4, 8))
def test_positions_of_outliers_are_those_of_blocks(device, q):
    record, count = Launch("place", (1,), (1,)), 16 * COLUMNS

    def body(rows, columns, n) -> None:
        with launch(1, record.local), loop(n) as i:
            row, column = position(i, q)
            store(rows, i, row, 1)
            store(columns, i, column, 1)

    function = kernel("place", [("rows", "int32"), ("columns", "int32"), ("n", "scalar")], body)
    text = assemble([Kernel(function, record)]).text
    empty = [np.zeros(count, np.int32), np.zeros(count, np.int32)]
    found = device.run(text, {"DOT": 0, "WIDTHS": 0}, record, (1,), [*empty, count])
    np.testing.assert_array_equal(found, places(np.arange(count), q))
