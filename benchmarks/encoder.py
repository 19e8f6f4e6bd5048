"""A real encoder end to end: latency and memory against onnxruntime, and prediction under throttled storage.

    python benchmarks/encoder.py latency   MODEL.onnx PACKAGE [--threads 2] [--tokens 128] [--json FILE]
    python benchmarks/encoder.py memory    MODEL.onnx PACKAGE [--json FILE]
    python benchmarks/encoder.py throttled MODEL.onnx [--bytes-per-s 100000000] [--json FILE]

`latency` interleaves the two runtimes in one process group, run by run, and reports medians and the median of the
paired ratios. `memory` starts each runtime in a process of its own and reads its peak resident set (VmHWM).
`throttled` (root, cgroup v1) compiles for storage of this bandwidth with a preload buffer of 1 MiB and runs 50 times,
paced by the engine, limited by the kernel, and both: predicted against measured, deadlines met.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RUNS = 50
PAUSE_S = 0.1  # between runs: the threads of either runtime spin for a while, on the core that the other one needs


def _ids(tokens: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1000, vocabulary, tokens).astype(np.int64)


def _onnx_inputs(session: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {node.name: values[node.name][None] for node in session.get_inputs()}


def _onnx_session(model: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def latency(model: Path, package: Path, threads: int, tokens: int) -> dict[str, Any]:
    """Interleave runs of both runtimes on the same tokens and threads; microseconds."""
    from stic.runtime.session import Session

    peer = _onnx_session(model, threads)
    with Session(package, threads=threads) as session:
        ids = _ids(tokens, 30000)
        inputs = _onnx_inputs(peer, ids)
        times: dict[str, list[float]] = {"stic": [], "onnxruntime fp32": []}
        calls = {"stic": lambda: session.run(ids), "onnxruntime fp32": lambda: peer.run(None, inputs)}
        for number in range(RUNS + 5):
            for name, call in calls.items():
                time.sleep(PAUSE_S)
                start = time.perf_counter()
                call()
                if number >= 5:
                    times[name].append(1e6 * (time.perf_counter() - start))
        stall_us = session.stats().stall_us
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    return {
        "tokens": tokens,
        "threads": threads,
        "median_us": {name: statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "stall_us": stall_us,
    }


_PEER = """
import sys, numpy as np, onnxruntime
s = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
ids = np.random.default_rng(0).integers(1000, 30000, 128)
v = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
s.run(None, {n.name: v[n.name][None] for n in s.get_inputs()})
print(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""


def memory(model: Path, package: Path) -> dict[str, Any]:
    """Peak resident set of stic_run and of onnxruntime on 128 tokens, bytes."""
    peer = subprocess.run([sys.executable, "-c", _PEER, str(model)], capture_output=True, text=True, check=True)
    bench = subprocess.run(
        [sys.executable, "-m", "stic.compiler.cli", "bench", str(package), "--runs", "5", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = json.loads(bench.stdout)
    peer_bytes = 1024 * int(peer.stdout.split()[-1])
    return {
        "stic_rss_bytes": ours["rss_bytes"],
        "stic_claimed_bytes": ours["claimed_bytes"],
        "onnxruntime_rss_bytes": peer_bytes,
        "ratio": ours["rss_bytes"] / peer_bytes,
    }


class _Throttle:
    """A cgroup v1 read limit on the block device that holds a folder, with this process in it."""

    def __init__(self, folder: Path, bytes_per_s: int) -> None:
        device = subprocess.run(
            ["findmnt", "-n", "-o", "MAJ:MIN", "-T", str(folder)], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        if device.startswith("0:"):
            raise SystemExit(f"{folder} is not on a block device ({device}): nothing to throttle")
        whole = Path(f"/sys/dev/block/{device}").resolve()
        if (whole / "partition").exists():
            device = (whole.parent / "dev").read_text().strip()
        self.group = Path(f"/sys/fs/cgroup/blkio/stic-bench-{os.getpid()}")
        try:
            self.group.mkdir()
            (self.group / "blkio.throttle.read_bps_device").write_text(f"{device} {bytes_per_s}\n")
            (self.group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            raise SystemExit(f"cannot throttle here (root and cgroup v1 are needed): {error}") from error

    def __enter__(self) -> _Throttle:
        return self

    def __exit__(self, *_: object) -> None:
        Path("/sys/fs/cgroup/blkio/cgroup.procs").write_text(str(os.getpid()))
        self.group.rmdir()


def throttled(model: Path, bytes_per_s: int, deadline_us: int | None, folder: Path) -> dict[str, Any]:
    """Compile for storage of this bandwidth and run on it, limited by the engine, by the kernel, and by both.

    The kernel's limiter hands out a tenth of a second's bytes at once, more than a run reads, so that runs alternate
    between nearly free and a tenth of a second late; the engine's limiter paces every request.
    """
    from stic.compiler.options import CompileOptions
    from stic.compiler.pipeline import compile_model
    from stic.compiler.plan import Budget

    with tempfile.TemporaryDirectory(dir=folder) as work:
        package = Path(work) / "throttled.stic"
        budget = Budget(deadline_us, None, 1 << 20)
        result = compile_model(CompileOptions(model, "host", budget, package, storage_bytes_per_s=bytes_per_s))
        assert result.timeline is not None and result.plan is not None
        predicted = result.timeline.latency_us
        runs = {"engine": _times(package, bytes_per_s)}
        with _Throttle(folder, bytes_per_s):
            runs["kernel"] = _times(package, None)
            runs["both"] = _times(package, bytes_per_s)
    return {
        "bytes_per_s": bytes_per_s,
        "deadline_us": deadline_us,
        "predicted_us": predicted,
        "io_bytes": result.timeline.io_bytes,
        "mean_bits": result.plan.mean_bits,
        "limited_by": {
            name: {
                "median_us": statistics.median(times),
                "mean_us": statistics.mean(times),
                "p95_us": sorted(times)[int(0.95 * len(times))],
                "error_of_median": statistics.median(times) / predicted - 1,
                "deadline_met": None if deadline_us is None else sum(t <= deadline_us for t in times) / len(times),
            }
            for name, times in runs.items()
        },
    }


def _times(package: Path, bytes_per_s: int | None) -> list[float]:
    from stic.runtime.session import Session

    times = []
    with Session(package, io_bytes_per_s=bytes_per_s) as session:
        if not session.stats().direct:
            raise SystemExit(f"{package} is on a file system without O_DIRECT: nothing would be throttled")
        ids = _ids(128, 30000)
        for _ in range(RUNS):
            start = time.perf_counter()
            session.run(ids)
            times.append(1e6 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["latency", "memory", "throttled"])
    parser.add_argument("model", type=Path)
    parser.add_argument("package", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--bytes-per-s", type=int, default=100_000_000)
    parser.add_argument("--deadline-us", type=int)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the throttled package lies")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.what != "throttled" and chosen.package is None:
        parser.error(f"{chosen.what} needs a PACKAGE")
    if chosen.what == "latency":
        result = latency(chosen.model, chosen.package, chosen.threads, chosen.tokens)
    elif chosen.what == "memory":
        result = memory(chosen.model, chosen.package)
    else:
        result = throttled(chosen.model, chosen.bytes_per_s, chosen.deadline_us, chosen.folder)
    facts = {"machine": platform.processor() or platform.machine(), "command": sys.argv, "result": result}
    facts["versions"] = {name: version(name) for name in ("stic", "apache-tvm", "onnxruntime", "numpy")}
    text = json.dumps(facts, indent=1)
    if chosen.json is not None:
        chosen.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
