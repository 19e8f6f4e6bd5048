"""How 64 work-items share one tile of 16 tokens, and how they reduce over its rows.

    item      0        1        2        3       ...    63
    rows   0,32,..  0,32,..  1,33,..  1,33,..        31,63,..      32 strips of rows (features or keys)
    lanes    0-7     8-15      0-7     8-15            8-15        2 halves, a vector of 8 lanes each

Neighbouring items read neighbouring vectors. A reduction over all rows is what each item has found in its own, then a
tree of five steps in 2 KiB of local memory: the order of the sums is fixed, so that results repeat bit for bit. On Mali
local memory is ordinary memory behind the same cache; for one vector an item that costs nothing that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stic.schedules.opencl.source import barrier, launch, load_vector, shared
from stic.schedules.tir import LANES, Buffer, Expr, bind, load, local, loop, store, when

ITEMS, WIDTH = 64, 8
STRIPS = ITEMS * WIDTH // LANES
LOCAL_BYTES = 4 * ITEMS * WIDTH


@dataclass(frozen=True)
class Share:
    """What one work-item of a tile works on."""

    unit: Expr  # number of the tile
    item: Expr
    strip: Expr  # its rows are strip, strip + STRIPS, ...
    lane: Expr  # its first lane, 0 or WIDTH
    partials: Buffer  # local memory, WIDTH values an item
    result: Buffer  # its own, WIDTH values

    def rows(self, count: Expr, visit: Callable[[Expr], None]) -> None:
        """Emit visit(row) for the item's rows below `count`, a number or an expression."""
        if isinstance(count, int):
            with loop(count // STRIPS) as turn:
                visit(bind(turn * STRIPS + self.strip))
            if count % STRIPS:
                with when(self.strip < count % STRIPS):
                    visit(bind(self.strip + count // STRIPS * STRIPS))
        else:
            with loop((count - self.strip + STRIPS - 1) // STRIPS) as turn:
                visit(bind(turn * STRIPS + self.strip))

    def reduce(self, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """Combine the `result` of all strips; every item gets its lanes' outcome. All items must come here."""
        barrier()  # what the last reduction left has been read
        store(self.partials, self.item * WIDTH, load(self.result, 0, WIDTH), WIDTH)
        step = STRIPS // 2
        while step:
            barrier()
            with when(self.strip < step):
                mine = load_vector(self.partials, self.item * WIDTH, WIDTH)
                other = load_vector(self.partials, (self.item + step * (ITEMS // STRIPS)) * WIDTH, WIDTH)
                store(self.partials, self.item * WIDTH, combine(bind(mine), bind(other)), WIDTH)
            step //= 2
        barrier()
        return bind(load_vector(self.partials, self.lane, WIDTH))


@contextmanager
def share(count: Expr, dtype: str = "float32") -> Iterator[Share]:
    """Open a work-group of ITEMS for each of `count` tiles; groups beyond them do nothing."""
    with launch(1, (ITEMS,)) as ((unit,), (item,)), when(unit < count):
        with shared((ITEMS * WIDTH, dtype)) as (partials,), local((WIDTH, dtype)) as (result,):
            yield Share(unit, item, bind(item // 2), bind(item % 2 * WIDTH), partials, result)
