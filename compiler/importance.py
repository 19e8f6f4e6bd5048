"""What each bitwidth of each shard is worth: gain curves measured on calibration inputs.

With all other shards at an operating level (4 bits), one shard at a time is moved to another bitwidth and the model's
loss is measured. The loss is, by default, disagreement with the full model (KL divergence of a classifier's
probabilities, 1 - cosine of embeddings): to first order a change of weights moves the task loss up or down by chance,
and at 4 bits and above that chance outweighs the second-order damage that a plan can avoid. `objective="task"` measures
cross entropy with the labels all the same; accuracy is reported wherever there are labels.

Bits 2, the level and the highest are measured; the loss between them follows the slice's local error
(`stic.compiler.gain_curves.fill_in`), unless `exact` asks for every one. `method="sti"` is the published ranking
instead (STI, arXiv 2207.05022, section 4): every shard at 2 bits, one at full precision, ranked by the model's score.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stic.compiler.additivity import Check, check_additivity, random_assignments
from stic.compiler.evaluate import (
    Assignment,
    Measurement,
    Objective,
    agreement_objective,
    prepare,
    uniform_assignment,
)
from stic.compiler.gain_curves import concave_gains, fill_in, presence_values
from stic.compiler.model import Model
from stic.compiler.profile_cache import EvaluationLog, digest
from stic.compiler.profile_jobs import ErrorJob, LossJob, Workers, run_jobs
from stic.compiler.quantize import QuantizedModel
from stic.compiler.task import Batch, Examples
from stic.runtime.errors import InputError

LEVEL = 4  # bits of the shards that stand still
RANDOM_SEQUENCES, RANDOM_LENGTH = 48, 24

Doubles = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How importance is measured."""

    method: Literal["curves", "sti"] = "curves"
    objective: Literal["agreement", "task"] = "agreement"
    exact: bool = False  # measure every bitwidth
    checks: int = 0  # random plans of the additivity check
    elastic: bool = False  # measure presence too


