"""What each bitwidth of each shard of a decoder is worth.

The loss of a block at a bitwidth, with all else exact, is an output error times a sensitivity (HAWQ-V2, arXiv
1911.03852, has the same product with a trace for the latter). Errors are measured at every bitwidth, locally: how far
what a block adds to the stream is from what it should add. Sensitivities are measured by whole models, of which one
block has few bits: two each, the lowest on offer. Between those, and from them to the exact model, losses follow the
errors (`gain_curves.fill_in`). The vocabulary, which ends the model, is measured slice by slice.

Slices of other blocks have equal shares of their block's gain: they were quantised together, so that each makes up for
errors of its neighbours, and by the errors of each alone planners would part them (docs/decoders.md has figures).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoding.gain_jobs import BlockErrors, GainJob, HeadLosses, Measured, run_gain_jobs
from stic.compiler.decoding.head import EXACT
from stic.compiler.decoding.mixtures import exact_assignment, with_block
from stic.compiler.decoding.quantize import QuantizedDecoder
from stic.compiler.importance.additivity import check, layer_sums
from stic.compiler.importance.evaluate import Assignment
from stic.compiler.importance.gain_curves import concave_gains, fill_in
from stic.compiler.importance.jobs import LossJob, Progress, Workers
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.measure import Importance

Doubles = NDArray[np.float64]

PROBED = 2  # bitwidths at which every block is measured, the lowest ones
MIDDLE = 4  # bits that half of the random plans scatter around


@dataclass(frozen=True)
class GainSettings:
    """How gains are measured."""

    bits: tuple[int, ...]  # on offer, ascending
    exact: bool = False  # measure every block at every bitwidth
    plans: int = 0  # random plans of the additivity check; 0: none
    seed: int = 0

    @property
    def probed(self) -> tuple[int, ...]:
        """Bits at which every block is measured."""
        return self.bits if self.exact else self.bits[:PROBED]


def worthless(quantized: QuantizedDecoder, bits: tuple[int, ...]) -> Importance:
    """For planners that use no gains."""
    blocks, slices = len(quantized.shapes), max(shape.slices for shape in quantized.shapes)
    nothing = np.full((blocks, slices, len(bits)), np.nan)
    return _importance(bits, np.zeros(nothing.shape), nothing, 0)


def measure_gains(
    measured: Measured, settings: GainSettings, log: EvaluationLog, workers: Workers, progress: Progress
) -> Importance:
    """Measure what bits are worth, in nats a token. What `log` holds is not measured again.

    `calibration` and `key` of the result are left to who knows them.
    """
    began, quantized, offered = time.monotonic(), measured.quantized, settings.bits
    blocks, base = len(quantized.shapes) - 1, exact_assignment(quantized)
    errors: list[GainJob] = [BlockErrors(n, offered) for n in range(blocks)]
    probes: list[GainJob] = [LossJob(with_block(base, n, b)) for n in range(blocks) for b in settings.probed]
    known = tuple(b for b in offered if b in quantized.head_bits)
    head: list[GainJob] = [HeadLosses(known)] if len(known) > 1 else []  # bits that are decided need no value
    plans = random_plans(quantized, settings)
    jobs = [*errors, *probes, *head, *map(LossJob, plans)]
    found = iter(run_gain_jobs(measured, jobs, log, workers, progress))

    raw = np.full((blocks + 1, max(shape.slices for shape in quantized.shapes), len(offered)), np.nan)
    losses = np.zeros(raw.shape)
    local = np.array([next(found) for _ in errors])
    whole = np.full(local.shape, np.nan)
    whole[:, : len(settings.probed)] = np.array([next(found) for _ in probes]).reshape(blocks, -1)
    for number, (own, curve) in enumerate(zip(whole, _curves(whole, local), strict=True)):
        slices = quantized.shapes[number].slices
        raw[number, :slices], losses[number, :slices] = own / slices, curve / slices
    if head:
        measured_head = np.array(next(found))  # (slices, bits that it was quantised at)
        below = [max(0, sum(b <= bits for b in known) - 1) for bits in offered]  # other bits are worth the next fewer
        raw[blocks, : len(measured_head), [offered.index(b) for b in known]] = measured_head.T
        losses[blocks, : len(measured_head)] = measured_head[:, below]
    importance = _importance(offered, concave_gains(losses, offered), raw, len(probes) + len(plans))
    if plans:
        sums = np.array([plan_sums(plan, importance) for plan in plans])
        importance = replace(importance, additivity=(check(sums, np.array(list(found))),))
    return replace(importance, seconds=time.monotonic() - began)


def _curves(measured: Doubles, errors: Doubles) -> Doubles:
    """Losses (blocks, bits) of blocks by their errors, through those that were measured, others being NaN.

    All curves end in the exact model, which has neither loss nor error.
    """
    ended = [np.concatenate([values, np.zeros((len(values), 1))], axis=1) for values in (measured, errors)]
    return fill_in(*ended)[:, :-1]


def plan_sums(plan: Assignment, importance: Importance) -> Doubles:
    """The summed gains (blocks,) of a plan; a head that is not quantised is worth nothing."""
    bits, most = importance.bits, importance.gain.shape[1]
    known = [[b if b in bits else bits[0] for b in row] for row in plan]
    padded = tuple((*row, *bits[:1] * (most - len(row))) for row in known)
    return layer_sums(padded, importance.bits, importance.gain, importance.presence)


def random_plans(quantized: QuantizedDecoder, settings: GainSettings) -> list[Assignment]:
    """Plans as planners make them: most blocks have one bitwidth, and one in eight has two.

    Every second plan scatters around 4 bits, the others around any bitwidth, by a level or so for each block. The
    vocabulary has bits that it was quantised at.
    """
    rng, bits = np.random.default_rng(settings.seed), np.array(settings.bits)
    middle = min(int(np.searchsorted(bits, MIDDLE)), len(bits) - 1)
    heads = [b for b in settings.bits if b in quantized.head_bits]
    found = []
    for number in range(settings.plans):
        centre = middle if number % 2 else rng.uniform(0, len(bits) - 1)
        rows = []
        for shape in quantized.shapes:
            place = np.full(shape.slices, rng.normal(centre, 1))
            if rng.random() < 1 / 8:
                place[: rng.integers(shape.slices + 1)] += 1
            rows.append(tuple(int(b) for b in bits[np.clip(np.rint(place), 0, len(bits) - 1).astype(int)]))
        head = int(rng.choice(heads)) if heads else EXACT
        found.append((*rows[:-1], tuple(b if b in heads else head for b in rows[-1])))
    return found


def _importance(bits: tuple[int, ...], gain: Doubles, raw: Doubles, evaluations: int) -> Importance:
    return Importance(
        method="curves", bits=bits, level=EXACT, gain=gain, presence=np.zeros(gain.shape[:2]), path=None, raw=raw,
        raw_width=None, objective="kl", calibration="nothing: the planner uses no gains", metric=None, additivity=(),
        layer_factor=(1.0,) * len(gain), evaluations=evaluations, seconds=0.0, key="",
    )  # fmt: skip
