"""How far a quantised block's part of the stream is from what it should be, for inputs that the exact model has."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from stic.compiler.decoder.forward import Run, embed, run_block
from stic.compiler.decoder.model import Array
from stic.compiler.decoding.mixtures import Block, Roles
from stic.compiler.decoding.quantize import Ids, QuantizedDecoder
from stic.runtime.architecture import Architecture


def block_errors(
    quantized: QuantizedDecoder, ids: Ids, wanted: Sequence[int], bits: Sequence[int], threads: int
) -> list[list[float]]:
    """For each of the blocks `wanted`, ascending, its error at each of `bits`.

    An error is the mean square of the change in what the block adds to the stream, over that of what it adds:
    tr(D M D^T) / tr(Y M Y^T) where a block is one matrix Y with error D and inputs of second moments M. `ids` are
    (windows, tokens).
    """
    architecture = quantized.cut.decoder.architecture
    x, read, found = embed(quantized.cut.decoder, ids), None, []
    with ThreadPoolExecutor(threads) as pool:
        for number in range(max(wanted, default=-1) + 1):
            block = Block(quantized, number)
            step = partial(_through, architecture, number, x, read)
            y, after = step(block.exact)
            if number in wanted:
                size = float(np.square(y - x, dtype=np.float64).mean())
                outputs = pool.map(lambda b, block=block, step=step: step(block.at(b))[0], bits)
                found.append([float(np.square(z - y, dtype=np.float64).mean()) / max(size, 1e-30) for z in outputs])
            x, read = y, after
    return found


def _through(
    architecture: Architecture, number: int, x: Array, read: Array | None, weights: Roles
) -> tuple[Array, Array | None]:
    """The stream after a block, and what the last attention block read."""
    run = Run(architecture, (x.shape[0], x.shape[1]))
    run.read = read
    return run_block(run, number, weights, x), run.read
