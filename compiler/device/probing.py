"""Measure a device for the layers of a model: what `stic probe` does, and `stic compile --deploy` before it plans."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stic.compiler.cache.arrays import Note
from stic.compiler.device.disturbance import Watch, disturbed
from stic.compiler.device.measure import measure
from stic.compiler.device.measure_gpu import measure_gpu
from stic.compiler.device.runner import RemoteRunner, Runner, Tick
from stic.compiler.device.workload import Workload
from stic.compiler.package.assembly import ROW_LANES
from stic.compiler.progress import Progress
from stic.runtime.errors import EngineError, TargetError
from stic.runtime.gpu_format import GpuPrecision
from stic.targets.remote_device import remote_device
from stic.targets.rpc import DeviceAddress
from stic.targets.target import Target


def probe(
    target: Target,
    workload: Workload,
    folder: Path,
    tick: Tick,
    note: Note,
    runner: Runner | None = None,
    wide: bool = False,
    gpu_precision: GpuPrecision = "float16",
) -> dict[str, Any]:
    """`measure`, and `measure_gpu` where the target has a GPU: a device profile as `stic probe` writes it.

    wide: also bare reads with other numbers of lanes. Where layers do not run on the device's GPU, `note` is told
    why, and the profile has no "gpu"; it is told, too, if the device was busy meanwhile.
    """
    survey = (1, 2 * workload.lanes, ROW_LANES) if wide else ()
    watch = Watch() if runner is None else None  # who else works on a device behind a tracker is not known here
    data = measure(target, workload, folder, tick, survey, runner)
    if target.gpu is not None:
        try:
            data["gpu"] = measure_gpu(target, workload, folder, gpu_precision, runner)
        except EngineError as error:
            note(str(error))
    if why := disturbed(data, None if watch is None else watch.others()):
        note(f"while the device was measured {why}: these times may be too long; probe while it does nothing else")
    return data


@contextmanager
def remote_runner(
    address: DeviceAddress, target: Target, directory: str | None, system: str | None, progress: Progress
) -> Iterator[tuple[Runner, Path]]:
    """Lease a device that can run the target's code; yields it, and a folder here to write packages for it in."""
    with remote_device(address, target, directory, system, progress) as leased:
        lacks = leased.facts.missing(target.features)
        if lacks:
            raise TargetError(f"{leased.name} cannot run {target.name}: it lacks {', '.join(lacks)}")
        with leased.depot.scratch() as there, tempfile.TemporaryDirectory(prefix="stic-probe-") as here:
            yield RemoteRunner(leased, there), Path(here)
