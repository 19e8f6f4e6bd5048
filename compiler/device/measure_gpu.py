"""Measure what layers cost on a device's GPU: packages of random weights, wholly resident, with layers there.

Times are the GPU's own, from the trace. A layer's is from the end of what was before it to its own end, so that
starting its kernels counts; a hand-over's is from the end of a layer on one processor to the beginning of what the
other does with its output.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from stic.compiler.device.measure import (
    RESIDENT_RUNS,
    WARM_RUNS,
    fitted,
    layers_of,
    probe_materials,
    random_ids,
    shape_facts,
    write_probe,
)
from stic.compiler.device.runner import HostRunner, Runner
from stic.compiler.device.workload import Workload
from stic.compiler.package.assembly import Materials
from stic.compiler.package.kernels import GpuProgram, generate, generate_program
from stic.runtime.errors import EngineError
from stic.runtime.gpu_format import PROGRAM_FILE, GpuPrecision
from stic.runtime.trace import COMPUTE, GPU, Event, Trace
from stic.schedules.pack import interleave
from stic.targets.target import Target


def measure_gpu(
    target: Target, workload: Workload, folder: Path, storage: GpuPrecision = "float16", runner: Runner | None = None
) -> dict[str, Any]:
    """Measure a workload with kernels for the target's GPU, by default on this machine's.

    Returns "gpu" of a device profile (JSON of `planner.costs`). Packages are written in `folder`. Raises EngineError
    where layers do not run on a GPU there, saying why.
    """
    if target.gpu is None:
        raise ValueError(f"target {target.name} has no GPU to be measured")
    bits, materials = workload.bits, probe_materials(workload)
    slices = materials.store.most_slices
    runner = runner or HostRunner(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".stic-probe-") as name:
        kernels, text = Path(name) / "kernels.so", Path(name) / PROGRAM_FILE
        generate(materials.encoder_shape, target, kernels)
        program = generate_program(materials.encoder_shape, target.gpu.style, storage, interleave(target), text)
        alone, facts = _traces(runner, materials, target, kernels, program, Path(name) / "gpu", bits, every=1)
        mixed, _ = _traces(runner, materials, target, kernels, program, Path(name) / "mixed", bits, every=2)
    ends = [_ends(trace, len(bits) + 1) for trace in alone]
    shape = {
        **shape_facts(workload),
        **fitted({k: [end[k + 1] - end[k] for end in ends] for k in range(len(bits) + 1)}, bits, slices),
        "embed_us": statistics.median(end[0] for end in ends),
        "head_us": statistics.median(_spent(trace, "head") for trace in alone),
        "submit_us": 0.0,  # part of the embedding's time
    }
    return {**facts, "hand_over_us": statistics.mean(_hand_overs(mixed)), "shapes": [shape]}


def _traces(
    runner: Runner,
    materials: Materials,
    target: Target,
    kernels: Path,
    program: GpuProgram,
    output: Path,
    bits: tuple[int, ...],
    every: int,
) -> tuple[list[Trace], dict[str, Any]]:
    """Runs of the layers with every `every`-th on the GPU, the last one among them; and what ran them."""
    layers = layers_of(bits, materials.store.most_slices)
    last = len(layers) - 1
    placed = tuple(replace(x, place="cpu" if (last - k) % every else "gpu") for k, x in enumerate(layers))
    write_probe(materials, target, kernels, output, placed, True, program)
    ids = random_ids(materials.sizes.max_length, materials.sizes.hidden)
    with runner.session(output) as session:
        if not session.stats().gpu_layers:
            raise EngineError(f"nothing can be measured on a GPU of {runner.name}: layers run {session.device}")
        traces = []
        for _ in range(WARM_RUNS + RESIDENT_RUNS):
            session.run(ids)
            traces.append(session.trace())
        device, _, driver = session.device.partition(", driver ")
        facts = {"device": device, "driver": driver, "arithmetic": session.stats().gpu_arithmetic}
    return traces[WARM_RUNS:], facts


def _ends(trace: Trace, layers: int) -> list[float]:
    """When the embedding and then each layer ended on the GPU, in microseconds."""
    ends = [0.0] * (layers + 1)
    for event in trace:
        if event.track == GPU and (event.layer >= 0 or event.name == "embed"):
            ends[event.layer + 1] = max(ends[event.layer + 1], event.end_ns / 1e3)
    return ends


def _spent(trace: Trace, name: str) -> float:
    return sum(event.end_ns - event.begin_ns for event in trace if event.name == name) / 1e3


def _hand_overs(traces: list[Trace]) -> list[float]:
    """Microseconds from CPU to GPU and from GPU to CPU: the median over all layers and runs, each."""
    gaps: dict[int, list[float]] = {COMPUTE: [], GPU: []}
    for trace in traces:
        before: Event | None = None
        for event in sorted((e for e in trace if e.track < 0 and e.name not in ("stall", "hand-over")), key=_began):
            if before is not None and before.track != event.track:
                gaps[event.track].append(max(0.0, event.begin_ns - before.end_ns) / 1e3)
            before = event
    return [statistics.median(gap) for gap in gaps.values()]


def _began(event: Event) -> int:
    return event.begin_ns
