"""What each shard is worth at each bitwidth: `stic importance`.

Gain curves: every shard is varied over the bits while all others stay at an operating level u, and the loss on
calibration examples is measured. u is high, because there the loss is a quadratic form of what one shard changes: at 4
bits it also has a linear part, of either sign, that comes from the other shards' errors and hides what a bit is worth.
Cheaper than measuring all bits: four are measured, the ones between follow the shard's local error
(`gain_curves.fill_in`); `exact` measures all. Random plans then tell whether gains add up (`additivity`). Of a large
model nothing is measured shard by shard: the same curves come from one expansion of the loss (`expansion`). An elastic
model's submodels are measured whole, along one path (`submodels`). The method "sti" is the published ranking (arXiv
2207.05022): everything at the lowest bits, one shard at a time at full precision.

The same settings give the same results, whether a profile was stopped in between or not; the number of threads that
a matrix product runs on may move the last digits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import codes_digest, digest
from stic.compiler.importance.additivity import Additivity, check, layer_factors, layer_sums, random_assignments
from stic.compiler.importance.evaluate import BATCH_TOKENS, Assignment, Setup, uniform_assignment
from stic.compiler.importance.examples import (
    Batch,
    Examples,
    built_in_examples,
    check_calibration,
    encode,
    open_tokenizer,
)
from stic.compiler.importance.gain_curves import concave_gains, fill_in, presence_values
from stic.compiler.importance.jobs import ErrorJob, ExpansionJob, Job, LossJob, Progress, Workers, run_jobs
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.objectives import Objective, default_objective
from stic.compiler.importance.submodels import submodel_path
from stic.compiler.importance.tokens import Tables, tokenise
from stic.compiler.offers import BITS, Method
from stic.compiler.plan import SubmodelPath
from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.sharding import Geometry
from stic.runtime.errors import InputError
from stic.runtime.format import LEVEL_BITS

Doubles = NDArray[np.float64]

MIDDLE = 4  # bits between the lowest, where errors are large, and u, where they vanish
GOOD_RHO = 0.8  # below, gains get a factor per layer
# Multiplications a token that varying every shard once may take. At 1536 tokens and three bitwidths this is 18 T, eight
# minutes at 40 G a second; encoders of 6 layers and hidden size 768 stay below, those of 12 layers are above. What
# grows is the square of the number of layers; an expansion grows with the model alone.
MEASURED_PRODUCTS = 4_000_000_000
_EVALUATES = (LossJob.__module__,)  # the module that computes what the log keeps


@dataclass(frozen=True)
class ImportanceSettings:
    """How importance is measured."""

    method: Method = "curves"
    bits: tuple[int, ...] = (*BITS, 16)  # ascending: the fidelities on offer
    level: int = 8  # operating level u of all shards but the one under test
    exact: bool = False  # measure every bitwidth of every shard
    tokens: int = 1024  # of calibration text at most; more is slower and steadier
    plans: int = 64  # random plans of the additivity check; 0: none
    max_length: int = 128  # tokens of one input
    objective: Objective | None = None  # None: `evaluate.default_objective`
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.bits or list(self.bits) != sorted(set(self.bits)) or set(self.bits) - {*LEVEL_BITS, 16, 32}:
            raise InputError(f"bits {self.bits} are not ascending bitwidths out of 2..8, 16 and 32")
        if self.level not in self.bits:
            raise InputError(f"the operating level of {self.level} bits is not among the bits on offer: {self.bits}")
        if self.tokens < 1 or self.plans < 0 or self.max_length < 1:
            raise InputError("a profile needs at least one token and no negative number of plans")

    def expands(self, geometry: Geometry) -> bool:
        """Whether a model of this size gets its curves from an expansion; `exact` asks for measuring in any case."""
        return not self.exact and _varied_products(geometry) > MEASURED_PRODUCTS

    @property
    def measured(self) -> tuple[int, ...]:
        """Bits at which every shard is measured."""
        few = {self.bits[0], MIDDLE, self.level, self.bits[-1]} & set(self.bits)
        return self.bits if self.exact else tuple(sorted(few))


@dataclass(frozen=True, eq=False)
class Importance:
    """What shards are worth, in units of the loss that `objective` names (for "sti": in ranks)."""

    method: Method
    bits: tuple[int, ...]
    level: int
    gain: Doubles  # (layers, slices, bits) over bits[0]; rising and concave over the bits
    presence: Doubles  # (layers, slices): value at bits[0] over leaving it out; 0 unless the model is elastic
    path: SubmodelPath | None  # of an elastic model
    raw: Doubles  # (layers, slices, bits): measured losses; NaN: not measured, hence filled in, or expanded
    raw_width: Doubles | None  # (layers, slices + 1): losses with the first 0.. slices of a layer, if elastic
    objective: Objective
    calibration: str  # for people: source, examples, tokens
    metric: float | None  # accuracy or Spearman of the base assignment on the calibration examples
    additivity: tuple[Additivity, ...]  # as measured, then with layer factors on new plans, if that was needed
    layer_factor: tuple[float, ...]  # already in gain and presence
    evaluations: int  # that the result rests on
    seconds: float  # of this run, 0 work if all was cached
    key: str  # digest of weights, calibration inputs and objective

    @property
    def rho(self) -> float | None:
        """Spearman of summed gains with measured quality over random plans, after any layer factors."""
        return self.additivity[-1].rho if self.additivity else None

    def value(self, assignment: Assignment) -> float:
        """Return the summed gain of an assignment."""
        return float(layer_sums(assignment, self.bits, self.gain, self.presence).sum())


def measure_importance(
    quantized: QuantizedModel,
    examples: Examples | None = None,
    settings: ImportanceSettings | None = None,
    tokenizer: Path | Tokenizer | None = None,
    workers: Workers | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Importance:
    """Measure the importance of every shard.

    `examples` None: the built-in sentences. `tokenizer` None: the model's. Evaluations are kept in the folder `cache`,
    and taken from there. `progress` is called after every few evaluations. Raises InputError.
    """
    started = time.monotonic()
    settings = settings or ImportanceSettings()
    model = quantized.sharded.model
    coder = tokenizer or model.tokenizer
    if coder is None:
        raise InputError(f"{model.name} has no tokenizer.json beside it, so text cannot be turned into tokens")
    source = built_in_examples() if examples is None else check_calibration(examples)
    examples, batches = sample(source, coder, min(settings.max_length, model.max_length), settings, Tables.of(model))
    lowest = settings.bits[0]
    base = uniform_assignment(quantized, lowest if settings.method == "sti" else settings.level)
    objective = settings.objective or default_objective(model, examples)
    key = measurement_key(quantized, examples, batches, objective)
    name = LossJob(base).name
    setup = Setup(f"{key} {name}", quantized, examples, batches, objective, base)
    log = EvaluationLog(cache, key)
    measure = _sti if settings.method == "sti" else _curves
    found = measure(setup, settings, log, workers or Workers(), progress)
    tokens = setup.tokens
    return replace(
        found,
        calibration=f"{examples.source}: {len(examples)} of {len(source)} examples, {tokens} tokens, {examples.kind}",
        metric=log.results[name]["metric"],
        seconds=time.monotonic() - started,
        key=key,
    )


def worthless(geometry: Geometry, settings: ImportanceSettings) -> Importance:
    """The importance of a model whose planner uses none: nothing was measured, and nothing is worth anything."""
    shape, bits = (geometry.layers, geometry.slices), len(settings.bits)
    return Importance(
        settings.method, settings.bits, settings.level, np.zeros((*shape, bits)), np.zeros(shape), None,
        np.full((*shape, bits), np.nan), None, settings.objective or "cross entropy",
        "nothing: the planner uses no gains", None, (), (1.0,) * geometry.layers, 0, 0.0, "",
    )  # fmt: skip


def measurement_key(
    quantized: QuantizedModel, examples: Examples, batches: tuple[Batch, ...], objective: Objective
) -> str:
    """Digest of all that decides an assignment's loss."""
    model = quantized.sharded.model
    of = (codes_digest(quantized), model.head, model.elastic)
    return digest(code_of(*_EVALUATES), *of, batches, examples.targets, objective)


