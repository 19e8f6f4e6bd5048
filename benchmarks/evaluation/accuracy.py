"""What a plan is worth: the engine's answers on the whole evaluation file, by the bits of the plan."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.importance.examples import Examples, encode, read_examples
from stic.compiler.importance.scoring import Metric, score
from stic.runtime.errors import EngineError, SticError

Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval
Job = tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]
Run = Callable[[Mapping[Any, Job]], Iterator[tuple[Any, dict[str, Any]]]]


def scored(outputs: NDArray[np.floating], examples: Examples) -> dict[str, Any]:
    """The `accuracy` of a row; outputs are (sequences, features), in the order of `Examples.sequences`.

    `correct` holds, of a classifier, one bit an example, first example first, in hexadecimal digits.
    """
    metric = score(outputs, examples)
    low, high = interval(metric)
    found: dict[str, Any] = {"metric": metric.name, "value": metric.value, "n": metric.n, "low": low, "high": high}
    if metric.name == "accuracy":
        classes = outputs.argmax(axis=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
        found["correct"] = np.packbits(classes == examples.targets).tobytes().hex()
    return found


def interval(metric: Metric) -> tuple[float, float]:
    """95 % interval of a score: Wilson's for a share, Fisher's z for a rank correlation."""
    value, n = metric.value, metric.n
    if metric.name == "accuracy":
        middle = (value + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)
    if n <= 3 or not abs(value) < 1:
        return -1.0, 1.0
    half = Z / math.sqrt(n - 3)
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)


def of_package(package: Path, dev: Path, labels: tuple[str, ...], rows: int | None) -> dict[str, Any]:
    """Score a package's answers, as `stic eval` does."""
    from stic.compiler.report.texts import outputs_of
    from stic.runtime.package import Package
    from stic.runtime.session import Session

    examples, opened = dev_examples(dev, labels, rows), Package.open(package)
    with Session(package) as session:
        return scored(outputs_of(session, opened, examples, lambda *_: None), examples)


def of_model(model: Path, tokenizer: Path, dev: Path, labels: tuple[str, ...], tokens: int, rows: int | None) -> Any:
    """Score the whole model in float32, by the compiler's own forward pass."""
    from threadpoolctl import threadpool_limits

    from stic.compiler.forward import outputs
    from stic.compiler.frontend.onnx import load_model

    examples, loaded = dev_examples(dev, labels, rows), load_model(model)
    found: NDArray[np.float32] | None = None
    with threadpool_limits(1):
        for batch in encode(examples, tokenizer, tokens):
            out = outputs(loaded, batch.ids, batch.mask, batch.types)
            found = np.zeros((len(examples.sequences), out.shape[-1]), np.float32) if found is None else found
            found[batch.rows] = out
    assert found is not None
    return scored(found, examples)


def dev_examples(dev: Path, labels: Sequence[str], rows: int | None) -> Examples:
    """The evaluation file, or its first rows."""
    examples = read_examples(dev, labels=tuple(labels) or None)
    return examples if rows is None else examples.pick(range(min(rows, len(examples))))


@contextmanager
def workers(count: int) -> Iterator[Run]:
    """Processes for work whose time is not measured; yields what hands out jobs and gives (name, result) as they end.

    They are new processes, not copies of this one, and nothing of them is left when latency is measured: whatever ends
    the block early ends them too. The result of a job that fails is {"error": sentence}.
    """
    pool = ProcessPoolExecutor(count, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))

    def run(jobs: Mapping[Any, Job]) -> Iterator[tuple[Any, dict[str, Any]]]:
        futures = {pool.submit(_guarded, *job): name for name, job in jobs.items()}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool as error:
                raise EngineError("a process that measured accuracy was ended: is memory short?") from error

    before = set(active_children())
    try:
        yield run
        pool.shutdown()
    except BaseException:
        for process in set(active_children()) - before:
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise


def _guarded(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The result of a job, or the sentence of the error that ended it: not every exception finds its way home."""
    try:
        return work(*arguments)
    except SticError as error:
        return {"error": str(error)}
