"""Quantise a decoder for a plan: each block at its own bits, on the stream that those before it make there.

What a planner chooses among are drafts, quantised apart from each other. A block makes up for the errors of those
before it, and these follow from the plan. So once a plan is known, its blocks are quantised in their order.
docs/decoders.md has what that is worth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from stic.compiler.decoder.forward import Run, Tap, embed, read_block, run_block
from stic.compiler.decoder.model import Array
from stic.compiler.decoding.apart import quantized_apart
from stic.compiler.decoding.cut import Cut
from stic.compiler.decoding.mixtures import Block
from stic.compiler.decoding.quantize import (
    BlockQuantizer,
    Ids,
    QuantizedDecoder,
    Tick,
    jobs_apart,
    keep,
    read_codes,
    write_codes,
)
from stic.compiler.decoding.stacks import stacks_of
from stic.compiler.importance.evaluate import Assignment
from stic.compiler.importance.jobs import Workers
from stic.compiler.quantization.quantize import MatrixLevel
from stic.runtime.format import LEVEL_BITS
from stic.runtime.layout import Shape


@dataclass(frozen=True, eq=False)
class RefinedDecoder:
    """Drafts of a decoder, with other codes in their place where a plan has some."""

    base: QuantizedDecoder
    fine: QuantizedDecoder
    quantizer: str = "grouped"
    nested: bool = False

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.base.name

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """How each block is cut."""
        return self.base.shapes

    @property
    def cut(self) -> Cut:
        """The decoder and its shapes."""
        return self.base.cut

    def level(self, block: int, index: int, name: str, bits: int) -> MatrixLevel:
        """Return one matrix of slice `index` at one bitwidth."""
        refined = self.fine.path(block, bits).is_file()
        return (self.fine if refined else self.base).level(block, index, name, bits)

    def weights(self, block: int, index: int) -> dict[str, Array]:
        """The matrices of a slice before they were quantised, (N, K) float32, padded with zeros."""
        return self.base.weights(block, index)


def refine(
    quantized: QuantizedDecoder, plans: Sequence[Assignment], ids: Ids, folder: Path, workers: Workers,
    progress: Tick = lambda done, total: None,
) -> RefinedDecoder:  # fmt: skip
    """Quantise what the plans of a package have, into files of `folder`; the first is the default.

    Blocks of the default plan make up for each other's errors. What other plans have besides, and the vocabulary, are
    quantised for what the exact model reads. `ids` (windows, tokens) are calibration tokens. Blocks whose files are
    there are not quantised again.
    """
    cut, last, first = quantized.cut, len(quantized.shapes) - 1, plans[0]
    used = [{bits for plan in plans for bits in plan[number]} & set(LEVEL_BITS) for number in range(last + 1)]
    fine = QuantizedDecoder(cut, tuple(sorted(set().union(*used[:-1]))), tuple(sorted(used[last])), folder)
    total, done = len(first), 0

    def tick(blocks: int = 1) -> None:
        nonlocal done
        done = min(total, done + blocks)
        progress(done, total)

    with threadpool_limits(workers.jobs or os.cpu_count()):
        _along(fine, first, ids, tick)
    more = {
        number: tuple(b for b in sorted(some) if not fine.path(number, b).is_file()) for number, some in enumerate(used)
    }
    keep(
        fine,
        quantized_apart(jobs_apart(fine, {n: some for n, some in more.items() if some}, ids), workers, lambda: None),
    )
    tick()
    return RefinedDecoder(quantized, fine)


def _along(fine: QuantizedDecoder, plan: Assignment, ids: Ids, tick: Callable[[], None]) -> None:
    """Quantise the blocks of a plan, the vocabulary left out, in their order."""
    cut = fine.cut
    run, x = Run(cut.decoder.architecture, (ids.shape[0], ids.shape[1])), embed(cut.decoder, ids)
    exact_run, exact = Run(cut.decoder.architecture, run.shape), x
    files = [{bits: fine.path(n, bits) for bits in sorted({*row} & {*LEVEL_BITS})} for n, row in enumerate(plan[:-1])]
    missing = [number for number, paths in enumerate(files) if not all(path.is_file() for path in paths.values())]
    for number, (row, paths) in enumerate(zip(plan[:-1], files, strict=True)):
        if number > max(missing, default=-1):  # nothing is left that the streams would be for
            tick()
            continue
        known = {bits: read_codes(path, bits) for bits, path in paths.items()}
        blocks = [BlockQuantizer(cut, number, bits, found) for bits, found in known.items()]
        exact = run_block(exact_run, number, read_block(cut.decoder, number), exact, _all(blocks))
        outputs = []
        for block in blocks:
            outputs.append(run_block(run, number, block.weights, x, block))
            if known[block.bits] is None:
                write_codes(paths[block.bits], block.found, block.bits)
        x = outputs[0] if len(set(row)) == len(outputs) == 1 else _mixed(fine, number, row, run, x)
        tick()


def _all(blocks: Sequence[BlockQuantizer]) -> Tap:
    """A tap of the exact model: each block sees what its matrices should have read."""

    def remember(number: int, name: str, rows: Array) -> Array:
        for block in blocks:
            block.remember(number, name, rows)
        return rows

    return remember


def _mixed(fine: QuantizedDecoder, number: int, row: Sequence[int], run: Run, x: Array) -> Array:
    """The stream after a block whose slices have several bitwidths, or none that is quantised."""
    stacks = stacks_of(fine.cut, number)
    full = not set(row) & set(LEVEL_BITS)
    tap = None if full else lambda _, name, rows: stacks.activations(rows, name)
    return run_block(run, number, Block(fine, number).mixed(tuple(row)), x, tap)
