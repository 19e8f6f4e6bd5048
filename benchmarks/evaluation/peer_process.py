"""Another runtime in a process of its own: one specification (JSON) in, one JSON object out.

    python -m benchmarks.evaluation.peer_process SPECIFICATION

A latency specification {"kind", "model", "threads", "ids", "runs", "group"} imports the runtime, enters the control
group named, opens the model and runs the ids, all of which is timed as the cold start; then `runs` more. An accuracy
specification {"kind", "model", "threads", "tokens", "dev", "labels", "rows",
"tokenizer"} answers the evaluation file instead, input
by input, as an application would.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

PEERS = {  # class in benchmarks.kernels.peers, the module it imports
    "onnxruntime fp32": ("OnnxRuntime", "onnxruntime"),
    "onnxruntime int8": ("OnnxRuntime", "onnxruntime"),
    "openvino int8": ("OpenVino", "openvino"),
}
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Do what the specification says."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody waits for answers once the parent has ended
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    specification = json.loads(sys.argv[1])
    work = _accuracy if "dev" in specification else _latency
    try:
        result = work(**specification)
    except Exception as error:  # another runtime's own; it becomes a sentence in the results
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    answers.write(json.dumps(result))
    answers.flush()


def _latency(kind: str, model: str, threads: int, ids: list[int], runs: int, group: str | None) -> dict[str, Any]:
    import numpy as np

    from benchmarks.kernels import peers

    importlib.import_module(PEERS[kind][1])
    imported_bytes = _status_bytes("VmRSS")
    tokens = np.asarray(ids, np.int64)
    if group is not None:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    began = time.perf_counter()
    encoder = getattr(peers, PEERS[kind][0])(model, threads, {})
    call = encoder.prepare(tokens)
    call()
    cold_us = 1e6 * (time.perf_counter() - began)
    times = []
    for number in range(runs + 1):
        start = time.perf_counter()
        call()
        if number:  # the first one still wakes threads and grows buffers
            times.append(1e6 * (time.perf_counter() - start))
    return {
        "cold_us": cold_us,
        "times_us": times,
        "rss_bytes": _status_bytes("VmHWM"),
        "imported_bytes": imported_bytes,
    }


def _accuracy(
    kind: str, model: str, threads: int, tokens: int, dev: str, labels: list[str], rows: int | None, tokenizer: str
) -> dict[str, Any]:
    import numpy as np

    from benchmarks.evaluation.accuracy import dev_examples, scored
    from benchmarks.kernels import peers
    from stic.compiler.importance.examples import encode

    examples = dev_examples(Path(dev), labels, rows)
    run = getattr(peers, PEERS[kind][0])(model, threads, {}).any_length()
    outputs: list[Any] = [None] * len(examples.sequences)
    for batch in encode(examples, Path(tokenizer), tokens, batch_tokens=1):
        for row, ids, types, mask in zip(batch.rows, batch.ids, batch.types, batch.mask, strict=True):
            outputs[row] = np.asarray(run(ids[mask].astype(np.int64), types[mask].astype(np.int64))).reshape(-1)
    return scored(np.stack(outputs), examples)


def _status_bytes(name: str) -> int:
    """A size of this process, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


if __name__ == "__main__":
    main()