def sample(
    examples: Examples,
    tokenizer: Path | Tokenizer,
    max_length: int,
    settings: ImportanceSettings,
    tables: Tables | None = None,
) -> tuple[Examples, tuple[Batch, ...]]:
    """Draw examples until `settings.tokens` are reached, at least one of every kind of label that there are two of.

    Raises InputError for one that the model with these tables cannot take.
    """
    coder = open_tokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
    order = np.random.default_rng(settings.seed).permutation(len(examples))
    picked: list[int] = []
    tokens = 0
    for row in order.tolist():
        one = examples.pick([row])
        size = sum(len(coded.ids) for coded in tokenise(coder, one.sequences, max_length=max_length))
        varied = examples.targets is None or len(np.unique(examples.targets[picked])) > 1
        if picked and tokens + size > settings.tokens and varied:
            break
        picked.append(row)
        tokens += size
    chosen = examples.pick(sorted(picked))
    return chosen, encode(chosen, coder, max_length, BATCH_TOKENS, tables)


def _varied_products(g: Geometry) -> float:
    """Multiplications a token of one evaluation for each shard, from its layer on."""
    products = (4 * g.heads * g.head_dim + 2 * g.ffn) * g.hidden
    return g.slices * products * g.layers * (g.layers + 1) / 2


