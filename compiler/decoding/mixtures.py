"""Models whose slices have bits of their own, run side by side: what a choice of bits does to a model's words.

An assignment says for every slice of every block how many bits it has, or EXACT for the model's own weights. Models go
through the blocks together, so that each block's weights are read once, however many models there are; what two models
have in common at the start is computed once. A loss is the mean Kullback-Leibler divergence of a model's next-token
distributions from the exact model's. Activations are float32, whereas the engine rounds them to 8 bits, which every
assignment suffers alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.forward import Run, embed, read_block, run_block
from stic.compiler.decoder.model import Array
from stic.compiler.decoding.head import EXACT, Head, divergence, log_softmax
from stic.compiler.decoding.quantize import Ids, QuantizedDecoder
from stic.compiler.decoding.stacks import stacks_of
from stic.compiler.importance.evaluate import Assignment

JUDGED = 64  # tokens whose distributions are compared, at most
TOGETHER = 2048  # tokens that go through a block at once: more would take memory and no less time

Row = tuple[int, ...]  # bits of a block's slices
Roles = Mapping[str, Array]  # weights of a block by role


def exact_assignment(quantized: QuantizedDecoder) -> Assignment:
    """The model itself."""
    return tuple((EXACT,) * shape.slices for shape in quantized.shapes)


def with_block(assignment: Assignment, number: int, bits: int) -> Assignment:
    """The same with all slices of one block at `bits`."""
    return (*assignment[:number], (bits,) * len(assignment[number]), *assignment[number + 1 :])


class Block:
    """The weights of one block at any mixture of bits; each bitwidth is read once."""

    def __init__(self, quantized: QuantizedDecoder, number: int) -> None:
        self._quantized, self.number = quantized, number
        self.exact = read_block(quantized.cut.decoder, number)
        self._known: dict[int, Roles] = {EXACT: self.exact}

    def at(self, bits: int) -> Roles:
        """The block with all slices at `bits`."""
        if bits not in self._known:
            self._known[bits] = {**self.exact, **self._quantized.dequantized(self.number, bits)}
        return self._known[bits]

    def mixed(self, row: Row) -> Roles:
        """The block with each slice at its bits of `row`."""
        most = max(set(row), key=row.count)
        whole = dict(self.at(most))
        others = set(row) - {most}
        owners = stacks_of(self._quantized.cut, self.number).owners() if others else {}
        for role, (axis, owner) in owners.items():
            matrix = whole[role].copy()
            for bits in others:
                own = np.isin(owner, [index for index, b in enumerate(row) if b == bits])
                place = (own,) if axis == 0 else (slice(None), own)
                matrix[place] = self.at(bits)[role][place]
            whole[role] = matrix
        return whole


@dataclass(frozen=True, eq=False)
class _Stream:
    """A model's way up to a block."""

    x: Array  # (windows, tokens, hidden)
    read: Array | None  # what the last attention block read, (rows, hidden)


class Mixtures:
    """Models on their way through the blocks, and the exact model beside them."""

    def __init__(self, quantized: QuantizedDecoder, ids: Ids, plans: Sequence[Assignment], threads: int) -> None:
        """`ids` are (windows, tokens)."""
        self._quantized, self._ids, self._threads = quantized, ids, threads
        self._decoder, self._plans = quantized.cut.decoder, [exact_assignment(quantized), *plans]
        self._streams = [_Stream(embed(self._decoder, ids), None)]
        self._at = [0] * len(self._plans)  # the stream that each model is on
        self._done = 0

    def advance(self, block: Block) -> None:
        """Take every model through the next block."""
        ways = [(at, plan[self._done]) for at, plan in zip(self._at, self._plans, strict=True)]
        places = {way: place for place, way in enumerate(dict.fromkeys(ways))}
        members: dict[Row, list[int]] = {}
        for at, row in places:
            members.setdefault(row, []).append(at)
        step = max(1, TOGETHER // self._ids.size)
        work = [(row, part[at : at + step]) for row, part in members.items() for at in range(0, len(part), step)]
        found: list[_Stream | None] = [None] * len(places)
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(block.at, sorted({bits for row in members for bits in row})))
            made = pool.map(lambda one: self._run(block.mixed(one[0]), one[1]), work)
            for (row, part), streams in zip(work, made, strict=True):
                for at, stream in zip(part, streams, strict=True):
                    found[places[at, row]] = stream
        self._streams = [stream for stream in found if stream is not None]
        self._at = [places[way] for way in ways]
        self._done += 1

    def through(self, tick: Callable[[], None]) -> Mixtures:
        """Take every model through all blocks but the vocabulary."""
        for number in range(self._done, len(self._quantized.shapes) - 1):
            self.advance(Block(self._quantized, number))
            tick()
        return self

    def _run(self, weights: Roles, members: Sequence[int]) -> list[_Stream]:
        """Take streams through the block together."""
        streams = [self._streams[at] for at in members]
        x, reads = np.concatenate([s.x for s in streams]), [s.read for s in streams if s.read is not None]
        run = Run(self._decoder.architecture, (len(x), self._ids.shape[1]))
        run.read = np.concatenate(reads) if reads else None
        y = run_block(run, self._done, weights, x)
        after = [None] * len(streams) if run.read is None else np.split(run.read, len(streams))
        return [_Stream(*pair) for pair in zip(np.split(y, len(streams)), after, strict=True)]

    def judged(self) -> list[Array]:
        """Of each model, the exact one first, the stream (rows, hidden) at the tokens that are compared."""
        step = -(-self._ids.size // JUDGED)
        rows = [stream.x.reshape(-1, stream.x.shape[-1])[::step] for stream in self._streams]
        return [rows[at] for at in self._at]

    def losses(self) -> NDArray[np.float64]:
        """Loss (plans,) of each model, once all have gone through every block but the vocabulary."""
        head, rows = Head(self._quantized), self.judged()
        exact = log_softmax(head.logits(rows[0], self._plans[0][-1]))

        def loss(number: int) -> float:
            return divergence(exact, log_softmax(head.logits(rows[number], self._plans[number][-1])))

        for bits in {bits for plan in self._plans for bits in plan[-1]}:
            head.at(bits)
        with ThreadPoolExecutor(self._threads) as pool:
            return np.array(list(pool.map(loss, range(1, len(self._plans)))))


def mixture_losses(
    quantized: QuantizedDecoder, ids: Ids, plans: Sequence[Assignment], threads: int,
    tick: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:  # fmt: skip
    """Loss (plans,) of each assignment on `ids` (windows, tokens). `tick` is called after every block."""
    found = Mixtures(quantized, ids, plans, threads).through(tick).losses()
    tick()
    return found
