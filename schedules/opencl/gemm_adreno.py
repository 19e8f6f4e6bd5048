"""stic_gemm_* for quantised weights with local memory: a group decodes a panel once, and all its items multiply it.

Adreno has local memory of its own in every processor, 32 KiB a group (Qualcomm, Snapdragon Mobile Platform OpenCL
General Programming and Optimization, 80-NB295-11). A group of 64 items, one wave, has 64 rows x 32 tokens:

                            items 0 .. 15   16 .. 31   32 .. 47   48 .. 63
                            8 tokens        8          8          8 tokens
      panel, 64 rows       [ 4 rows x 8  ] [   ...   ]                       x from memory, the same for 16 items
      x 64 columns of int8 [ sums        ]
      in local memory      [   ...       ]

    1. decode    64 rows x 64 columns are 128 words of a plane; an item decodes two: for each strip of 4 rows in a word
                 it loads the word of each plane, and stores 4 quads, four int8 in a word: panel[quad][row], 4 KiB
    2. barrier
    3. multiply  16 steps, for every quad of columns       loads                                  multiply-adds
                     float    4 words of the panel in one, 4 of 8 values of x                      128, 48 conversions
                     int8     4 words of the panel in one, 2 of 16 bytes of x                       32 (dot4)
    4. barrier

Decoding is shared by 32 tokens: for each step of 4 x 8 products of quads an item decodes one quad, where one that
decodes for itself (`gemm_mali.py`) takes four, or two. So multiply-adds bound float arithmetic; int8 arithmetic takes
as many operations for decoding as products at 3 to 4 bits. 32 sums, 4 words and the tokens' x need about 50 registers.
One panel of 4 KiB a group leaves local memory for seven other groups, which compute while this one waits.
"""

from __future__ import annotations

from stic.runtime.format import TILE
from stic.schedules.opencl.decode import QUAD
from stic.schedules.opencl.epilogue import finish
from stic.schedules.opencl.product import Arguments, Block, Product
from stic.schedules.opencl.program import Kernel, Launch
from stic.schedules.opencl.source import barrier, launch, load_vector, shared, store_vector
from stic.schedules.opencl.sums import Matrix, Sums
from stic.schedules.tir import LANES, Buffer, Expr, T, bind, load, local, loop, shuffle, store, when

_ROWS, _TOKENS = 4, 8  # of an item
_PANEL = 64  # rows, and columns, of a panel
_TILES = 2  # of tokens, a group
_BLOCKS = _PANEL // TILE
_QUADS = _PANEL // QUAD
_STRIPS = _PANEL // _ROWS
_ITEMS = _STRIPS * _TILES * LANES // _TOKENS
_WORD_QUADS = 8  # quads in a word of a plane
_BLOCK_ITEMS = _ITEMS // _BLOCKS  # that decode a block
_BLOCK_WORDS = TILE * _QUADS // _WORD_QUADS  # of a plane, a block of a panel


def _decode(matrix: Matrix, chunk: Expr, rest: Expr, item: Expr, words: Buffer, panel: Buffer) -> None:
    """Emit what one item decodes of a panel whose columns end after `rest`: words of its own block."""
    planes, block = matrix.planes, bind(item // _BLOCK_ITEMS * TILE)
    assert planes is not None  # full precision is not decoded
    for first in range(0, _BLOCK_WORDS, _BLOCK_ITEMS):
        number = bind(item % _BLOCK_ITEMS + first)
        with when(number < rest * TILE // (QUAD * _WORD_QUADS)):
            with loop(_WORD_QUADS // _ROWS) as i:
                quad, row, shift = planes.strip(number, i)
                shifted = planes.load(bind(chunk * _BLOCK_WORDS + number), shift)
                for r in range(_ROWS):
                    store(words, r, planes.packed(shifted, r * planes.q), 1)
                store_vector(panel, quad * _PANEL + block + row, load(words, 0, _ROWS), _ROWS)


def gemm(product: Product) -> Kernel:
    """The product for one width of 2 to 8 bits. Units: rows of the run; tokens.

    Items beyond the last block or tile repeat its work, so that all meet at the barriers, and keep nothing of it.
    """
    record = Launch(
        f"stic_gemm_{product.suffix}", (_ITEMS, 1), (_PANEL, _TILES * LANES), local_bytes=4 * _PANEL * _QUADS
    )

    def body(a: Arguments) -> None:
        sizes = ((_ROWS, "uint32"), *Sums.local_buffers(product, _ROWS, _TOKENS))
        with launch(2, record.local) as ((group, tiles), (item, _)):
            with shared((_PANEL * _QUADS, "uint32")) as (panel,), local(*sizes) as (words, *buffers):
                total, last_tile = a.total_blocks(), bind((a.n - 1) // LANES)
                strip, octet = bind(item % _STRIPS), bind(item // _STRIPS)
                number = bind(group * _BLOCKS + strip * _ROWS // TILE)
                tile = bind(tiles * _TILES + octet * _TOKENS // LANES)
                lane = bind(octet % (LANES // _TOKENS) * _TOKENS)
                work = Sums(product, a, _ROWS, _TOKENS, buffers, bind(T.min(tile, last_tile)), lane)
                work.clear()
                source = Block(a, bind(T.min(group * _BLOCKS + item // _BLOCK_ITEMS, total - 1)))
                with loop(source.slices) as s:
                    matrix = work.matrix(source, s)
                    with loop((a.columns + _PANEL - 1) // _PANEL) as chunk:
                        first = bind(chunk * _PANEL)
                        rest = bind(a.columns - first)
                        _decode(matrix, chunk, rest, item, words, panel)
                        barrier()
                        with loop(T.min(_QUADS, rest // QUAD)) as quad:
                            at = bind(quad * _PANEL + strip * _ROWS)
                            four = bind(load_vector(panel, at, _ROWS))
                            rows = [bind(shuffle([four], [r])) for r in range(_ROWS)]
                            work.add(matrix.x_first + first + quad * QUAD, rows)
                        barrier()
                with when(T.And(number < total, tile <= last_tile)):
                    finish(work, Block(a, number), bind(strip % (TILE // _ROWS) * _ROWS))

    return product.kernel(record, body)
