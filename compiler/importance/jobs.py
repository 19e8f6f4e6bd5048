"""Run evaluations in parallel through joblib: in local processes, of large models in threads, or on a Dask cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from stic.compiler.importance.contributions import local_errors
from stic.compiler.importance.evaluate import Assignment, Evaluator, Measurement, Setup
from stic.compiler.importance.expansion import PROBES, expanded_losses
from stic.compiler.importance.log import EvaluationLog
from stic.runtime.errors import InputError

Shared = TypeVar("Shared")
Chunk = TypeVar("Chunk")
Progress = Callable[[int, int], None]  # (done, total), in runs of one layer over the calibration set

CHUNK = 6  # evaluations handed out together: few enough to lose little, enough to hide the hand-over
WAVE = 4  # chunks a Dask worker gets before results are written down
SMALL_BYTES = 1 << 14  # larger arrays are shared with local processes through memory-mapped files


@dataclass(frozen=True)
class Workers:
    """Who evaluates."""

    jobs: int | None = None  # local processes, or threads; None: one a core. Each computes on one thread
    dask: str | None = None  # address of a Dask scheduler, tcp://host:port; its workers need stic installed


@dataclass(frozen=True)
class LossJob:
    """Evaluate one assignment."""

    assignment: Assignment

    @property
    def name(self) -> str:
        return "loss " + "/".join(",".join(map(str, layer)) for layer in self.assignment)

    def first(self, base: Assignment) -> int:
        """First layer that must be run."""
        return next((i for i, bits in enumerate(self.assignment) if bits != base[i]), len(base))


@dataclass(frozen=True)
class ErrorJob:
    """Measure the local errors of one layer's slices."""

    layer: int
    bits: tuple[int, ...]
    base: Assignment  # its inputs come from here

    @property
    def name(self) -> str:
        base = LossJob(self.base).name
        return f"error {self.layer} at {','.join(map(str, self.bits))} with {base}"

    def first(self, base: Assignment) -> int:
        """First layer that must be run."""
        return self.layer


@dataclass(frozen=True)
class ExpansionJob:
    """Expand the loss around an assignment, over the sequences of one batch."""

    batch: int
    bits: tuple[int, ...]
    base: Assignment

    @property
    def name(self) -> str:
        base = LossJob(self.base).name
        return f"expansion {self.batch} at {','.join(map(str, self.bits))} around {base}"

    def first(self, base: Assignment) -> int:
        """First layer that must be run."""
        return 0


Job = LossJob | ErrorJob | ExpansionJob


def run_jobs(
    setup: Setup, jobs: Sequence[Job], log: EvaluationLog, workers: Workers, progress: Progress | None
) -> list[Any]:
    """Run what the log does not hold yet, write each result down as it comes, and return all, in the order of `jobs`.

    A loss job's result is {"loss", "metric"}; an error job's a list (slices) of lists (bits); an expansion's the same
    for each layer. Where the log holds everything, nothing is computed.
    """
    base = setup.base
    wanted = {job.name: job for job in jobs}
    missing = [job for name, job in wanted.items() if name not in log.results]
    missing.sort(key=lambda job: (job.first(base), job.name))  # neighbours share dequantised weights
    total = sum(_cost(job, base) for job in wanted.values())
    done = total - sum(_cost(job, base) for job in missing)
    if progress is not None:
        progress(done, total)
    size = CHUNK
    if setup.quantized.sharded.large:  # in threads: there, starting costs nothing
        size = min(CHUNK, max(1, len(missing) // (workers.jobs or _cores())))
    chunks = [missing[i : i + size] for i in range(0, len(missing), size)]
    for chunk, results in _results(setup.measurement, chunks, workers) if chunks else ():
        for job, result in zip(chunk, results, strict=True):
            log.add(job.name, result)
            done += _cost(job, base)
        if progress is not None:
            progress(done, total)
    if setup.quantized.sharded.large:
        vars(_held).clear()  # this thread's evaluator holds memory that the stages to come need
    return [log.results[job.name] for job in jobs]


def _cost(job: Job, base: Assignment) -> int:
    if isinstance(job, ExpansionJob):
        return len(base) * (len(job.bits) + PROBES)
    return max(len(base) - job.first(base), 1) if isinstance(job, LossJob) else len(job.bits)


def _results(
    measurement: Measurement, chunks: list[list[Job]], workers: Workers
) -> Iterator[tuple[list[Job], list[Any]]]:
    from joblib import Parallel, delayed, parallel_config

    if workers.dask is not None:
        yield from on_dask(_evaluate, measurement, chunks, workers.dask)
        return
    jobs = min(workers.jobs or _cores(), len(chunks))
    if jobs > 1 and measurement.setup.quantized.sharded.large:
        # Processes would hold a copy of the weights each; large products leave Python alone for long.
        with threadpool_limits(1), parallel_config(backend="threading"):
            parallel = Parallel(n_jobs=jobs, return_as="generator")
            yield from zip(chunks, parallel(delayed(_evaluate)(measurement, chunk) for chunk in chunks), strict=True)
        return
    with parallel_config(backend="loky" if jobs > 1 else "sequential", **_one_thread(jobs)):
        parallel = Parallel(n_jobs=jobs, return_as="generator", max_nbytes=SMALL_BYTES)
        yield from zip(chunks, parallel(delayed(_evaluate)(measurement, chunk) for chunk in chunks), strict=True)


def _one_thread(jobs: int) -> dict[str, Any]:
    return {"inner_max_num_threads": 1} if jobs > 1 else {}


def on_dask(
    work: Callable[[Shared, Chunk], list[Any]], shared: Shared, chunks: Sequence[Chunk], address: str
) -> Iterator[tuple[Chunk, list[Any]]]:
    """Yield chunks with what `work(shared, chunk)` returns on the workers of a Dask scheduler.

    `shared` is sent to each of them once. Raises InputError where there is none, or what `work` raises.
    """
    from joblib import Parallel, delayed, parallel_config

    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("a Dask cluster needs the packages dask and distributed: pip install stic[cluster]") from error
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {error}; start one with `dask scheduler`") from error
    with client:
        wave = WAVE * max(len(client.scheduler_info()["workers"]), 1)
        with parallel_config(backend="dask", client=client, scatter=[shared], wait_for_workers_timeout=30):
            for start in range(0, len(chunks), wave):  # joblib returns from Dask all at once only
                part = chunks[start : start + wave]
                found = Parallel()(delayed(work)(shared, chunk) for chunk in part)
                yield from zip(part, found, strict=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_held = threading.local()  # this process's or thread's evaluator: its hidden states outlive a chunk


def _evaluate(measurement: Measurement, jobs: list[Job]) -> list[Any]:
    evaluator: Evaluator | None = getattr(_held, "evaluator", None)
    if evaluator is None or evaluator.setup.key != measurement.setup.key:
        evaluator = _held.evaluator = Evaluator(measurement)
    return [_run(evaluator, job) for job in jobs]


def _run(evaluator: Evaluator, job: Job) -> Any:
    if isinstance(job, ExpansionJob):
        return expanded_losses(evaluator, job.batch, job.bits).tolist()
    if isinstance(job, ErrorJob):
        return np.asarray(local_errors(evaluator, job.layer, job.bits)).tolist()
    return asdict(evaluator.scores(job.assignment))
