"""Quantise a decoder once more for a plan: each block at its own bits, on the stream that those before it make there.

The levels that importance is measured on were made one bitwidth after another. Each makes up for the errors of its own
bitwidth in earlier blocks, which are not those that a plan of several has. So once a plan is known, its blocks are
quantised in their order again. docs/decoders.md has what that is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from stic.compiler.decoder.forward import Run, Tap, embed, read_block, run_block
from stic.compiler.decoder.model import Array
from stic.compiler.decoding.cut import Cut
from stic.compiler.decoding.mixtures import Block
from stic.compiler.decoding.quantize import (
    BlockQuantizer,
    Ids,
    QuantizedDecoder,
    Tick,
    read_codes,
    write_codes,
)
from stic.compiler.decoding.stacks import stacks_of
from stic.compiler.importance.evaluate import Assignment
from stic.compiler.quantization.quantize import MatrixLevel
from stic.runtime.format import LEVEL_BITS
from stic.runtime.layout import Shape


@dataclass(frozen=True, eq=False)
class RefinedDecoder:
    """A quantised decoder with other codes where slices have the bits of a plan."""

    base: QuantizedDecoder
    fine: QuantizedDecoder  # has what the plan has, the vocabulary left out
    plan: Assignment
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
        planned = block < len(self.shapes) - 1 and bits == self.plan[block][index]
        return (self.fine if planned else self.base).level(block, index, name, bits)

    def weights(self, block: int, index: int) -> dict[str, Array]:
        """The matrices of a slice before they were quantised, (N, K) float32, padded with zeros."""
        return self.base.weights(block, index)


def mixes(plan: Assignment) -> bool:
    """Whether blocks before the vocabulary have several bitwidths, so that there is something to refine."""
    return len({bits for row in plan[:-1] for bits in row}) > 1


def refine(
    quantized: QuantizedDecoder, plan: Assignment, ids: Ids, folder: Path, threads: int,
    progress: Tick = lambda done, total: None,
) -> RefinedDecoder:  # fmt: skip
    """Quantise every block but the vocabulary at the bits of `plan`, into files of `folder`.

    `ids` (windows, tokens) are calibration tokens. Blocks whose files are there are not quantised again.
    """
    cut, levels = quantized.cut, sorted({bits for row in plan[:-1] for bits in row} & set(LEVEL_BITS))
    fine = QuantizedDecoder(cut, tuple(levels), (), folder)
    run, x = Run(cut.decoder.architecture, (ids.shape[0], ids.shape[1])), embed(cut.decoder, ids)
    exact_run, exact = Run(cut.decoder.architecture, run.shape), x
    with threadpool_limits(threads):
        for number, row in enumerate(plan[:-1]):
            paths = {bits: folder / str(bits) / f"{number}.npz" for bits in sorted(set(row) & set(levels))}
            known = {bits: read_codes(path, bits) for bits, path in paths.items()}
            blocks = [BlockQuantizer(cut, number, bits, found) for bits, found in known.items()]
            exact = run_block(exact_run, number, read_block(cut.decoder, number), exact, _all(blocks))
            outputs = []
            for block in blocks:
                outputs.append(run_block(run, number, block.weights, x, block))
                if known[block.bits] is None:
                    write_codes(paths[block.bits], block.found, block.bits)
            x = outputs[0] if len(set(row)) == len(outputs) == 1 else _mixed(fine, number, row, run, x)
            progress(number + 1, len(plan) - 1)
    return RefinedDecoder(quantized, fine, plan)


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
