"""What each bitwidth of each block is worth: how much further from the model's own words a text is without it.

For every block and bitwidth a variant of the model has just that block quantised. All variants go through the blocks
side by side, so that each block's weights are read once, however large the model is. A variant's loss is the mean
Kullback-Leibler divergence of its next-token distributions from the model's own. Gains of slices are equal shares of
their block's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stic.compiler.decoder.forward import Block, Run, embed, normalise, read_block, run_block, run_vocabulary
from stic.compiler.decoder.model import Array
from stic.compiler.decoding.quantize import Ids, QuantizedDecoder
from stic.compiler.decoding.stacks import stacks_of
from stic.runtime.architecture import Attention

Tick = Callable[[int, int], None]
WINDOWS, TOKENS = 2, 128  # of calibration text that variants read
TOGETHER = 8  # variants that go through a block at once: more would take memory and no less time
JUDGED = 64  # of its tokens, whose distributions are compared


@dataclass(frozen=True, eq=False)
class Gains:
    """What bits are worth, in nats a token."""

    bits: tuple[int, ...]  # on offer, ascending
    gain: NDArray[np.float64]  # (blocks, most slices, bits): over bits[0]
    loss: NDArray[np.float64]  # (blocks, bits): as it was measured


def no_gains(quantized: QuantizedDecoder, bits: tuple[int, ...]) -> Gains:
    """For planners that use none."""
    return _shared(quantized, bits, np.zeros((len(quantized.shapes), len(bits))))


def measure_gains(
    quantized: QuantizedDecoder, bits: tuple[int, ...], ids: Ids, threads: int, tick: Tick = lambda done, total: None
) -> Gains:
    """Measure the loss of every variant on `ids` (windows, tokens), in matrix products on so many threads."""
    ids = ids[-WINDOWS:, :TOKENS]
    blocks = len(quantized.shapes)
    with threadpool_limits(threads):
        variants = _Variants(quantized, ids)
        for number in range(blocks - 1):
            variants.advance(number, bits)
            tick(number + 1, blocks)
        losses = variants.losses(bits)
        tick(blocks, blocks)
    return _shared(quantized, bits, losses)


def _shared(quantized: QuantizedDecoder, bits: tuple[int, ...], losses: NDArray[np.float64]) -> Gains:
    """Gains of slices, from the losses of blocks; more bits are never worth less."""
    falling = np.minimum.accumulate(losses, axis=1)
    slices = [shape.slices for shape in quantized.shapes]
    gain = np.zeros((len(slices), max(slices), len(bits)))
    for number, count in enumerate(slices):
        gain[number, :count] = (falling[number, 0] - falling[number]) / count
    return Gains(bits, gain, losses)


class _Variants:
    """The model, and models with one block quantised, on their way through the blocks."""

    def __init__(self, quantized: QuantizedDecoder, ids: Ids) -> None:
        self._quantized, self._decoder, self._shape = quantized, quantized.cut.decoder, ids.shape
        self._exact = embed(self._decoder, ids)  # (windows, tokens, hidden)
        self._read = self._exact  # what the last attention block read
        self._streams: list[Array] = []  # of the variants, by block and then bitwidth
        self._reads: list[Array] = []

    def advance(self, number: int, bits: Sequence[int]) -> None:
        """Run a block of every model, and begin its own variants."""
        weights, stacks = read_block(self._decoder, number), stacks_of(self._quantized.cut, number)
        attends = isinstance(self._decoder.architecture.blocks[number], Attention)

        def engine_reads(_: int, name: str, rows: Array) -> Array:
            return stacks.activations(rows, name)

        if attends:
            self._read, self._reads = self._exact, list(self._streams)
        begun = []
        for b in bits:
            quantised = {**weights, **self._quantized.dequantized(number, b)}
            begun.append(self._run(number, quantised, self._exact, self._read, engine_reads))
        for first in range(0, len(self._streams), TOGETHER):
            part = slice(first, first + TOGETHER)
            together, read = np.concatenate(self._streams[part]), np.concatenate(self._reads[part])
            self._streams[part] = np.split(self._run(number, weights, together, read), len(self._streams[part]))
        self._streams += begun
        self._reads += [self._read] * len(begun)
        self._exact = self._run(number, weights, self._exact, self._read)

    def _run(
        self, number: int, weights: Block, x: Array, read: Array, tap: Callable[[int, str, Array], Array] | None = None
    ) -> Array:
        run = Run(self._decoder.architecture, (len(x), self._shape[1]))
        run.read = read.reshape(-1, read.shape[-1])
        return run_block(run, number, weights, x, tap)

    def losses(self, bits: Sequence[int]) -> NDArray[np.float64]:
        """Loss of every variant, (blocks, bits), those of the vocabulary included."""
        step = max(1, self._shape[0] * self._shape[1] // JUDGED)
        exact = self._exact.reshape(-1, self._exact.shape[-1])[::step]
        logits = run_vocabulary(self._decoder, exact)
        found = [
            divergence(logits, run_vocabulary(self._decoder, x.reshape(-1, x.shape[-1])[::step])) for x in self._streams
        ]
        known = self._quantized.head_bits  # where they are decided already, others are worth nothing
        found += [divergence(logits, self._head(exact, b)) if b in known else 0.0 for b in bits]
        return np.array(found).reshape(-1, len(bits))

    def _head(self, rows: Array, bits: int) -> Array:
        """Logits by the quantised vocabulary."""
        last, head = len(self._quantized.shapes) - 1, self._decoder.architecture.head
        stacks, weights = stacks_of(self._quantized.cut, last), read_block(self._decoder, last)
        inner = stacks.activations(normalise(rows, head.norms.input, weights, "input"), "head")
        matrices = self._quantized.head(bits)
        logits = np.concatenate([inner @ part.T for part in matrices], axis=1)[:, : head.rows]
        logits = logits + weights.get("head_bias", np.float32(0))
        if head.softcap is not None:
            logits = np.tanh(logits / np.float32(head.softcap)) * np.float32(head.softcap)
        return np.asarray(logits, np.float32)


def divergence(logits: Array, others: Array) -> float:
    """Mean Kullback-Leibler divergence of the distributions of `others` (rows, vocabulary) from those of `logits`."""
    p, q = (_log_softmax(rows.astype(np.float64)) for rows in (logits, others))
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = rows - rows.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return found
