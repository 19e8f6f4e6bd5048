"""stic_gemm_* without local memory: every work-item decodes the weights it needs into registers.

On Mali local memory is main memory behind the same caches, so passing decoded weights through it gains nothing (Arm
Mali Bifrost and Valhall OpenCL Developer Guide, 101574, 7.3.2). What a group shares is the cache: 64 rows x 16 tokens,
32 items, of which 8 take a block of 16 rows.

    float arithmetic: an item has 4 rows x 8 tokens        int8: 2 rows x 16 tokens

             8 tokens  [ x x x x x x x x ] column 4 c              16 tokens  [xxxx xxxx .. xxxx] columns 4 c .. 4 c + 3
             ..                            column 4 c + 3
    4 rows   [ sums 4 x 8 float32        ]                 2 rows  [ sums 2 x 16 int32         ]
    16 bits of each plane -> 16 float32                    8 bits of each plane -> 2 words of four int8

For weights of b bits a step, four columns, takes per item (operations of a quad: `decode.py`):

               loads: planes  tables, b > 3   x              multiply-adds   conversions       quads decoded
    float               b          16         4 of 8 values       128        16, and 32 halves       4
    int8                b           8         4 of 16 bytes        32        -                       2

32 sums, 4 quads, the 4 weights of a column, 8 of x, an offset for each plane and addresses take about 60 of the 64
registers that a thread has (101574, 9.6); words of planes are dead once their quads are decoded. Float is bound by
arithmetic: multiply-adds are a half of it at 2 bits, 0.4 at 4 and a third at 8, decoding and conversions the rest. int8
is bound by decoding, which is why it trades rows for tokens: twice the products for a weight decoded with as many sums.
Loads of x are the same for 4 or 8 neighbouring items, loads of planes for those of other tokens: both come from the
first-level cache.

The same text serves full precision on every GPU, where nothing is decoded: four columns of four rows are 4 loads.
"""

from __future__ import annotations

from stic.runtime.format import TILE
from stic.schedules.opencl.decode import QUAD
from stic.schedules.opencl.epilogue import finish
from stic.schedules.opencl.product import Arguments, Block, Product
from stic.schedules.opencl.program import Kernel, Launch
from stic.schedules.opencl.source import launch
from stic.schedules.opencl.sums import Sums
from stic.schedules.tir import LANES, bind, local, loop, when

_BLOCKS = 4  # of rows, a group
_ITEMS = 8  # of a block and a tile of tokens


def gemm(product: Product) -> Kernel:
    """The product for one width. Units: rows of the run; tokens."""
    record = Launch(f"stic_gemm_{product.suffix}", (_BLOCKS * _ITEMS, 1), (_BLOCKS * TILE, LANES))
    rows, lanes = (2, 16) if product.integers else (4, 8)
    strips = TILE // rows

    def body(a: Arguments) -> None:
        with (
            launch(2, record.local) as ((group, tile), (item, _)),
            local(*Sums.local_buffers(product, rows, lanes)) as buffers,
        ):
            number, part = bind(group * _BLOCKS + item // _ITEMS), bind(item % _ITEMS)
            row, lane = bind(part % strips * rows), bind(part // strips * lanes)
            with when(number < a.total_blocks()), when(tile * LANES < a.n):
                block, work = Block(a, number), Sums(product, a, rows, lanes, buffers, tile, lane)
                work.clear()
                with loop(block.slices) as s:
                    matrix = work.matrix(block, s)
                    with loop(a.columns // QUAD) as quad:
                        work.step(matrix, quad, row)
                finish(work, block, row)

    return product.kernel(record, body)
