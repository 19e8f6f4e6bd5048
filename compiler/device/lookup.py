"""What reading and computing cost on a target: measured, looked up or estimated, and the GPU's share beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stic.compiler.cache.arrays import Note
from stic.compiler.device.measure import cached, measure
from stic.compiler.device.measure_gpu import measure_gpu
from stic.compiler.device.runner import Tick
from stic.compiler.device.workload import Workload
from stic.compiler.options import TargetOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.package.kernels import kernels_key, program_key
from stic.compiler.planner.costs import Costs, costs, estimate, load, parse
from stic.compiler.planner.gpu_costs import with_gpu
from stic.runtime.errors import EngineError
from stic.runtime.gpu_format import GpuPrecision
from stic.schedules.pack import interleave
from stic.targets.target import Target


def device_costs(
    target: Target,
    materials: Materials,
    options: TargetOptions,
    bits: tuple[int, ...],
    folder: Path,
    tick: Tick,
    note: Note,
) -> Costs:
    """Times from the profile that was given, from this machine, or from the target file's facts, in this order.

    `folder` lies on the storage that this machine is measured with. Where the target has a GPU, its times are among
    them: measured with the rest, or else estimated.
    """
    sizes = materials.sizes
    shape = (sizes.shapes[0], sizes.max_length, sizes.threads)
    if options.profile is not None:
        found = costs(load(options.profile), *shape, bits)
    elif target.name != "host":
        found = estimate(target, *shape, sizes.row_lanes, bits)
    else:
        found = costs(parse(_measured_here(target, materials, options.gpu_precision, folder, tick, note)), *shape, bits)
    return with_gpu(found, target.gpu, sizes.shapes[0], sizes.max_length, bits)


def _measured_here(
    target: Target, materials: Materials, gpu_precision: GpuPrecision, folder: Path, tick: Tick, note: Note
) -> dict[str, Any]:
    """A device profile of this machine for the model's layers, kept for the next time."""
    folder.mkdir(parents=True, exist_ok=True)
    model, sizes = materials.encoder.sharded.model, materials.sizes
    workload = Workload(
        materials.encoder.sharded.geometry,
        model.activation,
        sizes.max_length,
        sizes.threads,
        sizes.lanes,
        materials.store.full_bits,
        model.embeddings.norm.epsilon,
    )
    key = (target, workload, kernels_key(materials.kernel_shape, target))
    here = (*key, folder.stat().st_dev)
    data = cached(measure.__module__, here, lambda: measure(target, workload, folder, tick), note)
    if target.gpu is None:
        return data
    text = program_key(materials.encoder_shape, target.gpu.style, gpu_precision, interleave(target))
    drivers = tuple(os.environ.get(name) for name in ("STIC_OPENCL", "STIC_OPENCL_DEVICE"))

    def on_gpu() -> dict[str, Any]:
        try:
            return measure_gpu(target, workload, folder, gpu_precision)
        except EngineError as error:
            note(f"{error}; what the GPU takes is estimated")
            return {}

    return {**data, "gpu": cached(measure_gpu.__module__, (*key, text, *drivers), on_gpu, note) or None}