@dataclass(frozen=True, eq=False)
class Importance:
    """Gains of every shard, and how far they can be trusted."""

    bits: tuple[int, ...]
    gain: Doubles  # (layers, slices, bits): value over bits[0]; rises, concave over the bits
    presence: Doubles  # (layers, slices): value at bits[0] over leaving the slice out; 0 unless elastic
    losses: Doubles  # (layers, slices, bits): as measured or filled in, before the curves were made concave
    method: str
    objective: str
    calibration: str  # what it was measured on
    key: str  # digest of the weights; a file is for one model only
    base_loss: float  # every shard at LEVEL
    base_metric: float | None  # accuracy or Spearman there; None without labels
    evaluations: int
    additivity: Check | None
    seconds: float

    def checked(self, quantized: QuantizedModel, bits: Sequence[int]) -> Importance:
        """Return self, or raise InputError if it was measured for another model or other bitwidths."""
        if self.key != weights_key(quantized):
            raise InputError(
                "the importance file was measured on another model, quantizer or number of slices: run `stic profile`"
                f" on {quantized.sharded.model.name} again"
            )
        if tuple(bits) != self.bits:
            raise InputError(
                f"the importance file covers {self.bits} bits, the plan offers {tuple(bits)}: run `stic profile` again"
            )
        return self

    def summary(self) -> dict[str, Any]:
        """The numbers a person or a script asks for first."""
        rho = {} if self.additivity is None else self.additivity.summary()
        return {
            "method": self.method,
            "objective": self.objective,
            "calibration": self.calibration,
            "evaluations": self.evaluations,
            "base_loss": self.base_loss,
            "base_metric": self.base_metric,
            **rho,
            "seconds": round(self.seconds, 1),
        }

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        data: dict[str, Any] = {"format": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            data[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        data["additivity"] = None if self.additivity is None else self.additivity.to_json()
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps(data))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def load(path: Path) -> Importance:
    """Read what `Importance.save` wrote. Raises InputError for anything else."""
    try:
        data = json.loads(path.read_text())
        if data.pop("format") != 1:
            raise ValueError("unknown format")
        for name in ("gain", "presence", "losses"):
            data[name] = np.asarray(data[name], np.float64)
        data["bits"] = tuple(data["bits"])
        if data["additivity"] is not None:
            data["additivity"] = Check(**data["additivity"])
        found = Importance(**data)
        shape = (*found.presence.shape, len(found.bits))
        if found.gain.shape != shape or found.losses.shape != shape or not np.all(np.isfinite(found.gain)):
            raise ValueError("its tables have the wrong shape")
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not an importance file: {error}; write one with `stic profile`") from error


def weights_key(quantized: QuantizedModel) -> str:
    """A digest of everything about a quantised model that importance depends on."""
    codes = [[shard["up"].codes for shard in layer] for layer in quantized.matrices]
    return digest(quantized.sharded, quantized.quantizer, codes)


def random_examples(model: Model, length: int) -> tuple[Examples, tuple[Batch, ...]]:
    """Random tokens, for a model that brings no tokenizer: worse than text, better than nothing."""
    rng = np.random.default_rng(0)
    shape = (RANDOM_SEQUENCES, min(RANDOM_LENGTH, length))
    ids = rng.integers(0, model.embeddings.word.shape[0], shape).astype(np.int32)
    rows = np.arange(RANDOM_SEQUENCES)
    batch = Batch(rows, ids, np.ones(shape, np.bool_), np.zeros(shape, np.int32))
    return Examples("unlabelled", (("", None),) * RANDOM_SEQUENCES, None, "random tokens"), (batch,)


def measure(
    quantized: QuantizedModel,
    examples: Examples,
    batches: tuple[Batch, ...],
    bits: tuple[int, ...],
    settings: Settings,
    folder: Path | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> Importance:
    """Measure the importance of every shard at `bits` (ascending).

    Evaluations are kept in `folder` as they are made; a measurement that was stopped goes on from there. `progress`
    hears (done, total) in layer runs over the calibration set.
    """
    started = time.monotonic()
    model = quantized.sharded.model
    wanted: Objective | None = agreement_objective(model) if settings.objective == "agreement" else None
    low = bits[0] if settings.method == "sti" else LEVEL
    base = uniform_assignment(quantized, low)
    key = weights_key(quantized)
    measurement = prepare(quantized, examples, batches, base, objective=wanted)
    name = digest(key, [b.ids for b in batches], examples.targets, measurement.objective, low)
    measurement = replace(measurement, key=name)
    log = EvaluationLog(folder, name)
    plans = random_assignments(quantized, bits, settings.checks, settings.elastic)
    curve_jobs = _curve_jobs(measurement, bits, settings)
    width_jobs = _width_jobs(measurement) if settings.elastic else {}
    errors = _error_jobs(measurement, bits) if settings.method == "curves" and not settings.exact else []
    losses_wanted = [LossJob(base), *curve_jobs.values(), *width_jobs.values(), *(LossJob(plan) for plan in plans)]
    results = run_jobs(measurement, [*losses_wanted, *errors], log, workers or Workers(1), progress)
    found = {job.assignment: result for job, result in zip(losses_wanted, results, strict=False)}
    base_loss = found[base]["loss"]

    shape = (len(base), len(base[0]), len(bits))
    losses = np.full(shape, np.nan)
    for (layer, index, b), job in curve_jobs.items():
        losses[layer, index, bits.index(b)] = found[job.assignment]["loss"]
    if low in bits:
        losses[:, :, bits.index(low)] = base_loss
    if settings.method == "sti":
        scores = _sti_scores(found, curve_jobs, base, shape[:2])
        gain = _gains_of_ranking(scores, bits)
        losses = np.nan_to_num(losses, nan=base_loss)
    else:
        if errors:
            losses = fill_in(losses, np.asarray(results[len(losses_wanted) :], np.float64))
        gain = concave_gains(losses, bits)
    presence = np.zeros(shape[:2])
    if settings.elastic:
        widths = np.full((shape[0], shape[1] + 1), base_loss)
        for (layer, kept), job in width_jobs.items():
            widths[layer, kept] = found[job.assignment]["loss"]
        level = bits.index(low)
        presence = presence_values(widths, gain[:, :, level])
    additivity = None
    if plans:
        measured = np.array([found[plan]["loss"] for plan in plans])
        additivity, factors = check_additivity(plans, measured, bits, gain, presence)
        gain, presence = gain * factors[:, None, None], presence * factors[:, None]
    return Importance(
        bits,
        gain,
        presence,
        losses,
        settings.method,
        measurement.objective,
        examples.source,
        key,
        base_loss,
        found[base]["metric"],
        len(losses_wanted) + len(errors),
        additivity,
        time.monotonic() - started,
    )


def _changed(base: Assignment, layer: int, bits: tuple[int, ...]) -> Assignment:
    return (*base[:layer], bits, *base[layer + 1 :])


def _curve_jobs(
    measurement: Measurement, bits: tuple[int, ...], settings: Settings
) -> dict[tuple[int, int, int], LossJob]:
    """One evaluation a shard and measured bitwidth, all others at the base; by (layer, slice, bits)."""
    base = measurement.base
    if settings.method == "sti":
        tried: tuple[int, ...] = (bits[-1],)
    else:
        tried = bits if settings.exact else (bits[0], bits[-1])
    jobs = {}
    for layer, row in enumerate(base):
        for index, level in enumerate(row):
            for b in tried:
                if b != level:
                    changed = (*row[:index], b, *row[index + 1 :])
                    jobs[layer, index, b] = LossJob(_changed(base, layer, changed))
    return jobs


def _width_jobs(measurement: Measurement) -> dict[tuple[int, int], LossJob]:
    """One evaluation for each layer cut to its first 0 .. M - 1 slices."""
    base = measurement.base
    return {
        (layer, kept): LossJob(_changed(base, layer, row[:kept] + (0,) * (len(row) - kept)))
        for layer, row in enumerate(base)
        for kept in range(len(row))
    }


def _error_jobs(measurement: Measurement, bits: tuple[int, ...]) -> list[ErrorJob]:
    return [ErrorJob(layer, bits, measurement.base) for layer in range(len(measurement.base))]


def _sti_scores(
    found: dict[Assignment, dict[str, Any]],
    jobs: dict[tuple[int, int, int], LossJob],
    base: Assignment,
    shape: tuple[int, ...],
) -> Doubles:
    """The model's score with one shard at full precision: the task's metric where there are labels, else -loss."""
    metric = found[base]["metric"] is not None
    scores = np.zeros(shape)
    for (layer, index, _), job in jobs.items():
        result = found[job.assignment]
        scores[layer, index] = result["metric"] if metric else -result["loss"]
    return scores


def _gains_of_ranking(scores: Doubles, bits: Sequence[int]) -> Doubles:
    """Turn STI's ranking, which has no magnitudes, into gains: rank times what is left of a uniform quantiser's error.

    The best of n shards weighs 1, the last 1/n, ties in order; squared error falls fourfold with every bit.
    """
    order = np.argsort(-scores.ravel(), kind="stable")
    weight = np.empty(scores.size)
    weight[order] = 1 - np.arange(scores.size) / scores.size
    share = 1 - 4.0 ** -(np.asarray(bits, np.float64) - bits[0])
    return weight.reshape(scores.shape)[..., None] * share
