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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ortools.sat.python import cp_model

from stic.compiler.plan import LayerPlan, Plan, Problem, Proof
from stic.compiler.planner.branch import Branch, box, values_of
from stic.compiler.planner.budget_rows import finished
from stic.compiler.planner.closed_form import CostTable, claim_of, objective, within
from stic.compiler.planner.ilp import Aim, Program, bound_of, build
from stic.compiler.planner.relax import Relaxer
from stic.compiler.planner.solution import decode, hint
from stic.runtime.format import BLOCK

GAP_LIMIT = 1e-4  # relative; a search ends when its bound is this near
TIE = 1e-6  # relative; plans this close are of equal quality (the integer objective rounds by less)
SMALL = 600  # variables; smaller programs are solved whole at once
READ_AHEAD = (2, 1, 0)  # tried besides reading ahead freely, where memory is limited


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
    ) -> None:
        """`start` is a plan known to fit; `floor` the quality to keep when latency or memory is minimised.

        Once the first plans are found, the search goes on only while the gap is above `enough`.
        """
        self.problem, self.aim, self.workers, self.gap_limit = problem, aim, workers, gap_limit
        self.floor, self.enough = floor, max(enough, gap_limit)
        self.sign = 1.0 if aim == "quality" else -1.0  # values are compared as sign * value
        self.best: Plan | None = None
        self.best_value = -math.inf
        self.deadline = 0.0
        self._lock = threading.Lock()
        if start is not None:
            self._offer(start.layers, start.table_resident, start.read_ahead)
            self.best = start if self.best is not None else None

    def run(self, deadline: float) -> Answer:
        """Search until `deadline` (time.perf_counter)."""
        self.deadline = deadline
        if self.aim == "quality" and self.best_value >= self._most() * (1 - self.gap_limit):
            return Answer(self.best, self.best_value, self._most(), True)
        branches = self._roots()
        if branches and len(branches[0].program.model.Proto().variables) >= SMALL:
            self._lowest_bits(branches)
            branches = self._split(branches, 0.15 * self._left())
            self._near_relaxations(branches)
            branches = self._from_both_sides(branches)
        else:
            for i, b in enumerate(branches):
                if self._open(b) and self._left() > 0.05:
                    self._solve(b, self._left() / (len(branches) - i), {}, self.workers)
        proved = not any(self._open(b) for b in branches)
        bound = max([b.bound for b in branches] + [self.best_value])
        known = math.isfinite(bound)
        return Answer(self.best, self.sign * self.best_value, self.sign * bound if known else None, proved)

    def _left(self) -> float:
        return self.deadline - time.perf_counter()

    def _open(self, b: Branch, gap: float | None = None) -> bool:
        """Whether a branch may still hold something better, by more than `gap` (None: the gap limit)."""
        if b.exhausted or self.best is None:
            return not b.exhausted
        return b.bound > self.best_value + (self.gap_limit if gap is None else gap) * abs(self.best_value)

    def _most(self) -> float:
        """Quality of the whole model, each shard at what suits it best."""
        whole = self.problem.gain.max(axis=2)
        return float((whole + self.problem.presence).clip(0).sum() if self.problem.elastic else whole.sum())

    def _roots(self) -> list[Branch]:
        """Branches that may hold a plan, most promising first.

        Without a limit on memory, reading ahead freely is best. The table is decided before relaxing, since a
        relaxation would hold a part of it.
        """
        depth, budget = self.problem.store.layers, self.problem.budget
        limited = budget.memory_bytes is not None or self.aim == "memory"
        out: list[Branch] = []
        free = math.inf if budget.memory_bytes is None else budget.memory_bytes - self.problem.fixed_bytes
        base = build(self.problem, self.floor)
        common = Relaxer(base.model)
        for read_ahead in (depth, *(r for r in READ_AHEAD if r < depth - 1 and limited)):
            program = finished(base, read_ahead, self.aim)
            relaxer = Relaxer(program.model, common)
            for resident in (0, 1) if self.problem.table_may_stay and self.problem.table_bytes <= free else (0,):
                for first, until in ((0, 1), (1, depth + 1)) if program.started else ((0, depth + 1),):
                    branch = Branch(program, relaxer, read_ahead, resident, first, until)
                    branch.bound = self._most() if self.aim == "quality" else math.inf
                    self._bounded(branch)
                    if branch.bound > -math.inf:
                        out.append(branch)
        return sorted(out, key=lambda b: -b.bound)

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
            b.bound, b.relaxed = self.sign * self._in_units(b.program, relaxed.bound), relaxed.values
        return True

    def _split(self, branches: list[Branch], seconds: float) -> list[Branch]:
        """Tighten the worst bounds by halving which layer may be the first that streams."""
        end = time.perf_counter() + seconds
        out = list(branches)
        while time.perf_counter() < end:
            worst = max(out, key=lambda b: b.bound, default=None)
            if worst is None or not self._open(worst) or worst.until <= worst.first + 1 or not worst.program.started:
                break
            middle = (worst.first + worst.until) // 2
            children = [replace(worst, until=middle), replace(worst, first=middle)]
            if not all(self._bounded(child) for child in children):
                break
            out.remove(worst)
            out += [child for child in children if child.bound > -math.inf]
        return sorted(out, key=lambda b: -b.bound)

    def _in_units(self, program: Program, units: float) -> float:
        """A bound in the program's integers as a bound on quality, bytes or microseconds."""
        if self.aim == "quality":
            return bound_of(program, units)
        if self.aim == "memory":
            return BLOCK * (units - 1e-3) + self.problem.fixed_bytes
        # Less what rounding every cost up to whole nanoseconds can have added.
        store = self.problem.store
        return units / 1000 - 1e-3 * (store.total_bytes / BLOCK + store.layers * (store.slices + 10) + 10)

    def _offer(self, layers: tuple[LayerPlan, ...], table_resident: bool, read_ahead: int) -> None:
        """Keep a plan if it meets the budget by the closed form and is the best so far."""
        proof = Proof("feasible", objective(layers, self.problem), None, 0.0)
        plan = Plan("ilp", layers, table_resident, read_ahead, True, self.problem.budget, self.problem.margin, proof)
        claim = claim_of(plan, self.problem)
        kept = self.floor is None or proof.objective >= self.floor - TIE * abs(self.floor)
        value = {"quality": proof.objective, "memory": -claim.peak_bytes, "latency": -claim.latency_us}[self.aim]
        with self._lock:
            if kept and value > self.best_value and within(self.problem, claim):
                self.best, self.best_value = plan, value

    def _lowest_bits(self, branches: list[Branch]) -> None:
        """Least memory and least latency are nearly always at the lowest bits: decide residence alone."""
        if self.aim == "quality" or self.floor is not None:
            return
        for b in branches:
            if self._open(b) and self._left() > 0.05:
                lowest = {x.index: 0 for rows in b.program.y for row in rows for x in row[1:]}
                self._branch_and_bound(b, 0.5 * self._left() / len(branches), lowest)

    def _near_relaxations(self, branches: list[Branch]) -> None:
        """Branch and bound in boxes around relaxed solutions, several at a time, widening where a box is empty."""

        def search(b: Branch) -> None:
            for width in (1, 3):
                if b.relaxed and self._open(b) and self._left() > 0.05:
                    seconds = max(self.workers / (1 + len(branches)), 0.3) * self._left()
                    if not self._branch_and_bound(b, seconds, box(b.program, b.relaxed, width)):
                        break

        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(search, branches))

    def _from_both_sides(self, branches: list[Branch]) -> list[Branch]:
        """Improve the best plan and the worst bound, at the same time, until they are near enough or time is up."""
        with ThreadPoolExecutor(1) as pool:
            turn = 0
            while self._left() > 0.3 and any(self._open(b, self.enough) for b in branches):
                seconds = min(self._left(), max(1.0, 0.35 * self._left()))
                if self.workers > 1:
                    bounds = pool.submit(self._tighten, branches, seconds)
                    self._near_best(branches, seconds, turn)
                    branches = bounds.result()
                else:
                    self._near_best(branches, 0.6 * seconds, turn)
                    branches = self._tighten(branches, 0.4 * seconds)
                turn += 1
        return branches

    def _near_best(self, branches: list[Branch], seconds: float, turn: int) -> None:
        """One solver in a box around the best plan so far; the next turn takes the other, or a wider box."""
        here = [b for b in branches if self._holds_best(b) and self._open(b)]
        if self.best is None or not here:
            likely = [b for b in branches if self._open(b)]
            for b in likely[turn % max(1, len(likely)) :][:1]:
                self._solve(b, seconds, {}, max(1, self.workers - 1))
            return
        around = values_of(here[0].program, self.best)
        if turn % 3 == 1:
            self._solve(here[0], seconds, box(here[0].program, around, 2), max(1, self.workers - 1))
        else:
            self._branch_and_bound(here[0], seconds, box(here[0].program, around, 1 + turn // 3))

    def _tighten(self, branches: list[Branch], seconds: float) -> list[Branch]:
        """Lower the worst bound: halve the branch it belongs to, or else branch and bound on the whole of it."""
        end = time.perf_counter() + seconds
        out = self._split(branches, seconds)
        while time.perf_counter() < end - 0.3:
            worst = max((b for b in out if self._open(b)), key=lambda b: b.bound, default=None)
            if worst is None:
                break
            before = worst.bound
            self._branch_and_bound(worst, end - time.perf_counter(), {})
            if worst.bound >= before:
                break
        return sorted(out, key=lambda b: -b.bound)

    def _holds_best(self, b: Branch) -> bool:
        """Whether the best plan lies in this branch."""
        if self.best is None or self.best.read_ahead != b.read_ahead or self.best.table_resident != bool(b.resident):
            return False
        if not b.program.started:
            return True
        table = CostTable(self.problem)
        layers = enumerate(self.best.layers)
        first = [k for k, layer in layers if table.layer(k, layer.bits, layer.resident).streamed_bytes]
        return b.first <= (first[0] if first else self.problem.store.layers) < b.until

    def _branch_and_bound(self, b: Branch, seconds: float, fence: dict[int, int]) -> bool:
        """HiGHS on a branch, whole or in a box; keep what it finds. True if there is nothing in it."""
        fixed = b.fixed()
        if any(fence.get(i, v) != v for i, v in fixed.items()):
            return True
        outcome = b.relaxer.solve(fence | fixed, min(seconds, self._left()), True, self.gap_limit / 2)
        if outcome.values is not None:
            values = outcome.values
            layers, table_resident = decode(b.program, lambda x: round(values[x.index]))
            self._offer(layers, table_resident, b.read_ahead)
        if not fence:
            if outcome.infeasible:
                b.bound, b.exhausted = -math.inf, True
            elif outcome.bound is not None:
                b.bound = min(b.bound, self.sign * self._in_units(b.program, outcome.bound))
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
