"""Which slices of an elastic model to keep: one nested path of submodels, measured step by step.

What a layer loses by being cut depends on how far the others are cut: two layers that can each be spared may not both
be. Values measured one layer at a time do not see that, and a planner that adds them up ends in submodels that no
longer work. So the model is shrunk as a whole: from the full one, again and again the slices are taken out whose loss
is least for the compute they free, and each submodel on the way is measured. A plan then keeps a prefix of the
resulting order. Taking out heads and neurons by what they cost the loss is DynaBERT's way of ordering them (Hou et al.,
arXiv 2004.04037, section 3.1), here applied to the trained submodels themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stic.compiler.importance.evaluate import Assignment, Setup
from stic.compiler.importance.gain_curves import isotonic
from stic.compiler.importance.jobs import LossJob, Progress, Workers, run_jobs
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.plan import SubmodelPath

STEPS = 6  # a layer gives way in so many steps at least; off the trained widths single slices tell little
SPARED = 3  # a layer of at most 1/SPARED of its width may go wholly: the widths between were seldom trained


def submodel_path(
    setup: Setup, bits: int, log: EvaluationLog, workers: Workers, progress: Progress | None
) -> tuple[SubmodelPath, set[str]]:
    """Shrink the model with every kept shard at `bits`, down to nothing; `log` keeps every loss.

    Returns the path, its values at `bits`, and the names of the evaluations that it rests on. `progress` hears of
    slices that were taken out.
    """
    g = setup.quantized.sharded.geometry
    widths = [g.slices] * g.layers
    tried: set[str] = set()

    def measured(several: list[list[int]]) -> list[float]:
        jobs = [LossJob(_assignment(cut, g.slices, bits)) for cut in several]
        tried.update(job.name for job in jobs)
        return [result["loss"] for result in run_jobs(setup, jobs, log, workers, None)]

    removed, losses = [], measured([widths])
    while any(widths):
        cuts = list(_cuts(widths, g.slices))
        found = measured(cuts)
        rises = np.array(found) - losses[-1]
        best = int(np.argmin(rises / [sum(widths) - sum(cut) for cut in cuts]))
        removed.append([(k, s) for k, cut in enumerate(cuts[best]) for s in range(cut, widths[k])])
        losses.append(found[best])
        widths = cuts[best]
        if progress is not None:
            progress(g.layers * g.slices - sum(widths), g.layers * g.slices)
    return path_of(removed, losses, (g.layers, g.slices)), tried


def path_of(removed: list[list[tuple[int, int]]], losses: list[float], shape: tuple[int, int]) -> SubmodelPath:
    """The path of the shards that each step took out, and the loss before the first and after each step.

    Losses are made to rise along the way by isotonic regression; the shards of one step share its loss evenly.
    """
    rising = isotonic(np.array(losses), np.ones(len(losses)))
    value = np.zeros(shape)
    for shards, lost in zip(removed, np.diff(rising), strict=True):
        for shard in shards:
            value[shard] = lost / len(shards)
    # Within a step the higher slices went first.
    return SubmodelPath(tuple(shard for shards in reversed(removed) for shard in sorted(shards)), value)


def _cuts(widths: list[int], slices: int) -> Iterator[list[int]]:
    """Widths after every step that may be tried next."""
    step = max(1, slices // STEPS)
    for k, width in enumerate(widths):
        narrower = {max(width - step, 0)} | ({0} if width * SPARED <= slices else set())
        for new in sorted(narrower) if width else ():
            yield [*widths[:k], new, *widths[k + 1 :]]


def _assignment(widths: list[int], slices: int, bits: int) -> Assignment:
    return tuple((bits,) * width + (0,) * (slices - width) for width in widths)
