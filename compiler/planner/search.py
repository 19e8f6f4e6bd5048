"""Search for the best plan: branch over (read-ahead, table, first layer that streams), bound, and search inside.

The relaxation of a branch is within a few tenths of a percent of its optimum, so each is relaxed first; plans
are sought near the relaxed solutions and then near the best plan so far, by branch and bound (HiGHS) and by
CP-SAT in turn, while a second thread lowers the worst bound. A bound is proved by a relaxation or by a search
of a whole branch, never by a search near something.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ortools.sat.python import cp_model

from stic.compiler.plan import LayerPlan, Plan, Problem, Proof
from stic.compiler.planner.branch import READ_AHEAD, Branch, box, roots, values_of
from stic.compiler.planner.closed_form import CostTable, claim_of, objective, within
from stic.compiler.planner.ilp import Aim, Program, bound_of
from stic.compiler.planner.relax import Relaxer
from stic.compiler.planner.solution import decode, hint
from stic.runtime.format import BLOCK

GAP_LIMIT = 1e-4  # relative; a search ends when its bound is this near
TIE = 1e-6  # relative; plans this close are of equal quality (the integer objective rounds by less)
SMALL = 600  # variables; smaller programs are solved whole at once


@dataclass(frozen=True)
class Answer:
    """The best plan found for one aim, and a bound on that aim (latency, memory: from below)."""

    plan: Plan | None
    value: float
    bound: float | None  # None: none was found in time
    proved: bool  # the search was exhausted: `plan` is the best up to the gap limit, or None for certain


class Search:
    """The search for one aim; `run` once."""

    def __init__(
        self,
        problem: Problem,
        aim: Aim,
        workers: int = 2,
        gap_limit: float = GAP_LIMIT,
        start: Plan | None = None,
        floor: float | None = None,
        enough: float = 0.0,
        progress: Callable[[float, float], None] | None = None,
    ) -> None:
        """`start` is a plan known to fit; `floor` the quality to keep when latency or memory is minimised.

        Once the first plans are found, the search goes on only while the gap is above `enough`. `progress` is called
        with the best value and the bound whenever one of them changes, from any thread, one call at a time.
        """
        self.problem, self.aim, self.workers, self.gap_limit = problem, aim, workers, gap_limit
        self.floor, self.enough = floor, max(enough, gap_limit)
        self.sign = 1.0 if aim == "quality" else -1.0  # values are compared as sign * value
        self.best: Plan | None = None
        self.best_value = -math.inf
        self.deadline = 0.0
        self.branches: list[Branch] = []  # together they hold every plan, once `run` has begun
        self._ceiling = self._most() if aim == "quality" else math.inf  # bounds all of them
        self._progress, self._told = progress, (-math.inf, math.inf)
        self._lock = threading.RLock()
        if start is not None:
            self._offer(start.layers, start.table_resident, start.read_ahead)
            self.best = start if self.best is not None else None
            for read_ahead in READ_AHEAD:
                self._offer(start.layers, start.table_resident, read_ahead)

    def run(self, deadline: float) -> Answer:
        """Search until `deadline` (time.perf_counter)."""
        self.deadline = deadline
        self._tell()
        if self.best_value >= self._ceiling * (1 - self.gap_limit):
            return Answer(self.best, self.best_value, self._ceiling, True)
        self.branches, cover = roots(self.problem, self.aim, self.floor)
        if len(self.branches[0].program.model.Proto().variables) >= SMALL:
            self._near_relaxations(cover)
            self._from_both_sides()
        else:
            self._whole()
        proved = not any(self._open(b) for b in self.branches)
        bound = self._bound()
        known = math.isfinite(bound)
        return Answer(self.best, self.sign * self.best_value, self.sign * bound if known else None, proved)

    def _bound(self) -> float:
        """No plan is better; in the sign of `best_value`."""
        return max(self.best_value, min(self._ceiling, max((b.bound for b in self.branches), default=math.inf)))

    def _tell(self) -> None:
        """Report the best value and the bound, if they are news."""
        if self._progress is None:
            return
        with self._lock:
            now = (self.sign * self.best_value, self.sign * self._bound())
            if now != self._told:
                self._told = now
                self._progress(*now)

    def _left(self) -> float:
        return self.deadline - time.perf_counter()

    def _open(self, b: Branch, gap: float | None = None) -> bool:
        """Whether a branch may still hold something better, by more than `gap` (None: the gap limit)."""
        if b.exhausted or self.best is None:
            return not b.exhausted
        gap = self.gap_limit if gap is None else gap
        return min(b.bound, self._ceiling) > self.best_value + gap * abs(self.best_value)

    def _most(self) -> float:
        """Quality of the whole model, each shard at what suits it best."""
        whole = self.problem.gain.max(axis=2)
        return float((whole + self.problem.presence).clip(0).sum() if self.problem.elastic else whole.sum())

    def _whole(self) -> None:
        """CP-SAT on every branch of a small program."""
        for b in self.branches:
            self._bounded(b)
        for i, b in enumerate(self.branches):
            if self._open(b) and self._left() > 0.05:
                self._solve(b, self._left() / (len(self.branches) - i), {}, self.workers)

    def _covered(self, cover: Relaxer) -> None:
        """Bound all branches at once."""
        relaxed = cover.solve({}, self._left())
        if relaxed.infeasible:
            for b in self.branches:
                b.bound, b.exhausted = -math.inf, True
        if relaxed.bound is not None:
            bound = self.sign * self._in_units(self.branches[0].program, relaxed.bound)
            self._ceiling = min(self._ceiling, bound)
            self._tell()

    def _bounded(self, b: Branch) -> bool:
        """Relax a branch; False if there is no time for it, and its bound stays what it was."""
        if self._left() < 0.05:
            return False
        relaxed = b.relaxer.solve(b.fixed(), self._left())
        if relaxed.infeasible:
            b.bound, b.exhausted = -math.inf, True
        elif relaxed.bound is None or relaxed.values is None:
            return False
        else:
            b.bound = min(b.bound, self.sign * self._in_units(b.program, relaxed.bound))
            b.relaxed = relaxed.values
        self._tell()
        return True

    def _replace(self, b: Branch, parts: list[Branch]) -> None:
        """Have a branch's parts in its place."""
        with self._lock:
            self.branches = [other for other in self.branches if other is not b] + parts
        self._tell()

    def _split(self, seconds: float) -> None:
        """Tighten the worst bounds by cutting the path, or halving which layer may be the first that streams."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            worst = max(self.branches, key=lambda b: b.bound)
            parts = worst.cut() or worst.halved()
            if not self._open(worst) or not parts or not all(self._bounded(part) for part in parts):
                break
            self._replace(worst, parts)

    def _in_units(self, program: Program, units: float) -> float:
        """A bound in the program's integers as a bound on quality, bytes or microseconds."""
        if self.aim == "quality":
            return bound_of(program, units)
        if self.aim == "memory":
            return BLOCK * (units - 1e-3) + self.problem.fixed_bytes
        # Less what rounding every cost up to whole nanoseconds can have added.
        store = self.problem.store
        rounded = 1e-3 * (store.total_bytes / BLOCK + store.blocks * (store.most_slices + 10) + 10)
        if self.aim == "first token":
            return units / 2000 - rounded * len(self.problem.prompt)
        return units / 1000 - rounded

    def _offer(self, layers: tuple[LayerPlan, ...], table_resident: bool, read_ahead: int) -> None:
        """Keep a plan if it meets the budget by the closed form and is the best so far."""
        proof = Proof("feasible", objective(layers, self.problem), None, 0.0)
        plan = Plan("ilp", layers, table_resident, read_ahead, True, self.problem.budget, self.problem.margin, proof)
        claim = claim_of(plan, self.problem)
        kept = self.floor is None or proof.objective >= self.floor - TIE * abs(self.floor)
        value = {
            "quality": proof.objective,
            "memory": -claim.peak_bytes,
            "latency": -claim.latency_us,
            "first token": -claim.first_token_us,
        }[self.aim]
        with self._lock:
            if kept and value > self.best_value and within(self.problem, claim):
                self.best, self.best_value = plan, value
                self._tell()

    def _near_relaxations(self, cover: Relaxer | None) -> None:
        """Relax cover and branches, those like the best plan first, and search near what promises most meanwhile.

        The first worker relaxes as long as there is anything to relax; then, as the others before, it searches.
        """
        begun = (self.best.read_ahead, self.best.table_resident) if self.best is not None else None
        waiting = sorted(self.branches, key=lambda b: (b.read_ahead, bool(b.resident)) != begun)
        relaxed: list[Branch] = []
        busy, change = 0, threading.Condition(self._lock)

        def next_one(searches: bool) -> Branch | None:
            likely = [b for b in relaxed if self._open(b)] if searches or not waiting else []
            b = max(likely, key=lambda b: b.bound, default=None)
            if b is not None:
                relaxed.remove(b)
                return b
            return waiting.pop(0) if waiting else None

        def work(worker: int) -> None:
            nonlocal busy
            if cover is not None and not worker:
                self._covered(cover)
            while True:
                with change:
                    while (b := next_one(worker > 0)) is None and busy:
                        change.wait()
                    if b is None or self._left() < 0.05:
                        return
                    busy += 1
                try:
                    if b.relaxed:
                        self._near_relaxation(b)
                    elif self._open(b) and self._bounded(b) and b.relaxed:
                        if parts := b.cut():
                            self._replace(b, parts)
                            waiting[:0] = parts
                        else:
                            relaxed.append(b)
                finally:
                    with change:
                        busy -= 1
                        change.notify_all()

        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(work, range(self.workers)))

    def _near_relaxation(self, b: Branch) -> None:
        """Branch and bound in boxes around a relaxed solution, the wider one where the first is empty."""
        share = min(max(self.workers / (1 + sum(map(self._open, self.branches))), 0.3), 0.6)
        if self.aim != "quality" and self.floor is None:
            # Least memory and least latency are nearly always at the lowest bits: decide residence alone.
            lowest = {x.index: 0 for rows in b.program.y for row in rows for x in row[1:]}
            self._branch_and_bound(b, share * self._left(), lowest)
        for width in (1, 3):
            if self._open(b) and self._left() > 0.05:
                if not self._branch_and_bound(b, share * self._left(), box(b.program, b.relaxed, width)):
                    break

    def _from_both_sides(self) -> None:
        """Improve the best plan and the worst bound, at the same time, until they are near enough or time is up."""
        with ThreadPoolExecutor(1) as pool:
            turn, seconds = 0, 0.5
            while self._left() > 0.3 and any(self._open(b, self.enough) for b in self.branches):
                # Solvers start anew every turn, so turns get longer, and no small one is left for the end.
                seconds = self._left() if self._left() < 4 * seconds else 2 * seconds
                if self.workers > 1:
                    bounds = pool.submit(self._tighten, seconds)
                    self._near_best(seconds, turn)
                    bounds.result()
                else:
                    self._near_best(0.6 * seconds, turn)
                    self._tighten(0.4 * seconds)
                turn += 1

    def _near_best(self, seconds: float, turn: int) -> None:
        """One solver in a box around the best plan so far; the next turn takes the other, or a wider box."""
        likely = sorted((b for b in self.branches if self._open(b)), key=lambda b: -b.bound)
        here = next((b for b in likely if self._holds_best(b)), None)
        if self.best is None or here is None:
            for b in likely[turn % max(1, len(likely)) :][:1]:
                self._solve(b, seconds, {}, max(1, self.workers - 1))
            return
        around = values_of(here.program, self.best)
        if turn % 3 == 1:
            self._solve(here, seconds, box(here.program, around, 2), max(1, self.workers - 1))
        else:
            self._branch_and_bound(here, seconds, box(here.program, around, 1 + turn // 3))

    def _tighten(self, seconds: float) -> None:
        """Lower the worst bound: split the branch it belongs to, or else branch and bound on the whole of it."""
        end = time.perf_counter() + seconds
        self._split(seconds)
        while time.perf_counter() < end - 0.3:
            worst = max(self.branches, key=lambda b: b.bound)
            before = worst.bound
            if not self._open(worst):
                break
            self._branch_and_bound(worst, end - time.perf_counter(), {})
            if worst.bound >= before:
                break

    def _holds_best(self, b: Branch) -> bool:
        """Whether the best plan lies in this branch."""
        if self.best is None or self.best.read_ahead != b.read_ahead or self.best.table_resident != bool(b.resident):
            return False
        if not b.least <= sum(len(layer.bits) for layer in self.best.layers) <= b.most:
            return False
        if not b.program.started:
            return True
        table = CostTable(self.problem)
        layers = enumerate(self.best.layers)
        first = [k for k, layer in layers if table.layer(k, layer.bits, layer.resident).streamed_bytes]
        return b.first <= (first[0] if first else self.problem.store.blocks) < b.until

    def _branch_and_bound(self, b: Branch, seconds: float, fence: dict[int, int]) -> bool:
        """HiGHS on a branch, whole or in a box; keep what it finds. True if there is nothing in it."""
        fixed = b.fixed()
        if any(fence.get(i, v) != v for i, v in fixed.items()):
            return True
        gap = max(self.gap_limit / 2, self.enough / (4 if fence else 2))
        outcome = b.relaxer.solve(fence | fixed, min(seconds, self._left()), True, gap)
        if outcome.values is not None:
            values = outcome.values
            layers, table_resident = decode(b.program, lambda x: round(values[x.index]))
            self._offer(layers, table_resident, b.read_ahead)
        if not fence:
            if outcome.infeasible:
                b.bound, b.exhausted = -math.inf, True
            elif outcome.bound is not None:
                b.bound = min(b.bound, self.sign * self._in_units(b.program, outcome.bound))
            self._tell()
        return outcome.infeasible

    def _solve(self, b: Branch, seconds: float, fence: dict[int, int], workers: int) -> None:
        """CP-SAT on a branch, whole or in a box; keep what it finds, and what it proves of a whole one."""
        model = b.program.model.clone()
        for i, value in (fence | b.fixed()).items():
            model.add(model.get_bool_var_from_proto_index(i) == value)
        model.clear_hints()
        if self.best is not None:
            hint(b.program, model, self.best)
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = max(0.05, min(seconds, self._left()))
        solver.parameters.num_workers = workers
        solver.parameters.linearization_level = 2
        solver.parameters.relative_gap_limit = self.gap_limit / 2
        solver.parameters.catch_sigint_signal = False  # it would take Ctrl-C from Python for good
        status = solver.solve(model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            layers, table_resident = decode(b.program, solver.value)
            self._offer(layers, table_resident, b.read_ahead)
        if not fence and status == cp_model.INFEASIBLE:
            b.bound, b.exhausted = -math.inf, True
        elif not fence and status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            b.bound = min(b.bound, self.sign * self._in_units(b.program, solver.best_objective_bound))
            b.exhausted = status == cp_model.OPTIMAL
        self._tell()
