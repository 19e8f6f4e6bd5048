"""Measurements that gains rest on, written down as they are made: a command that was stopped goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from threadpoolctl import threadpool_limits

from stic.compiler.decoding.errors import block_errors
from stic.compiler.decoding.head import Head
from stic.compiler.decoding.mixtures import Mixtures, exact_assignment, mixture_losses
from stic.compiler.decoding.quantize import Ids, QuantizedDecoder
from stic.compiler.importance.jobs import LossJob, Progress, Workers, on_dask
from stic.compiler.importance.log import EvaluationLog
from stic.runtime.errors import InputError

MODELS = 64  # that go through the blocks together: more read less often and take more memory
BLOCKS = 16  # whose errors are found together
SPREAD = 16  # of either that a machine of a cluster takes at a time


@dataclass(frozen=True)
class BlockErrors:
    """Measure a block's errors."""

    number: int
    bits: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"error {self.number} at {','.join(map(str, self.bits))}"


@dataclass(frozen=True)
class HeadLosses:
    """Measure the loss of each slice of the vocabulary alone."""

    bits: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"head at {','.join(map(str, self.bits))}"


GainJob = BlockErrors | HeadLosses | LossJob
Part = list[GainJob]  # of one kind, and run together


@dataclass(frozen=True, eq=False)
class Measured:
    """A model, and the text that it is measured on."""

    quantized: QuantizedDecoder
    ids: Ids  # (windows, tokens)

    def results(self, part: Part, threads: int = 1, tick: Callable[[], None] = lambda: None) -> list[Any]:
        """Run a part; `tick` is called now and then.

        A block's errors are a list by bits, a head's losses lists by slice and bits, a plan's loss is a number.
        """
        with threadpool_limits(1):  # products are small: threads share models instead
            if isinstance(part[0], HeadLosses):  # a part of its own
                rows = Mixtures(self.quantized, self.ids, (), threads).through(tick).judged()[0]
                return [Head(self.quantized).slice_losses(rows, part[0].bits).tolist()]
            numbers = [job.number for job in part if isinstance(job, BlockErrors)]
            if numbers:
                bits = next(job.bits for job in part if isinstance(job, BlockErrors))
                return block_errors(self.quantized, self.ids, numbers, bits, threads)
            plans = [job.assignment for job in part if isinstance(job, LossJob)]
            return list(map(float, mixture_losses(self.quantized, self.ids, plans, threads, tick)))

    def cost(self, job: GainJob) -> int:
        """Blocks that a job runs."""
        if isinstance(job, BlockErrors):
            return len(job.bits)
        if isinstance(job, HeadLosses):
            return len(self.quantized.shapes)
        return max(1, len(self.quantized.shapes) - job.first(exact_assignment(self.quantized)))


def run_gain_jobs(
    measured: Measured, jobs: Sequence[GainJob], log: EvaluationLog, workers: Workers, progress: Progress
) -> list[Any]:
    """Run what the log does not hold yet, write each part's results down, and return all, in the order of `jobs`."""
    wanted = {job.name: job for job in jobs}
    parts = _parts(measured, [job for name, job in wanted.items() if name not in log.results])
    total = sum(measured.cost(job) for job in wanted.values())
    done = total - sum(measured.cost(job) for part in parts for job in part)
    progress(done, total)

    def within(share: float, part: Part) -> None:
        progress(done + int(share * sum(map(measured.cost, part))), total)

    for part, results in _results(measured, parts, workers, within):
        for job, result in zip(part, results, strict=True):
            log.add(job.name, result)
        done += sum(map(measured.cost, part))
        progress(done, total)
    return [log.results[job.name] for job in jobs]


def _parts(measured: Measured, jobs: Sequence[GainJob]) -> list[Part]:
    """Neighbours share what they have in common: errors by block, models by the block in which they begin to differ."""
    heads: Part = [job for job in jobs if isinstance(job, HeadLosses)]
    errors = sorted((job for job in jobs if isinstance(job, BlockErrors)), key=lambda job: job.number)
    models: Part = [job for job in jobs if isinstance(job, LossJob)]
    models.sort(key=lambda job: (-measured.cost(job), job.name))
    kinds: tuple[tuple[Part, int], ...] = (([*errors], BLOCKS), (heads, 1), (models, MODELS))
    return [some[at : at + size] for some, size in kinds for at in range(0, len(some), size)]


def _results(
    measured: Measured, parts: list[Part], workers: Workers, within: Callable[[float, Part], None]
) -> Iterator[tuple[Part, list[Any]]]:
    if workers.dask is not None:
        small = [part[at : at + SPREAD] for part in parts for at in range(0, len(part), SPREAD)]
        yield from on_dask(_elsewhere, measured, small, workers.dask) if small else ()
        return
    threads, blocks = workers.jobs or os.cpu_count() or 1, len(measured.quantized.shapes)
    for part in parts:
        gone = 0

        def tick(part: Part = part) -> None:
            nonlocal gone
            gone += 1
            within(gone / blocks, part)

        yield part, measured.results(part, threads, tick)


def _elsewhere(measured: Measured, part: Part) -> list[Any]:
    """Run a part on another machine, which has the model from here and reads the codes from a folder of both."""
    folder = measured.quantized.folder
    if not folder.is_dir():
        raise InputError(
            f"a worker has no {folder}: let STIC_CACHE name a folder that all machines of the cluster share"
        )
    return measured.results(part)
