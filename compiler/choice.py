"""Plans on trial: which of several loses least on calibration examples, measured and not added up.

A planner maximises a sum of gains. Where shards act on one another the sum misjudges a plan, and a heuristic's answer
may be the better one; so the best plans of different planners run on calibration examples, and what loses least is
kept (never on the examples that results are reported on).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from stic.compiler.cache.arrays import Note
from stic.compiler.importance.evaluate import Assignment, Setup, uniform_assignment
from stic.compiler.importance.examples import Examples
from stic.compiler.importance.jobs import LossJob, Workers, run_jobs
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.measure import ImportanceSettings, measurement_key, sample
from stic.compiler.importance.objectives import default_objective
from stic.compiler.importance.tokens import Tables
from stic.compiler.plan import Plan, Problem
from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.stage_cache import solved
from stic.runtime.errors import InfeasibleError

TIE = 5e-4  # nats or cosine: no task's metric shows less, while the first plan may need less memory or time


@dataclass(frozen=True, eq=False)
class Trial:
    """Examples that plans run on, and what was measured on them before."""

    setup: Setup
    log: EvaluationLog
    workers: Workers

    def best(self, plans: Sequence[Plan]) -> Plan:
        """The plan that loses least, with its loss, under the name of the first; on ties the first.

        A loss within TIE of another is a tie. What a planner proved of a plan stays with that plan.
        """
        slices = self.setup.quantized.sharded.geometry.slices
        jobs = [LossJob(assignment(plan, slices)) for plan in plans]
        losses = [result["loss"] for result in run_jobs(self.setup, jobs, self.log, self.workers, None)]
        best = min(range(len(plans)), key=losses.__getitem__)
        best = best if losses[best] < losses[0] - TIE else 0
        found = replace(plans[best], planner=plans[0].planner, loss=losses[best])
        if best == 0:
            return found
        note = (
            f"on calibration examples the plan of planner {plans[best].planner} loses less than that of"
            f" {plans[0].planner}, {losses[best]:.3g} against {losses[0]:.3g}, and is kept"
        )
        return replace(found, notes=(*found.notes, note))


def best_plan(problem: Problem, trial: Trial, time_limit_s: float, gap: float, folder: Path, note: Note) -> Plan:
    """The ilp's plan, or greedy's where that loses less; plans are kept in `folder`. Raises InfeasibleError."""
    plans = [solved(problem, "ilp", None, time_limit_s, gap, folder, note)]
    with suppress(InfeasibleError):
        plans.append(solved(problem, "greedy", None, time_limit_s, gap, folder, note))
    return trial.best(plans)


def trial_on(
    examples: Examples,
    quantized: QuantizedModel,
    settings: ImportanceSettings,
    workers: Workers,
    cache: Path,
    tokenizer: Path | Tokenizer | None = None,
) -> Trial:
    """A trial on a sample of calibration examples, drawn and judged as `settings` say; losses are kept in `cache`.

    `tokenizer` None: the model's.
    """
    model = quantized.sharded.model
    length = min(settings.max_length, model.max_length)
    examples, batches = sample(examples, tokenizer or model.tokenizer or Path(), length, settings, Tables.of(model))
    objective = settings.objective or default_objective(model, examples)
    key = measurement_key(quantized, examples, batches, objective)
    base = uniform_assignment(quantized, settings.level)
    setup = Setup(f"{key} trial", quantized, examples, batches, objective, base)
    return Trial(setup, EvaluationLog(cache, key), workers)


def assignment(plan: Plan, slices: int) -> Assignment:
    """Bits of every shard of `slices` slices a layer, 0 for those left out."""
    return tuple(layer.bits + (0,) * (slices - len(layer.bits)) for layer in plan.layers)
