"""Quantise matrices apart from each other, for inputs that are known: in processes, or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array
from stic.compiler.importance.jobs import Workers, on_dask
from stic.compiler.quantization.grouped import GroupedMatrix, quantize_grouped
from stic.runtime.errors import InputError

TOGETHER_BYTES = 512 << 20  # of matrices and moments that wait for a process


@dataclass(frozen=True, eq=False)
class MatrixJob:
    """A matrix to quantise, and where it is from."""

    block: int
    name: str
    weight: Array  # (N, K)
    moments: Array  # (K, K), of what it reads
    groups: NDArray[np.intp]  # (K,)
    bits: tuple[int, ...]
    rounds: int

    @property
    def bytes(self) -> int:
        """Memory that the job takes while it waits."""
        return self.weight.nbytes + self.moments.nbytes

    def run(self) -> GroupedMatrix:
        """Quantise it. Raises InputError for weights that are not finite."""
        try:
            return quantize_grouped(self.weight, self.moments, self.bits, self.groups, rounds=self.rounds)
        except InputError as error:
            raise InputError(f"block {self.block}: {error}") from error


def quantized_apart(
    jobs: Iterator[MatrixJob], workers: Workers, done: Callable[[], None]
) -> Iterator[tuple[MatrixJob, GroupedMatrix]]:
    """Yield each job with its matrix, in their order; `done` is called after each.

    Jobs are taken as there is room for them. Raises InputError for weights that are not finite.
    """
    wave: list[MatrixJob] = []
    for job in jobs:
        wave.append(job)
        if sum(one.bytes for one in wave) >= TOGETHER_BYTES:
            yield from _wave(wave, workers, done)
            wave = []
    yield from _wave(wave, workers, done)


def _wave(
    jobs: Sequence[MatrixJob], workers: Workers, done: Callable[[], None]
) -> Iterator[tuple[MatrixJob, GroupedMatrix]]:
    from joblib import Parallel, delayed, parallel_config

    if workers.dask is not None and jobs:
        for chunk, found in on_dask(_all, None, [[job] for job in jobs], workers.dask):
            done()
            yield chunk[0], found[0]
        return
    count = min(workers.jobs or os.cpu_count() or 1, len(jobs))
    if count <= 1:
        for job in jobs:
            yield job, job.run()
            done()
        return
    with parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = Parallel(n_jobs=count, return_as="generator")
        for job, matrix in zip(jobs, parallel(delayed(MatrixJob.run)(job) for job in jobs), strict=True):
            done()
            yield job, matrix


def _all(_: None, jobs: list[MatrixJob]) -> list[GroupedMatrix]:
    return [job.run() for job in jobs]
