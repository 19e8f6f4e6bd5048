"""stic_gemv_*: products for at most 8 tokens, straight from the planes.

A work-group takes one block of 16 rows, and its 64 items share the columns, so that a matrix of few rows still occupies
the GPU and each plane is read once, by neighbouring items at neighbouring addresses:

    item        0            1            2            3            4           ...  63
    rows      0 - 3        4 - 7        8 - 11      12 - 15       0 - 3            12 - 15
    quads   0, 16, ..    0, 16, ..    0, 16, ..    0, 16, ..    1, 17, ..         15, 31, ..

An item sums up 4 rows x 8 tokens in registers, per quad as float arithmetic does in `gemm_mali.py` (128 multiply-adds
or 32 dot4 for 4 quads decoded, so decoding bounds it), over all slices of a JOINED run. Then the 16 partial sums of
every result are added in local memory, 8 KiB, always in the same order, and an item finishes one row x 2 tokens. On
Mali local memory is ordinary memory behind the cache: 4 stores and 16 loads of pairs are little beside the columns.
"""

from __future__ import annotations

from stic.runtime.format import TILE
from stic.schedules.opencl.decode import QUAD
from stic.schedules.opencl.epilogue import finish
from stic.schedules.opencl.product import Arguments, Block, Product
from stic.schedules.opencl.program import Kernel, Launch
from stic.schedules.opencl.source import barrier, launch, load_vector, shared, store_vector
from stic.schedules.opencl.sums import Sums
from stic.schedules.tir import T, bind, load, local, loop, store

_ROWS, _TOKENS = 4, 8  # of an item, before the reduction
_STRIPS = TILE // _ROWS
_PARTS = 16  # of the columns
_ITEMS = _STRIPS * _PARTS
_PAIR = 2  # tokens of an item, after the reduction
_BLOCK = TILE * _TOKENS  # sums of a block


def gemv(product: Product) -> Kernel:
    """The product for one width. Units: rows of the run."""
    record = Launch(f"stic_gemv_{product.suffix}", (_ITEMS,), (TILE,), 4 * _PARTS * _BLOCK)
    wide, narrow = (Sums.local_buffers(product, rows, tokens) for rows, tokens in ((_ROWS, _TOKENS), (1, _PAIR)))

    def body(a: Arguments) -> None:
        with launch(1, record.local) as ((group,), (item,)):
            with shared((_PARTS * _BLOCK, wide[0][1])) as (partials,), local(*wide, *narrow) as buffers:
                block, zero = Block(a, group), T.int32(0)
                strip, part = bind(item % _STRIPS), bind(item // _STRIPS)
                work = Sums(product, a, _ROWS, _TOKENS, buffers[: len(wide)], zero, zero)
                work.clear()
                with loop(block.slices) as s:
                    matrix = work.matrix(block, s)
                    with loop((a.columns // QUAD - part + _PARTS - 1) // _PARTS) as turn:
                        work.step(matrix, bind(turn * _PARTS + part), strip * _ROWS)
                for r in range(_ROWS):
                    at = bind(part * _BLOCK + (strip * _ROWS + r) * _TOKENS)
                    store_vector(partials, at, load(work.sums, r * _TOKENS, _TOKENS), _TOKENS)
                barrier()
                row, lane = bind(item // (_TOKENS // _PAIR)), bind(item % (_TOKENS // _PAIR) * _PAIR)
                last = Sums(product, a, 1, _PAIR, buffers[len(wide) :], zero, lane)
                last.clear()
                with loop(_PARTS) as p:
                    partial = load_vector(partials, p * _BLOCK + row * _TOKENS + lane, _PAIR)
                    store(last.sums, 0, load(last.sums, 0, _PAIR) + partial, _PAIR)
                finish(last, block, row)

    return product.kernel(record, body)
