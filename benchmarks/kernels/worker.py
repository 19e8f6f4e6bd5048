"""A contender in a process of its own, stopped between its turns.

Runtimes spin for a while after a run, on cores that the next contender needs; a stopped process cannot. The parent
holds a `Worker`; the process runs `serve`, which speaks JSON, a line a message, on stdin and stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from benchmarks.kernels.turns import Turn

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PR_SET_PDEATHSIG = 1


class AbsentError(Exception):
    """A contender that cannot run here; the sentence says why."""


class Contender(Protocol):
    """What a worker runs: made once from a specification, then called by case."""

    def facts(self) -> dict[str, Any]:
        """What the report should know, by case; answers for comparison among them."""

    def call(self, case: str) -> Callable[[], object]:
        """Return what runs a case once."""


class Worker:
    """The parent's side. `module` and `kind` name a Contender class, `spec` its arguments (JSON)."""

    def __init__(self, module: str, kind: str, threads: int, **spec: Any) -> None:
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
        command = [sys.executable, "-m", "benchmarks.kernels.worker", module, kind]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._ask(spec | {"threads": threads})
        self._process.send_signal(signal.SIGSTOP)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "ended without an answer"}
        if "error" in answer:
            self.close()
            raise AbsentError(answer["error"])
        return answer

    def turn(self, case: str) -> Turn:
        """Turns of one of the contender's cases."""

        def turn(warm: int, timed: int) -> list[float]:
            self._process.send_signal(signal.SIGCONT)
            answer = self._ask({"case": case, "warm": warm, "timed": timed})
            self._process.send_signal(signal.SIGSTOP)
            return answer["us"]

        return turn

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def serve(module: str, kind: str) -> None:
    """Build the contender that the first line specifies, then answer requests for turns until stdin ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a stopped process would outlive a killed parent
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is not an answer

        def answer(message: dict[str, Any]) -> None:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        try:
            contender = getattr(importlib.import_module(module), kind)(**json.loads(sys.stdin.readline()))
            answer(contender.facts())
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
            return
        for line in sys.stdin:
            request = json.loads(line)
            call = contender.call(request["case"])
            for _ in range(request["warm"]):
                call()
            times = []
            for _ in range(request["timed"]):
                start = time.perf_counter()
                call()
                times.append(1e6 * (time.perf_counter() - start))
            answer({"us": times})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(sys.argv[1], sys.argv[2])
