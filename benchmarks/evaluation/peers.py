"""Other runtimes on the same tasks: what they load, and what they cost, resident and from a cold start."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evaluation.measure import PATIENCE_S, Setting, ended, watch
from benchmarks.evaluation.quiet import repeated
from benchmarks.evaluation.tasks import ROOT
from benchmarks.evaluation.throttle import MemoryGroup, counted_memory, forget, slow_reads, started
from benchmarks.kernels.worker import THREAD_VARIABLES
from stic.runtime.errors import EngineError
from stic.runtime.files import whole_folder

if TYPE_CHECKING:
    from benchmarks.evaluation.tasks import Prepared

COLD_STARTS = 3
ACCURACY_S = 1800.0  # how long a runtime may take over an evaluation file
CALIBRATION_EXAMPLES = 300  # of post-training quantization, NNCF's default
NEEDED = {  # modules
    "onnxruntime fp32": ("onnxruntime",),
    "onnxruntime int8": ("onnxruntime",),
    "openvino int8": ("openvino", "nncf"),
}


def absent(name: str) -> str | None:
    """Why a runtime cannot be measured here; None: it can."""
    missing = [module for module in NEEDED[name] if importlib.util.find_spec(module) is None]
    return f"{' and '.join(missing)} not installed: pip install -e '.[bench]'" if missing else None


def model_path(name: str, prepared: Prepared, folder: Path) -> Path:
    """Where the runtime's model is, or will be."""
    made = folder / "models" / prepared.name
    return {
        "onnxruntime fp32": prepared.onnx,
        "onnxruntime int8": made / "onnxruntime-int8" / "model.onnx",
        "openvino int8": made / "openvino-int8" / "model.xml",
    }[name]


def quantize(name: str, onnx: Path, out: Path, calibration: Path | None, labels: tuple[str, ...]) -> dict[str, Any]:
    """Make the runtime's own int8 model, all or nothing; for a worker process."""
    from benchmarks.kernels.models import dynamic, post_training
    from stic.compiler.importance.examples import built_in_examples, read_examples

    try:
        with whole_folder(out.parent) as staging:
            if name == "onnxruntime int8":
                dynamic(onnx, staging / out.name)
            else:
                found = built_in_examples()
                if calibration is not None:
                    found = read_examples(calibration, labels=labels or None)
                post_training(onnx, staging / out.name, found.pick(range(min(CALIBRATION_EXAMPLES, len(found)))))
    except Exception as error:  # another runtime's own
        raise EngineError(f"{type(error).__name__}: {error}") from error
    return {}


def accuracy(
    name: str, onnx: Path, model: Path, dev: Path, labels: tuple[str, ...], tokens: int, rows: int | None
) -> dict[str, Any]:
    """Score a runtime's answers on an evaluation file, on one thread (see peer_process); for a worker process."""
    specification = {
        "kind": name, "model": str(model), "threads": 1, "tokens": tokens, "dev": str(dev), "labels": list(labels),
        "rows": rows, "tokenizer": str(onnx.parent / "tokenizer.json"),
    }  # fmt: skip
    return _run(specification, (), ACCURACY_S)


def _run(
    specification: dict[str, Any], groups: tuple[Path | None, ...], patience_s: float = PATIENCE_S
) -> dict[str, Any]:
    with _process(specification, groups) as process:
        return ended(process, "this machine has", patience_s)


def _process(
    specification: dict[str, Any], groups: tuple[Path | None, ...]
) -> AbstractContextManager[subprocess.Popen[str]]:
    """A peer's process, in these groups."""
    threads = str(specification["threads"])
    environment = {**dict.fromkeys(THREAD_VARIABLES, threads), "PYTHONPATH": str(ROOT)}
    return started(
        [sys.executable, "-m", "benchmarks.evaluation.peer_process", json.dumps(specification)], groups, environment
    )


def _latency_specification(name: str, model: Path, setting: Setting, runs: int, group: Path | None) -> dict[str, Any]:
    return {
        "kind": name, "model": str(model), "threads": setting.threads, "ids": list(setting.ids), "runs": runs,
        "group": None if group is None else str(group),
    }  # fmt: skip


def resident(name: str, model: Path, setting: Setting) -> dict[str, Any]:
    """`latency` and `memory` of a row: the model loaded once, then run again and again."""

    def run() -> tuple[dict[str, Any], int | None]:
        with counted_memory(setting.place) as memory:
            specification = _latency_specification(name, model, setting, setting.runs, None)
            return _run(specification, _group(memory)), None if memory is None else memory.peak_bytes

    ((found, peak),) = repeated(run, 1)
    return {"latency": _latency(found["times_us"], None), "memory": _memory([found], [peak])}


def cold(name: str, model: Path, setting: Setting, bytes_per_s: int) -> dict[str, Any]:
    """The same of processes that load the model from storage of a bandwidth, its files not in the page cache, and run
    it once; importing the runtime is not part of the time."""

    def start() -> tuple[dict[str, Any], int | None]:
        for file in {model, model.with_suffix(".bin")}:
            if file.exists():
                forget(file)
        with slow_reads(setting.place, bytes_per_s) as slow, counted_memory(setting.place) as memory:
            specification = _latency_specification(name, model, setting, 0, slow)
            return _run(specification, _group(memory)), None if memory is None else memory.peak_bytes

    found, peaks = map(list, zip(*repeated(start, COLD_STARTS), strict=True))
    throttle = setting.place.throttle(paced=False)
    return {"latency": _latency([one["cold_us"] for one in found], throttle), "memory": _memory(found, peaks)}


def _latency(times: list[float], throttle: str | None) -> dict[str, Any]:
    return {
        "times_us": times,
        "median_us": statistics.median(times),
        "p95_us": sorted(times)[(len(times) * 95 + 99) // 100 - 1],
        "throttle": throttle,
        "direct": False,
    }


def _memory(found: list[dict[str, Any]], peaks: list[int | None]) -> dict[str, Any]:
    return {
        "rss_bytes": max(one["rss_bytes"] for one in found),
        "imported_bytes": max(one["imported_bytes"] for one in found),  # of them: the interpreter and the runtime
        "cgroup_peak_bytes": max((peak for peak in peaks if peak is not None), default=None),
        "cgroup_limit_bytes": None,
    }


def _group(memory: MemoryGroup | None) -> tuple[Path | None]:
    return (None if memory is None else memory.path,)


def memory_curve(name: str, model: Path, setting: Setting, runs: int) -> list[list[int]]:
    """[microseconds since the process began, bytes of its group] while it loads the model and runs a few times."""
    with counted_memory(setting.place) as memory:
        if memory is None:
            return []
        specification = _latency_specification(name, model, setting, runs, None)
        with _process(specification, (memory.path,)) as process:
            curve = watch(process, memory)
            ended(process, "this machine has")
        return curve
