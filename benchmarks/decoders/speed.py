"""Prefill and next token, everything resident, against llama.cpp; next token against a plain sum of the same bytes.

Contenders of one model and one number of threads take turns, each in a process of its own; ratios are medians over
rounds. The sum (benchmarks/kernels) reads memory as fast as this machine can, on as many threads.
"""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoders import packages, shape, source
from benchmarks.decoders.llama import quantized
from benchmarks.decoders.place import Place
from benchmarks.kernels.driver import Driver, Memory, build_driver, loops_for
from benchmarks.kernels.turns import Times, Turn, interleave, local
from benchmarks.kernels.worker import AbsentError, Worker
from stic.runtime.package import Package
from stic.targets import target as targets

Row = dict[str, Any]
STIC, SUM = "stic", "plain sum"
_CONTENDERS = "benchmarks.decoders.contenders"


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """Every model on every number of threads."""
    absent: dict[str, str] = {}
    rows = []
    for name, case in settings["models"].items():
        package, files = _files(place, name, case, settings)
        for threads in settings["threads"]:
            rows += _rows(place, name, case, threads, package, files, absent)
    for peer, reason in absent.items():
        place.say(f"left out: {peer} ({reason})")
    return {"rows": rows, "absent": absent}


def _files(place: Place, name: str, case: Row, settings: Row) -> tuple[Path, dict[str, tuple[Path, bool]]]:
    """The package, and llama.cpp's files with whether they are repacked."""
    threads, folder = max(settings["threads"]), place.folder / "llama"
    if "sizes" in case:
        sizes = shape.Sizes(name, **case["sizes"])
        package, every = shape.package(sizes, threads, place.packages), {"Q4_0": shape.gguf(sizes, folder)}
    else:
        package = packages.uniform(place.packages, shape.BITS, case["context"])
        every = {form: quantized(source.gguf(), form, folder, threads) for form in case["llama"]}
    ways = {"": False, " repacked": True}
    return package, {
        f"llama.cpp {form}{way}": (path, repack) for form, path in every.items() for way, repack in ways.items()
    }


def _rows(
    place: Place, name: str, case: Row, threads: int, package: Path, files: dict[str, tuple[Path, bool]],
    absent: dict[str, str],
) -> list[Row]:  # fmt: skip
    opened = Package.open(package)
    given = {"vocabulary": int(opened.model["vocabulary"]), "prompt": case["prompt"], "new": case["new"]}
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="stic-bench-") as folder:
        workers = {STIC: stack.enter_context(Worker(_CONTENDERS, "Stic", threads, path=str(package), **given))}
        for peer, (path, repack) in files.items():
            try:
                worker = Worker(_CONTENDERS, "LlamaCpp", threads, path=str(path), repack=repack, **given)
            except AbsentError as error:
                absent[peer] = str(error)
            else:
                workers[peer] = stack.enter_context(worker)
        found = {}
        for what in ("prefill", "next"):
            place.say(f"speed of {name}, threads: {threads}: {what}")
            turns: dict[str, Turn] = {peer: worker.turn(what) for peer, worker in workers.items()}
            if what == "next":
                turns[SUM] = _sum(Path(folder), threads, case["sum_bytes"])
            found[what] = interleave(turns, case[what], lambda: None)
    bytes_a_token = int(opened.records["bytes"].sum())
    rows = []
    for peer in workers:
        prefill, following = found["prefill"][peer], found["next"][peer]
        row: Row = {"model": name, "threads": threads, "contender": peer}
        row["prefill_us"], row["prefill_tokens_per_s"] = prefill.to_json(), case["prompt"] / prefill.median * 1e6
        row["next_us"], row["next_tokens_per_s"] = following.to_json(), case["new"] / following.median * 1e6
        rows.append(row)
    best = found["next"][SUM]
    rows[0] |= {
        "bytes_a_token": bytes_a_token,
        "sum_gb_s": case["sum_bytes"] / best.median / 1e3,
        "share_of_sum": bytes_a_token * case["new"] / case["sum_bytes"] / found["next"][STIC].ratio(best),
        "times_faster": {what: _over(found[what]) for what in found},
    }
    return rows


def _over(times: dict[str, Times]) -> dict[str, float]:
    """How many times faster stic is than each peer."""
    return {peer: other.ratio(times[STIC]) for peer, other in times.items() if peer not in (STIC, SUM)}


def _sum(folder: Path, threads: int, size: int) -> Turn:
    """A turn of the sum of so many bytes."""
    target = targets.load("host")
    library = build_driver(target, folder)
    memory = Memory(library, size)
    memory.put(np.random.default_rng(0).integers(0, 256, size, np.uint8))
    return local(partial(Driver(library, threads).sum, loops_for(target)[2], memory))
