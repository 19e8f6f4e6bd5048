"""The evaluation, phase by phase; what is finished is kept as it comes, and not measured again.

Accuracy is measured in several processes, latency alone on the machine, after them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from benchmarks.evaluation import accuracy, measure, peers
from benchmarks.evaluation.cases import Case, Cases, PeerCase, SwitchCase
from benchmarks.evaluation.keys import Keys
from benchmarks.evaluation.measure import Contender, Setting
from benchmarks.evaluation.plans import (
    Answer,
    Packages,
    answer,
    asked_of,
    bandwidth_of,
    claimed_bytes,
    pace_of,
    resident,
    witness,
)
from benchmarks.evaluation.resume import Finished
from benchmarks.evaluation.switch import switches, upgrades
from benchmarks.evaluation.tasks import Prepared, prepare
from benchmarks.evaluation.throttle import Place, place_of
from stic.compiler.progress import Progress
from stic.runtime.errors import EngineError
from stic.targets.target import load
from stic.targets.toolchain import build_engine

ACCURACY_JOBS = 2


class Evaluation:
    """One case file on one machine. Phases in order: prepare, plan, score, time, time_peers, switch."""

    def __init__(
        self, cases: Cases, folder: Path, only: tuple[str, ...], progress: Progress, note: Callable[[str], None]
    ) -> None:
        self.cases, self.folder, self.progress, self.note = cases, folder.absolute(), progress, note
        self.finished = Finished(self.folder)
        self.prepared: dict[str, Prepared] = {}
        self.answers: dict[Case, Answer] = {}  # of all cases, and of those to switch between
        self.failures: dict[str, str] = {}  # key of what was to be measured: why it failed
        self.place: Place = place_of(self.folder)
        self._only = only
        self._made = self.folder / "packages"
        self._packages: dict[str, Packages] = {}

    def __enter__(self) -> Evaluation:
        shutil.rmtree(self._made, ignore_errors=True)  # of a run that was killed
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._made, ignore_errors=True)

    @cached_property
    def runner(self) -> Path:
        """stic_run."""
        return build_engine(load("host"), self.folder / "engine").runner

    @cached_property
    def keys(self) -> Keys:
        """Of what is measured here."""
        return Keys.of(self.cases.machine, self.place, self.runner)

    def wanted(self, case: Case | PeerCase | SwitchCase) -> bool:
        """Whether --only lets it be measured."""
        if isinstance(case, PeerCase):
            name = f"peers/{case.task}/{case.name}/{case.mode}"
        elif isinstance(case, SwitchCase):
            name = f"switch/{case.task}"
        else:
            name = f"{case.grid}/{case.task}/{case.planner}"
        return not self._only or any(fnmatchcase(name, pattern) for pattern in self._only)

    def latency_key(self, answered: Answer) -> str:
        """Of the latency of a plan on one storage."""
        return self.keys.latency(self.prepared[answered.asked.case.task], answered)

    def accuracy_key(self, answered: Answer) -> str:
        """Of the accuracy of a plan."""
        return self.keys.accuracy(self.prepared[answered.asked.case.task], answered)

    def peer_key(self, case: PeerCase) -> str:
        """Of the latency of another runtime."""
        return self.keys.peer_latency(self.prepared[case.task], case.name, case.mode, self.peer_rate(case))

    def peer_rate(self, case: PeerCase) -> int | None:
        """Bytes a second of a cold start."""
        return None if case.bytes_per_s is None else bandwidth_of(self.prepared[case.task], case.bytes_per_s)

    # Preparing and planning.

    def prepare(self) -> None:
        """Run the compiler's stages on every task's model."""
        machine = self.cases.machine
        for name in self.cases.tasks:
            self.prepared[name] = prepare(name, self.folder, machine, self._stage(name), self.note)

    def _stage(self, name: str) -> Progress:
        return lambda stage, done, total: self.progress(f"{name}: {stage}", done, total)

    def plan(self) -> None:
        """Plan every case, also those that --only leaves out: they may have been measured before."""
        seconds = self.cases.machine.plan_seconds
        cases = [*self.cases.cases, *(case for switch in self.cases.switches for case in switch.cases)]
        for done, case in enumerate(cases):
            self.progress("planning", done, len(cases))
            prepared = self.prepared[case.task]
            self.answers[case] = answer(prepared, asked_of(prepared, case), seconds, self.finished, self.note)

    # Accuracy.

    def score(self) -> None:
        """Measure accuracy: of whole models, of the bits of every plan, of other runtimes."""
        missing = self.unscored()
        if not missing:
            return
        with accuracy.workers(ACCURACY_JOBS) as run:
            self._quantize(run)
            jobs = {key: job() for (_, key), job in missing.items()}
            for done, (key, result) in enumerate(run(jobs)):
                self._keep("accuracy", key, result)
                self.progress("measuring accuracy", done + 1, len(jobs))

    def unscored(self) -> dict[tuple[str, str], Callable[[], accuracy.Job]]:
        """(task, key) of every accuracy that is not known, and what makes the job that measures it."""
        found: dict[tuple[str, str], Callable[[], accuracy.Job]] = {}
        for name, prepared in self.prepared.items():
            found[name, self.keys.model_accuracy(prepared)] = partial(self._model_job, prepared)
        for case in filter(self.wanted, self.cases.cases):
            if (answered := self.answers[case]).plan is not None:
                job = partial(self._plan_job, self.prepared[case.task], answered)
                found[case.task, self.accuracy_key(answered)] = job
        for name, task in self._runtimes():
            prepared = self.prepared[task]
            found[task, self.keys.peer_accuracy(prepared, name)] = partial(self._peer_job, name, prepared)
        return {key: job for key, job in found.items() if self.finished.get("accuracy", key[1]) is None}

    def _model_job(self, prepared: Prepared) -> accuracy.Job:
        machine, tokenizer = self.cases.machine, prepared.onnx.parent / "tokenizer.json"
        chosen = (prepared.onnx, tokenizer, prepared.dev, prepared.labels, machine.tokens, machine.dev_rows)
        return accuracy.of_model, chosen

    def _plan_job(self, prepared: Prepared, answered: Answer) -> accuracy.Job:
        name = f"bits-{self.keys.accuracy(prepared, answered)[:16]}"
        package = self._packages_of(prepared).write(name, resident(answered.bits))
        return accuracy.of_package, (package, prepared.dev, prepared.labels, self.cases.machine.dev_rows)

    def _peer_job(self, name: str, prepared: Prepared) -> accuracy.Job:
        machine, model = self.cases.machine, peers.model_path(name, prepared, self.folder)
        models, data = (name, prepared.onnx, model), (prepared.dev, prepared.labels)
        return peers.accuracy, (*models, *data, machine.tokens, machine.dev_rows)

    def _quantize(self, run: accuracy.Run) -> None:
        """Make the other runtimes' int8 models where they are not yet."""
        jobs = {}
        for name, task in self._runtimes():
            prepared = self.prepared[task]
            path = peers.model_path(name, prepared, self.folder)
            if not path.exists():
                jobs[path] = peers.quantize, (name, prepared.onnx, path, prepared.calibration, prepared.labels)
        for done, (path, result) in enumerate(run(jobs)):
            if "error" in result:
                self.note(f"{path} could not be made: {result['error']}")
            self.progress("quantizing for other runtimes", done + 1, len(jobs))

    def _keep(self, kind: str, key: str, found: dict[str, Any]) -> None:
        """Write a result down, or note why there is none; failures are tried again the next time."""
        if "error" in found:
            self.failures[key] = found["error"]
        else:
            self.finished.put(kind, key, found)

    # Latency.

    def time(self) -> None:
        """Measure latency and memory of every plan, those of one deadline on one storage by turns with a witness."""
        groups = self.untimed()
        total, done = self.cases.machine.runs // self.cases.machine.block * sum(len(group) + 1 for group in groups), 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.progress("measuring latency", done, total)

        for group in groups:
            prepared = self.prepared[group[0].asked.case.task]
            setting, contenders = self._setting(prepared), [self._contender(prepared, a) for a in group]
            control = self._control(prepared, group[0].asked.bytes_per_s)
            found = measure.take_turns([control, *contenders], setting, tick)
            seen = found[control.key]
            pace = None if "error" in seen else asdict(pace_of(prepared, group[0].asked.bytes_per_s, seen["latency"]))
            for contender in contenders:
                result = found[contender.key] | {"pace": pace}
                if self._extras[contender.key][1] and "error" not in result:
                    result["memory_curve"] = measure.memory_curve(contender, setting)
                self._keep("latency", contender.key, result)
                shutil.rmtree(contender.package, ignore_errors=True)

    def untimed(self) -> list[list[Answer]]:
        """Answers to measure, in groups that take turns: one task, one storage, one deadline. None comes twice."""
        groups: dict[Any, list[Answer]] = {}
        seen: set[str] = set()
        for case in filter(self.wanted, self.cases.cases):
            found = self.answers[case]
            if found.plan is None or (key := self.latency_key(found)) in seen:
                continue
            seen.add(key)
            measured = self.finished.get("latency", key) or {}
            timeline, curve = self._extras[key]
            if not measured or (timeline and "timeline" not in measured) or (curve and "memory_curve" not in measured):
                groups.setdefault((case.task, found.asked.bytes_per_s, found.asked.deadline_us), []).append(found)
        return list(groups.values())

    @cached_property
    def _extras(self) -> dict[str, tuple[bool, bool]]:
        """Whether a timeline and a memory curve are kept, by key of the latency: for any case that the plan answers."""
        kept: dict[str, tuple[bool, bool]] = {}
        for case in self.cases.cases:
            if (found := self.answers[case]).plan is not None:
                key = self.latency_key(found)
                timeline, curve = kept.get(key, (False, False))
                matches = [pattern.matches(case) for pattern in self.cases.timelines]
                kept[key] = timeline or any(matches), curve or self._has_curve(case)
        return kept

    def _has_curve(self, case: Case | PeerCase) -> bool:
        return any(pattern.matches(case) for pattern in self.cases.memory_curves)

    def _contender(self, prepared: Prepared, answered: Answer) -> Contender:
        assert answered.plan is not None
        key, asked = self.latency_key(answered), answered.asked
        package = self._packages_of(prepared).write(key[:16], answered.plan, answered.timeline)
        size = claimed_bytes(prepared, answered.plan)
        storage = prepared.storage_of(asked.bytes_per_s)
        return Contender(key, package, storage, size, self._extras[key][0])

    def _control(self, prepared: Prepared, bytes_per_s: int) -> Contender:
        """The witness as a contender: what shows how fast the machine is just then."""
        plan = witness(prepared)
        package = self._packages_of(prepared).write("witness", plan)
        return Contender("witness", package, prepared.storage_of(bytes_per_s), claimed_bytes(prepared, plan), False)

    def _setting(self, prepared: Prepared) -> Setting:
        """How this task's packages and models are run."""
        machine = self.cases.machine
        ids = measure.distinct_ids(prepared.model.embeddings.word.shape[0], machine.tokens)
        return Setting(self.runner, self.place, machine.threads, ids, machine.runs, machine.block)

    def _packages_of(self, prepared: Prepared) -> Packages:
        """Where this task's packages are written; they go when the evaluation ends."""
        return self._packages.setdefault(prepared.name, Packages(prepared, self._made))

    # Other runtimes.

    def time_peers(self) -> None:
        """Measure latency and memory of other runtimes."""
        missing = self.untimed_peers()
        for done, case in enumerate(missing):
            self.progress("measuring other runtimes", done, len(missing))
            try:
                found = self._peer(case)
            except EngineError as error:
                found = {"error": str(error)}
            self._keep("peer", self.peer_key(case), found)

    def untimed_peers(self) -> list[PeerCase]:
        """Cases of other runtimes to measure."""
        found = []
        for case in self._peer_cases():
            measured = self.finished.get("peer", self.peer_key(case)) or {}
            if not measured or (self._has_curve(case) and "memory_curve" not in measured):
                found.append(case)
        return found

    def _peer(self, case: PeerCase) -> dict[str, Any]:
        prepared, rate = self.prepared[case.task], self.peer_rate(case)
        setting, model = self._setting(prepared), peers.model_path(case.name, prepared, self.folder)
        if rate is None:
            found = peers.resident(case.name, model, setting)
        else:
            found = peers.cold(case.name, model, setting, rate)
        if self._has_curve(case):
            found["memory_curve"] = peers.memory_curve(case.name, model, setting, measure.CURVE_RUNS)
        return found

    def _peer_cases(self) -> Iterator[PeerCase]:
        return (case for case in self.cases.peers if self.wanted(case) and peers.absent(case.name) is None)

    def _runtimes(self) -> list[tuple[str, str]]:
        """(runtime, task) of all that are measured."""
        return list(dict.fromkeys((case.name, case.task) for case in self._peer_cases()))

    # Switching.

    def switch(self) -> None:
        """Measure switches between plans, and what one more bit reads."""
        for done, case in enumerate(self.cases.switches):
            self.progress("measuring switches", done, len(self.cases.switches))
            if not self.wanted(case):
                continue
            prepared, answers = self.prepared[case.task], self.family(case)
            packages, ids = self._packages_of(prepared), self._setting(prepared).ids
            key = self.keys.upgrades(prepared)
            if self.finished.get("upgrades", key) is None:
                self.finished.put("upgrades", key, {"rows": upgrades(prepared, packages, ids)})
            key = self.keys.switches(prepared, answers)
            if self.finished.get("switches", key) is None:
                self.finished.put("switches", key, {"rows": switches(prepared, packages, answers, ids)})

    def family(self, case: SwitchCase) -> list[Answer]:
        """Plans to switch between."""
        return [self.answers[one] for one in case.cases if self.answers[one].plan is not None]
