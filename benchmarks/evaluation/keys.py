"""What each measurement depends on: whatever changes a result is in its key, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.evaluation.cases import Machine
from benchmarks.evaluation.peers import NEEDED
from benchmarks.evaluation.plans import Answer
from benchmarks.evaluation.tasks import Prepared
from benchmarks.evaluation.throttle import Place
from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest
from stic.runtime.native import find_library

# The modules that measure. Of stic they measure the engine and a package, both of which are in the keys by content;
# scores are computed by stic's own code.
_RUNS = ("benchmarks.evaluation.measure",)
_PEERS = ("benchmarks.evaluation.peers", "benchmarks.evaluation.peer_process")
_SWITCHES = ("benchmarks.evaluation.switch",)
_SCORES = ("benchmarks.evaluation.accuracy",)


@dataclass(frozen=True)
class Keys:
    """Keys of one evaluation's measurements: code, engine, weights, data, and how they are run. All are digests."""

    machine: Machine
    place: Place
    runs: str
    peers: str
    scores: str
    switching: str
    engine: str

    @classmethod
    def of(cls, machine: Machine, place: Place, runner: Path) -> Keys:
        """Those of this code and this engine."""
        runs, peers, switching = (code_of(*modules, known=("stic",)) for modules in (_RUNS, _PEERS, _SWITCHES))
        scores = code_of(*_SCORES)
        return cls(machine, place, runs, peers, scores, switching, digest(runner.read_bytes(), str(find_library())))

    def model_accuracy(self, prepared: Prepared) -> str:
        """Of the whole model in float32."""
        return digest(self.scores, prepared.key, prepared.dev_key, self.machine.tokens, self.machine.dev_rows)

    def accuracy(self, prepared: Prepared, answered: Answer) -> str:
        """Of a plan: its bits alone decide what it computes."""
        return digest(self.scores, self.engine, prepared.key, answered.bits, prepared.dev_key, self.machine.dev_rows)

    def peer_accuracy(self, prepared: Prepared, name: str) -> str:
        """Of another runtime."""
        code = (self.scores, self.peers, name, _versions(name))
        return digest(code, prepared.key, prepared.dev_key, self.machine.tokens, self.machine.dev_rows)

    def latency(self, prepared: Prepared, answered: Answer) -> str:
        """Of a plan on its storage; plans that are alike share it, and one that reads nothing runs alike on all."""
        assert answered.timeline is not None
        rate = answered.asked.bytes_per_s if answered.timeline.io_bytes else None
        return digest(self.runs, self.engine, prepared.key, answered.digest, rate, self._setting(paced=True))

    def peer_latency(self, prepared: Prepared, name: str, mode: str, bytes_per_s: int | None) -> str:
        """Of another runtime."""
        setting = self._setting(paced=False)
        return digest(self.peers, name, _versions(name), prepared.key, mode, bytes_per_s, setting)

    def switches(self, prepared: Prepared, answers: Sequence[Answer]) -> str:
        """Of switches between these plans, on their storage."""
        plans = [(answered.digest, answered.asked.bytes_per_s) for answered in answers]
        asked = (self.machine.tokens, self.machine.requests_per_s)
        return digest(self.switching, self.engine, prepared.key, plans, asked)

    def upgrades(self, prepared: Prepared) -> str:
        """Of what one more bit reads."""
        return digest(self.switching, self.engine, prepared.key, self.machine.tokens)

    def _setting(self, paced: bool) -> tuple[Any, ...]:
        machine = self.machine
        limits = (self.place.throttle(paced), self.place.memory)
        pacing = machine.requests_per_s if paced else None
        return machine.threads, machine.tokens, machine.runs, machine.block, limits, pacing


def _versions(name: str) -> tuple[str, ...]:
    return tuple(version(module) for module in NEEDED[name])
