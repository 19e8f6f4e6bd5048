"""Cases in numbers, the plan that answers one, and the package that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.evaluation.cases import NONE, PAPER, STI, Bandwidth, Case, Deadline
from benchmarks.evaluation.results import PAPER_RATIO
from benchmarks.evaluation.resume import Finished
from benchmarks.evaluation.tasks import COMPUTE_BITS, Prepared
from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest
from stic.compiler.choice import best_plan
from stic.compiler.memory.placement import place_extents
from stic.compiler.package.assembly import Planned, assemble_package, claim
from stic.compiler.package.writer import write_package
from stic.compiler.plan import Budget, ComputeCost, LayerPlan, Plan, Problem, Proof, from_json, to_json
from stic.compiler.planner.closed_form import claim_of
from stic.compiler.planner.costs import paced_io
from stic.compiler.quantities import parse_time_us
from stic.compiler.simulate import Timeline, check, simulate
from stic.compiler.stage_cache import solved
from stic.runtime.errors import InfeasibleError
from stic.runtime.native import cache_dir

GAP = 0.005  # at which the integer program stops, as `stic compile` does
_PLANS = (best_plan.__module__, simulate.__module__, claim_of.__module__)  # and what is in this file

Bits = tuple[tuple[int, ...], ...]  # of each kept slice, by layer


@dataclass(frozen=True)
class Asked:
    """A case in numbers."""

    case: Case
    bytes_per_s: int
    deadline_us: int | None
    deadline_ratio: float | None  # of C; None: no deadline

    def to_json(self, tokens: int, threads: int) -> dict[str, Any]:
        """The `case` of a row."""
        return {
            "grid": self.case.grid,
            "task": self.case.task,
            "planner": self.case.planner,
            "bits": self.case.method[1],
            "bytes_per_s": self.bytes_per_s,
            "preload_bytes": self.case.preload_bytes,
            "deadline_us": self.deadline_us,
            "deadline_ratio": self.deadline_ratio,
            "tokens": tokens,
            "threads": threads,
        }


@dataclass(frozen=True, eq=False)
class Answer:
    """What a planner made of a case: a checked plan, or a sentence that says why there is none."""

    asked: Asked
    plan: Plan | None = None
    timeline: Timeline | None = None
    message: str = ""

    @property
    def bits(self) -> Bits:
        """Of every kept slice."""
        assert self.plan is not None
        return tuple(layer.bits for layer in self.plan.layers)

    @property
    def digest(self) -> str:
        """Of what the plan does, not of how it was found: plans that are alike run alike."""
        assert self.plan is not None
        plan = self.plan
        return digest(plan.layers, plan.table_resident, plan.read_ahead, plan.overlap)[:16]


def bandwidth_of(prepared: Prepared, bandwidth: Bandwidth) -> int:
    """Bytes a second."""
    return prepared.bandwidth_of(PAPER_RATIO) if bandwidth == PAPER else int(bandwidth)


def deadline_of(prepared: Prepared, deadline: Deadline) -> int | None:
    """Microseconds; None: no deadline."""
    if isinstance(deadline, str):
        return None if deadline == NONE else parse_time_us(deadline)
    return round(deadline * prepared.compute_us)


def asked_of(prepared: Prepared, case: Case) -> Asked:
    """The case in numbers, by the task's costs."""
    deadline_us = deadline_of(prepared, case.deadline)
    ratio = None if deadline_us is None else deadline_us / prepared.compute_us
    return Asked(case, bandwidth_of(prepared, case.bytes_per_s), deadline_us, ratio)


def problem_of(prepared: Prepared, asked: Asked) -> Problem:
    """The task's problem on this storage, under this budget."""
    problem = prepared.published if asked.case.planner == STI else prepared.problem
    return replace(
        problem,
        budget=Budget(asked.deadline_us, None, asked.case.preload_bytes),
        io=paced_io(problem.io, prepared.storage_of(asked.bytes_per_s)),
    )


def planned(prepared: Prepared, asked: Asked, seconds: float, note: Callable[[str], None]) -> tuple[Plan, Timeline]:
    """The plan that the case's planner makes, and its replay.

    Raises InfeasibleError where it finds none, ReplayError where plan, replay and package differ.
    """
    problem, (planner, bits) = problem_of(prepared, asked), asked.case.method
    how = (seconds, GAP, cache_dir() / "plans", note)
    if planner == "ilp":
        plan = best_plan(problem, prepared.trial, *how)
    else:
        plan = solved(problem, planner, bits, *how)
    if planner == "greedy":
        plan = prepared.trial.best([plan])  # for its loss
    return plan, check(plan, problem, claim_of(plan, problem))