def _with(base: Assignment, layer: int, bits: tuple[int, ...]) -> Assignment:
    return (*base[:layer], bits, *base[layer + 1 :])


def _with_shard(base: Assignment, layer: int, index: int, bits: int) -> Assignment:
    return _with(base, layer, (*base[layer][:index], bits, *base[layer][index + 1 :]))


def _losses(found: Sequence[dict[str, Any]]) -> Doubles:
    return np.array([result["loss"] for result in found], np.float64)


def _curves(
    m: Setup, settings: ImportanceSettings, log: EvaluationLog, workers: Workers, progress: Progress | None
) -> Importance:
    g, elastic = m.quantized.sharded.geometry, m.quantized.sharded.model.elastic
    bits, level = settings.bits, settings.bits.index(settings.level)
    shards = [(layer, index) for layer in range(g.layers) for index in range(g.slices)]
    expands = settings.expands(g)
    varied: list[Job] = [LossJob(_with_shard(m.base, *shard, b)) for shard in shards for b in settings.measured]
    if expands:
        varied = [LossJob(m.base), *(ExpansionJob(number, bits, m.base) for number in range(len(m.batches)))]
    cut: list[Job] = []
    if elastic:
        rows = [((settings.level,) * kept + (0,) * (g.slices - kept)) for kept in range(g.slices + 1)]
        cut = [LossJob(_with(m.base, layer, row)) for layer in range(g.layers) for row in rows]
    errors: list[Job] = []
    if not (settings.exact or expands):
        errors = [ErrorJob(layer, bits, m.base) for layer in range(g.layers)]
    plans = _plans(m, settings, settings.seed)
    jobs = [*varied, *cut, *errors, *map(LossJob, plans)]
    found = iter(run_jobs(m, jobs, log, workers, progress))

    raw = np.full((g.layers, g.slices, len(bits)), np.nan)
    if expands:
        raw[:, :, level] = next(found)["loss"]
        losses = raw[:, :, level, None] + sum(np.array(next(found)) for _ in m.batches)
    else:
        places = [bits.index(b) for b in settings.measured]
        raw[:, :, places] = _losses([next(found) for _ in varied]).reshape(g.layers, g.slices, -1)
    raw_width = _losses([next(found) for _ in cut]).reshape(g.layers, g.slices + 1) if elastic else None
    local = np.array([next(found) for _ in errors]) if errors else np.zeros(raw.shape)
    gain = concave_gains(losses if expands else fill_in(raw, local), bits)
    presence = np.zeros(gain.shape[:2]) if raw_width is None else presence_values(raw_width, gain[:, :, level])
    rests_on = {job.name for job in jobs if isinstance(job, LossJob)}
    importance = Importance(
        "curves", bits, settings.level, gain, presence, None, raw, raw_width, m.objective, "", None, (),
        (1.0,) * g.layers, len(rests_on), 0.0, "",
    )  # fmt: skip
    if plans:
        lost = _losses(list(found))
        sums = np.array([layer_sums(plan, bits, gain, presence) for plan in plans])
        importance = replace(importance, additivity=(check(sums, lost),))
        if importance.additivity[0].rho < GOOD_RHO:  # not where it is NaN: nothing varied
            importance = _with_factors(importance, layer_factors(sums, lost), m, settings, log, workers, progress)
    if not elastic:
        return importance
    path, tried = submodel_path(m, settings.level, log, workers, progress)
    value = np.maximum(path.value - importance.gain[:, :, level], 0.0)  # at bits[0]; factors are in the gains
    more = len(tried - rests_on)
    return replace(importance, path=replace(path, value=value), evaluations=importance.evaluations + more)


