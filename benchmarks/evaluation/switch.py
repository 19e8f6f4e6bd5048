"""Switching between plans of one package: how long it takes, and what the next run reads for it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise, permutations
from typing import Any

from benchmarks.evaluation.plans import Answer, Packages, resident
from benchmarks.evaluation.tasks import Prepared
from stic.compiler.plan import Plan
from stic.compiler.store import Store
from stic.runtime.format import LEVEL_BITS
from stic.runtime.layout import levels_of
from stic.runtime.session import PlanInfo, Session

REPEATS = 10  # of a switch
RUNS = 10  # of a plan that has settled


def missing_bytes(store: Store, before: Plan, after: Plan) -> int:
    """Bytes of the records that `after` keeps in memory and `before` does not."""
    total = 0
    for layer, (old, new) in enumerate(zip(before.layers, after.layers, strict=True)):
        for s, bits in enumerate(new.resident):
            held = levels_of(old.resident[s], store.nested) if s < len(old.resident) else ()
            wanted = set(levels_of(bits, store.nested)) - set(held)
            total += sum(int(store.bytes[layer, level, s]) for level in wanted)
    return total


def upgrades(prepared: Prepared, packages: Packages, ids: Sequence[int]) -> list[dict[str, Any]]:
    """For every b: bytes that a model held at b bits reads when it is to be held at b + 1, beside the new plane's."""
    store = prepared.materials.store
    uniform = [resident(((bits,) * store.most_slices,) * store.blocks, float(bits)) for bits in LEVEL_BITS]
    found = []
    with Session(packages.write_family("uniform", uniform)) as session:
        session.set_budget(memory_bytes=session.plans[0].claimed_bytes)
        session.run(ids)
        for number, (before, after) in enumerate(pairwise(uniform), 1):
            session.set_budget(memory_bytes=session.plans[number].claimed_bytes)
            session.run(ids)
            found.append(
                {
                    "from": LEVEL_BITS[number - 1],
                    "to": LEVEL_BITS[number],
                    "bytes_read": session.stats().io_bytes,
                    "plane_bytes": missing_bytes(store, before, after),
                }
            )
    return found


def switches(
    prepared: Prepared, packages: Packages, answers: Sequence[Answer], ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The `switch` of a result: every change between plans that differ in their cap on the preload buffer.

    `switch_us` is the median time of the call, `run_us` of a run once the new plan has settled, paced as it was planned
    for; `bytes_read` is what the run after the switch reads beyond such a run.
    """
    by_digest = {answered.digest: answered for answered in answers}  # a larger buffer may change nothing
    plans = [answered.plan for answered in by_digest.values() if answered.plan is not None]
    caps = [answered.asked.case.preload_bytes for answered in by_digest.values()]
    if len(plans) < 2:
        return []
    rate, found = answers[0].asked.bytes_per_s, []
    package = packages.write_family(f"family-{rate}", plans)
    with Session(package, storage=prepared.storage_of(rate)) as session:
        numbers = [info.number for info in session.plans if _reachable(info, session.plans)]
        settled = {number: _settled(session, session.plans[number], ids) for number in numbers}
        for before, after in permutations(numbers, 2):
            took, read = [], []
            for _ in range(REPEATS):
                _choose(session, session.plans[before])
                session.run(ids)
                took.append(_choose(session, session.plans[after]))
                session.run(ids)
                read.append(session.stats().io_bytes - settled[after][1])
            run_us, switch_us = settled[after][0], statistics.median(took)
            found.append(
                {
                    "task": prepared.name,
                    "bytes_per_s": rate,
                    "from": _name(caps[before]),
                    "to": _name(caps[after]),
                    "switch_us": switch_us,
                    "run_us": run_us,
                    "share_of_run": switch_us / run_us,
                    "missing_bytes": missing_bytes(prepared.materials.store, plans[before], plans[after]),
                    "bytes_read": max(read),
                }
            )
    return found


def _reachable(plan: PlanInfo, plans: Sequence[PlanInfo]) -> bool:
    """Whether its own memory chooses the plan: nothing that claims as little is better."""
    others = [other for other in plans if other.number != plan.number]
    return all(other.claimed_bytes > plan.claimed_bytes or other.quality < plan.quality for other in others)


def _choose(session: Session, plan: PlanInfo) -> float:
    """Switch to a plan; microseconds of the call."""
    began = time.perf_counter()
    chosen = session.set_budget(plan.deadline_us or None, plan.claimed_bytes)
    took_us = 1e6 * (time.perf_counter() - began)
    assert chosen.number == plan.number, f"the budget of plan {plan.number} chose plan {chosen.number}"
    return took_us


def _settled(session: Session, plan: PlanInfo, ids: Sequence[int]) -> tuple[float, int]:
    """(median microseconds, bytes read) of a run under a plan that was chosen a run ago."""
    _choose(session, plan)
    session.run(ids)
    times = []
    for _ in range(RUNS):
        session.run(ids)
        times.append(session.stats().run_us)
    return statistics.median(times), session.stats().io_bytes


def _name(cap: int | None) -> str:
    return "any preload" if cap is None else f"{cap / 2**20:g} MiB"