def answer(prepared: Prepared, asked: Asked, seconds: float, finished: Finished, note: Callable[[str], None]) -> Answer:
    """`planned`, kept with what else is finished: a search that the clock ended may find another plan the next time."""
    problem = problem_of(prepared, asked)
    key = (code_of(*_PLANS, alone=(__name__,)), problem, prepared.trial.setup.key, asked.case.planner, seconds)
    found = finished.get("plan", key)
    if found is None:
        try:
            plan, _ = planned(prepared, asked, seconds, note)
            found = {"plan": to_json(plan)}
        except InfeasibleError as error:
            found = {"infeasible": str(error)}
        finished.put("plan", key, found)
    if "infeasible" in found:
        return Answer(asked, message=found["infeasible"])
    plan = from_json(found["plan"])
    return Answer(asked, plan, check(plan, problem, claim_of(plan, problem)))


def facts(answered: Answer) -> dict[str, Any]:
    """The `plan` of a row."""
    plan, timeline = answered.plan, answered.timeline
    assert plan is not None and timeline is not None
    return {
        "digest": answered.digest,
        "mean_bits": plan.mean_bits,
        "shards": sum(len(layer.bits) for layer in plan.layers),
        "layers_kept": sum(bool(layer.bits) for layer in plan.layers),
        "full_precision_shards": sum(layer.full for layer in plan.layers),
        "objective": plan.proof.objective,
        "loss": plan.loss,
        "bound": plan.proof.bound,
        "gap": plan.proof.gap,
        "solve_seconds": plan.proof.solve_seconds,
        "io_bytes": timeline.io_bytes,
        "preload_bytes": timeline.preload_bytes,
        "working_bytes": timeline.working_bytes,
        "table_resident": plan.table_resident,
        "read_ahead": plan.read_ahead,
        "bits": [list(layer.bits) for layer in plan.layers],
        "resident": [list(layer.resident) for layer in plan.layers],
    }


@dataclass(frozen=True)
class Pace:
    """What the machine took just then, by what was predicted."""

    compute: float
    rows: float  # reading embedding rows


def witness(prepared: Prepared) -> Plan:
    """A plan that first reads embedding rows, then computes the whole model, and does nothing else."""
    store = prepared.problem.store
    return replace(resident(((COMPUTE_BITS,) * store.most_slices,) * store.blocks), table_resident=False)


def _rows_us(problem: Problem) -> float:
    return problem.io.row_us * problem.length


def pace_of(prepared: Prepared, bytes_per_s: int, measured: Mapping[str, float]) -> Pace:
    """The pace that runs of the witness show, on storage of this bandwidth."""
    problem = replace(prepared.problem, io=paced_io(prepared.problem.io, prepared.storage_of(bytes_per_s)))
    rows_us, whole_us = _rows_us(problem), simulate(witness(prepared), problem).latency_us
    waited_us = measured["mean_stall_us"]
    return Pace((measured["median_us"] - waited_us) / (whole_us - rows_us), waited_us / rows_us)


def at_pace(prepared: Prepared, answered: Answer, pace: Pace) -> float:
    """The predicted time, in microseconds, had compute and row reads been measured at this pace."""
    assert answered.plan is not None
    problem = problem_of(prepared, answered.asked)
    cost = problem.compute
    compute = ComputeCost(
        tuple(block.scaled(pace.compute) for block in cost.blocks),
        cost.embed_us * pace.compute,
        cost.head_us * pace.compute,
        cost.submit_us * pace.compute,
    )
    io = replace(problem.io, row_us=problem.io.row_us * pace.rows)
    return simulate(answered.plan, replace(problem, compute=compute, io=io)).latency_us


def claimed_bytes(prepared: Prepared, plan: Plan) -> int:
    """What the plan's package says that the engine holds."""
    return claim(prepared.materials, plan, place_extents(plan, prepared.materials.store))


def resident(bits: Bits, objective: float = 0.0) -> Plan:
    """The plan of these bits that reads nothing: it computes what every plan of these bits computes."""
    layers = tuple(LayerPlan(layer, layer) for layer in bits)
    return Plan("preload", layers, True, len(layers), True, Budget(), 0.0, Proof("heuristic", objective, None, 0.0))


class Packages:
    """Packages of one task in a folder: the data files are written once, each further plan is an index beside them."""

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        self._prepared, self._folder = prepared, folder / prepared.name

    def write(self, name: str, plan: Plan, timeline: Timeline | None = None) -> Path:
        """Write the package of a plan. It may be removed: the data files have a package of their own."""
        predicted_us = 0 if timeline is None else round(timeline.latency_us)
        events = () if timeline is None else tuple(asdict(event) for event in timeline.events)
        return self._write(name, (Planned(plan, predicted_us, events),))

    def write_family(self, name: str, plans: Sequence[Plan]) -> Path:
        """Write one package of several plans, to switch between."""
        return self._write(name, tuple(Planned(plan, 0, ()) for plan in plans))

    def _write(self, name: str, plans: tuple[Planned, ...]) -> Path:
        prepared, full = self._prepared, any(layer.full for one in plans for layer in one.plan.layers)
        original, path = self._folder / ("original-full" if full else "original"), self._folder / name
        parts = assemble_package(prepared.materials, plans, prepared.target, prepared.kernels, keep_planes=True)
        if not original.exists():
            write_package(parts, original)
        write_package(parts, path, twin=original)
        return path