def _with_factors(
    importance: Importance, factors: Doubles, m: Setup, settings: ImportanceSettings, log: EvaluationLog,
    workers: Workers, progress: Progress | None,
) -> Importance:  # fmt: skip
    """Scale gains by layer and check again on plans that the factors were not fitted to; keep whatever is better."""
    gain = importance.gain * factors[:, None, None]
    presence = importance.presence * factors[:, None]
    plans = _plans(m, settings, settings.seed + 1)
    losses = _losses(run_jobs(m, list(map(LossJob, plans)), log, workers, progress))
    before, after = (
        check(np.array([layer_sums(plan, settings.bits, *values) for plan in plans]), losses)
        for values in ((importance.gain, importance.presence), (gain, presence))
    )
    counted = replace(importance, evaluations=importance.evaluations + len(plans))
    if not after.rho > before.rho:
        return replace(counted, additivity=(*importance.additivity, before))
    return replace(
        counted, gain=gain, presence=presence, layer_factor=tuple(factors.tolist()),
        additivity=(*importance.additivity, after),
    )  # fmt: skip


def _plans(m: Setup, settings: ImportanceSettings, seed: int) -> list[Assignment]:
    g = m.quantized.sharded.geometry
    elastic = m.quantized.sharded.model.elastic
    centre = MIDDLE if MIDDLE in settings.bits else settings.level  # near u hardly anything is lost
    return random_assignments(seed, settings.plans, settings.bits, centre, g.layers, g.slices, elastic)


def _sti(
    m: Setup, settings: ImportanceSettings, log: EvaluationLog, workers: Workers, progress: Progress | None
) -> Importance:
    """Rank shards by the score with that shard alone at full precision: the metric, else agreement.

    A rank has no magnitude: the last shard is worth 1/shards at full precision, the first 1, in equal steps per bit.
    Every shard's presence is worth more than any upgrade, since STI takes the largest submodel in time first.
    """
    g, bits = m.quantized.sharded.geometry, settings.bits
    shards = [(layer, index) for layer in range(g.layers) for index in range(g.slices)]
    jobs: list[Job] = [LossJob(m.base), *(LossJob(_with_shard(m.base, *shard, bits[-1])) for shard in shards)]
    base, *found = run_jobs(m, jobs, log, workers, progress)
    losses = _losses(found)
    metrics = [result["metric"] for result in found]
    score = -losses if any(value is None for value in metrics) else np.array(metrics, np.float64)
    order = np.lexsort((losses, -score))  # ties, frequent in a metric, are broken by the loss
    rank = np.empty(len(shards))
    rank[order] = np.arange(len(shards), 0, -1) / len(shards)
    share = (np.asarray(bits, np.float64) - bits[0]) / max(bits[-1] - bits[0], 1)
    raw = np.full((g.layers, g.slices, len(bits)), np.nan)
    raw[:, :, 0], raw[:, :, -1] = base["loss"], losses.reshape(g.layers, g.slices)
    elastic = m.quantized.sharded.model.elastic
    return Importance(
        "sti", bits, bits[0], rank.reshape(g.layers, g.slices, 1) * share,
        np.full((g.layers, g.slices), 2.0 * len(shards) if elastic else 0.0), None, raw, None, m.objective, "", None,
        (), (1.0,) * g.layers, len(jobs), 0.0, "",
    )  # fmt: skip
