"""Measure on a device what the planner needs to know: run packages of random weights through the engine there.

Compute times come from a package that is wholly resident, one layer for each bitwidth and one of half the slices;
storage times from the very reads of a package that streams everything, after `stic.targets.storage` has measured bare
requests. What the engine adds (checksums, hand-over between threads) is thus in the numbers.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.cache.arrays import Note
from stic.compiler.cache.closure import code_of
from stic.compiler.device.disturbance import Watch, disturbed
from stic.compiler.device.runner import HostRunner, Runner, Tick
from stic.compiler.device.synthetic import VOCABULARY, synthetic
from stic.compiler.device.workload import Workload
from stic.compiler.package.assembly import Materials, Planned, assemble_package, collect
from stic.compiler.package.kernels import GpuProgram, generate
from stic.compiler.package.writer import write_package
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.runtime.files import write_text
from stic.runtime.format import BLOCK
from stic.runtime.layout import row_stride
from stic.runtime.native import cache_dir, find_library
from stic.runtime.trace import Trace
from stic.targets.storage import fit
from stic.targets.target import Target

WARM_RUNS, RESIDENT_RUNS, STREAMED_RUNS = 3, 25, 10
PARTIAL_BITS = 4  # the layer with half the slices
MIN_STREAMED_BYTES = 64 << 20  # over all streamed runs: less is over before a throttled device settles


def measure(
    target: Target,
    workload: Workload,
    folder: Path,
    tick: Tick = lambda done, total: None,
    survey: tuple[int, ...] = (),
    runner: Runner | None = None,
) -> dict[str, Any]:
    """Measure a workload on `runner`'s device; returns a device profile (JSON of `planner.costs`).

    Packages are written in `folder`; without a runner they are run here, and read from there. `survey` names further
    numbers of lanes to measure bare reads with: for people, since no plan needs them.
    """
    steps = 4
    where = runner or HostRunner(folder)
    tick(0, steps)
    bits, lanes = workload.bits, workload.lanes
    materials = probe_materials(workload)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".stic-probe-") as name:
        kernels = Path(name) / "kernels.so"
        generate(materials.kernel_shape, target, kernels)
        tick(1, steps)
        compute = _compute(where, materials, target, kernels, Path(name) / "resident", bits)
        tick(2, steps)
        storage = where.storage(sorted({lanes, *survey}))
        tick(3, steps)
        io = _storage(where, materials, target, kernels, Path(name) / "streamed", fit(storage["points"], lanes))
    tick(4, steps)
    return {
        "format": 1,
        "device": f"{where.name}, {target.description}",
        "io": {**storage, "lanes": lanes, **io},
        "compute": {"threads": workload.threads, "shapes": [{**shape_facts(workload), **compute}]},
    }


def probe_materials(workload: Workload) -> Materials:
    """Random weights for as many layers as `layers_of` measures."""
    geometry = replace(workload.geometry, layers=len(workload.bits) + 1)
    quantized = synthetic(geometry, workload.activation, workload.max_length, epsilon=workload.epsilon, alike=True)
    return collect(quantized, workload.full_bits, workload.max_length, workload.threads, workload.lanes)


def shape_facts(workload: Workload) -> dict[str, Any]:
    """What a device profile says of the shape that was measured."""
    names = ("hidden", "heads_per_slice", "head_dim", "neurons_per_slice", "slices")
    return {**{name: getattr(workload.geometry, name) for name in names}, "rows": workload.max_length}


def cached(module: str, key: tuple[Any, ...], work: Callable[[], dict[str, Any]], note: Note) -> dict[str, Any]:
    """Return what `work` of `module` measured under `key` on this machine, by this engine and this code, else measure.

    `key` holds the workload and the keys of the measured kernels. What is not empty is kept, unless the machine was
    busy: then `note` is told, and the next call measures again.
    """
    engine = find_library()  # its path names its content
    code = code_of(module, known=(generate.__module__, Workload.__module__), alone=(__name__,))
    name = hashlib.sha256(repr((platform.node(), engine, code, key)).encode()).hexdigest()[:24]
    path = cache_dir() / "profiles" / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError):
        watch = Watch()
        profile = work()
    if not profile:
        return profile
    if why := disturbed(profile, watch.others()):
        note(f"while this machine was measured {why}: it may be faster than that; the next plan measures again")
        return profile
    write_text(path, json.dumps(profile, indent=1))
    return profile


def write_probe(
    materials: Materials,
    target: Target,
    kernels: Path,
    output: Path,
    layers: tuple[LayerPlan, ...],
    resident: bool,
    program: GpuProgram | None = None,
) -> None:
    """Write a package that runs `layers` of random weights; `resident`: the word table stays in memory."""
    proof = Proof("heuristic", 0.0, None, 0.0)
    plan = Plan("probe", layers, resident, len(layers), True, Budget(), 0.0, proof)
    write_package(assemble_package(materials, (Planned(plan),), target, kernels, program), output)


def layers_of(bits: tuple[int, ...], slices: int) -> tuple[LayerPlan, ...]:
    """What compute is measured with: a whole layer at each bitwidth, then one of half the slices, all resident."""
    widths = [(b, slices) for b in bits] + [(PARTIAL_BITS, max(1, slices // 2))]
    return tuple(LayerPlan((b,) * n, (b,) * n) for b, n in widths)


def fitted(by_layer: Mapping[int, Sequence[float]], bits: tuple[int, ...], slices: int) -> dict[str, Any]:
    """Times of layers and slices from runs of `layers_of`; `by_layer` holds microseconds of each layer by run."""
    middle = [statistics.median(by_layer[layer]) for layer in range(len(bits) + 1)]
    whole, part, half = middle[bits.index(PARTIAL_BITS)], middle[-1], max(1, slices // 2)
    slice_us = max(0.0, (whole - part) / (slices - half)) if slices > half else whole / slices
    layer_us = max(0.0, whole - slices * slice_us)
    low, _, high = statistics.quantiles(by_layer[bits.index(PARTIAL_BITS)], n=4)
    return {
        "layer_us": layer_us,
        "slice_us": {str(b): max(0.0, m - layer_us) / slices for b, m in zip(bits, middle, strict=False)},
        "spread": (high - low) / whole,
    }


def random_ids(rows: int, hidden: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens whose embedding rows lie in blocks of their own, in no order: what a plan counts on at worst."""
    apart = max(1, BLOCK // row_stride(hidden))
    count = VOCABULARY // apart
    return np.random.default_rng(0).permutation(max(count, rows))[:rows] % count * apart


def _layer_us(trace: Trace) -> dict[int, float]:
    """Microseconds of compute by layer (-1: outside the layers), stalls excluded."""
    spans: dict[int, float] = {}
    for event in trace:
        if event.track == -1 and event.name != "stall":
            spans[event.layer] = spans.get(event.layer, 0.0) + (event.end_ns - event.begin_ns) / 1e3
    return spans


def _compute(
    runner: Runner, materials: Materials, target: Target, kernels: Path, output: Path, bits: tuple[int, ...]
) -> dict[str, Any]:
    """Times of layers, slices, embedding and head, everything resident."""
    slices, rows = materials.store.most_slices, materials.sizes.max_length
    layers = layers_of(bits, slices)
    write_probe(materials, target, kernels, output, layers, True)
    ids = random_ids(rows, materials.sizes.hidden)
    by_layer: dict[int, list[float]] = {}
    embed: list[float] = []
    head: list[float] = []
    rest: list[float] = []
    with runner.session(output) as session:
        for number in range(WARM_RUNS + RESIDENT_RUNS):
            session.run(ids)
            if number < WARM_RUNS:
                continue
            trace, stats = session.trace(), session.stats()
            spans = _layer_us(trace)
            for layer in range(len(layers)):
                by_layer.setdefault(layer, []).append(spans[layer])
            for name, times in (("embed", embed), ("head", head)):
                times.append(sum(e.end_ns - e.begin_ns for e in trace if e.name == name) / 1e3)
            rest.append(max(0.0, stats.run_us - sum(spans.values())))
    return {
        **fitted(by_layer, bits, slices),
        "embed_us": statistics.median(embed),
        "head_us": statistics.median(head),
        "submit_us": statistics.median(rest),
    }


def _storage(
    runner: Runner, materials: Materials, target: Target, kernels: Path, output: Path, bare: dict[str, float]
) -> dict[str, float]:
    """Bandwidth and row time as the engine's own lanes reach them; `bare` gives the cost of a request."""
    slices, rows = materials.store.most_slices, materials.sizes.max_length
    layers = tuple(LayerPlan((8,) * slices, (0,) * slices) for _ in range(materials.store.blocks))
    write_probe(materials, target, kernels, output, layers, False)
    ids, per_byte, per_row = random_ids(rows, materials.sizes.hidden), [], []
    with runner.session(output) as session:
        session.run(ids)
        runs = max(STREAMED_RUNS, MIN_STREAMED_BYTES // max(1, session.stats().io_bytes))
        for _ in range(runs):
            session.run(ids)
            trace = session.trace()
            blocks = [e for e in trace if e.name == "rows"]
            reads = [e for e in trace if e.name in ("read", "check")]
            start = max((e.end_ns for e in blocks), default=0)
            took_us = (max(e.end_ns for e in reads) - start) / 1e3
            requests = sum(e.name == "read" for e in reads)
            size = sum(e.bytes for e in reads if e.name == "read")
            per_byte.append(max(took_us - requests * bare["request_us"], 0.1 * took_us) / size)
            if blocks:
                per_row.append((start - min(e.begin_ns for e in blocks)) / 1e3 / len(np.unique(ids)))
    row_us = statistics.median(per_row) if per_row else bare["row_us"]
    return {"request_us": bare["request_us"], "bytes_per_s": 1e6 / statistics.median(per_byte), "row_us": row_us}
