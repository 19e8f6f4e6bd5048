"""What reading and computing cost on a target: measured, looked up or estimated, and the GPU's share beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stic.compiler.array_cache import Note
from stic.compiler.device.measure import __name__, cached, measure
from stic.compiler.device.measure_gpu import measure_gpu
from stic.compiler.options import CompileOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.package.kernels import kernels_key, program_key
from stic.compiler.planner.costs import Costs, costs, estimate, load, parse
from stic.compiler.planner.gpu_costs import with_gpu
from stic.runtime.errors import EngineError
from stic.runtime.gpu_format import Storage
from stic.schedules.pack import interleave
from stic.targets.target import Target


def device_costs(
    options: CompileOptions,
    target: Target,
    materials: Materials,
    bits: tuple[int, ...],
    tick: Callable[[int, int], None],
    note: Note,
) -> Costs:
    """Times from the profile that was given, from this machine, or from the target file's facts, in this order.

    Where the target has a GPU, its times are among them: measured with the rest, or else estimated.
    """
    found = _costs(options, target, materials, bits, tick, note)
    return with_gpu(found, target.gpu, materials.store.shape, materials.sizes.max_length, bits)


def _costs(
    options: CompileOptions,
    target: Target,
    materials: Materials,
    bits: tuple[int, ...],
    tick: Callable[[int, int], None],
    note: Note,
) -> Costs:
    sizes, geometry = materials.sizes, materials.quantized.sharded.geometry
    shape = (geometry.shape, geometry.slices, sizes.max_length, sizes.threads)
    if options.profile is not None:
        return costs(load(options.profile), *shape, bits)
    if target.name != "host":
        return estimate(target, *shape, sizes.row_lanes, bits)
    folder = options.output.absolute().parent if options.output is not None else Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    model, kernels = materials.quantized.sharded.model, kernels_key(materials.kernel_shape, target)
    measured = (geometry, model.activation, options.full_bits, sizes.max_length, sizes.threads, sizes.lanes)

    def work() -> dict[str, Any]:
        return measure(target, *measured, folder, tick, epsilon=model.embeddings.norm.epsilon)

    data = cached(__name__, (target, *measured, kernels, folder.stat().st_dev), work, note)
    if target.gpu is not None:
        data = {**data, "gpu": _gpu_times(target, materials, measured, options.gpu_storage, folder, note) or None}
    return costs(parse(data), *shape, bits)


def _gpu_times(
    target: Target, materials: Materials, measured: tuple[Any, ...], storage: Storage, folder: Path, note: Note
) -> dict[str, Any]:
    """What layers take on this machine's GPU; empty where they do not run there, with a note that says why."""
    assert target.gpu is not None
    shape, epsilon = materials.kernel_shape, materials.quantized.sharded.model.embeddings.norm.epsilon
    text = program_key(shape, target.gpu.style, storage, interleave(target))
    drivers = tuple(os.environ.get(name) for name in ("STIC_OPENCL", "STIC_OPENCL_DEVICE"))

    def work() -> dict[str, Any]:
        try:
            return measure_gpu(target, *measured, folder, storage, epsilon)
        except EngineError as error:
            note(f"{error}; what the GPU takes is estimated")
            return {}

    key = ("gpu", target, *measured, kernels_key(shape, target), text, *drivers)
    return cached(measure_gpu.__module__, key, work, note)
