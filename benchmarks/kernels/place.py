"""Where a part of the benchmark runs: target, driver, kernels, a folder for what it makes, and its progress."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stic.targets.target import Target

_PACKAGES = ("stic", "apache-tvm", "numpy", "onnxruntime", "openvino", "nncf", "llama-cpp-python")


@dataclass(frozen=True)
class Place:
    """Values that every part needs."""

    target: Target
    library: ctypes.CDLL  # the driver
    kernels: Path  # kernels.so of a model with BERT-base's constants
    folder: Path
    model: Path | None  # the encoder, ONNX with tokenizer.json beside it
    console: Console  # for progress

    @contextmanager
    def progress(self, title: str, turns: int) -> Iterator[Callable[[], None]]:
        """A bar that advances by one with every call of what this yields."""
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(title, total=turns)
            yield lambda: bars.advance(task)


def machine(target: Target) -> dict[str, Any]:
    """What was measured on."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "features": list(target.features),
        "target": target.description,
        "cache_bytes": {name: int(fact.value) for name, fact in target.cache.items()},
        "ram_bytes": int(target.memory["ram_bytes"].value),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str | None]:
    """Of everything that was compared; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def stolen_share(before: list[int], after: list[int]) -> float:
    """Share of the machine's time between two `cpu_ticks` that the hypervisor gave to others."""
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return spent[7] / max(1, sum(spent))


def cpu_ticks() -> list[int]:
    """First line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    return [int(value) for value in _lines("/proc/stat")[0].split()[1:9]]


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()
