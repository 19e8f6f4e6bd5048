"""Measure a device for the layers of a model: what `stic probe` does, and `stic compile --deploy` before it plans."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stic.compiler.array_cache import Note
from stic.compiler.device.disturbance import Watch, disturbed
from stic.compiler.device.measure import DEFAULT_LANES, measure
from stic.compiler.device.measure_gpu import measure_gpu
from stic.compiler.device.runner import RemoteRunner, Runner, Tick
from stic.compiler.model import Activation, Model
from stic.compiler.options import longest_input
from stic.compiler.package.assembly import ROW_LANES
from stic.compiler.progress import Progress
from stic.compiler.sharding import Geometry
from stic.runtime.errors import EngineError, TargetError
from stic.runtime.format import LIMITS
from stic.runtime.gpu_format import Storage
from stic.targets.remote_device import remote_device
from stic.targets.rpc import Place
from stic.targets.target import Target

SMALL_ENCODER = (384, 12, 32, 1536)  # hidden, heads, head_dim, FFN of the MiniLM family


@dataclass(frozen=True)
class Layers:
    """What is measured: the shape of the layers, and how they are run."""

    geometry: Geometry
    activation: Activation
    max_length: int
    full_bits: int = 16
    epsilon: float = 1e-12  # of the norms

    @classmethod
    def of(cls, model: Model | None, max_length: int | None, slices: int | None, full_bits: int = 16) -> Layers:
        """Those of a model, or without one of a small encoder; by default a slice for each head.

        Raises InputError for a `max_length` beyond the model's positions.
        """
        length = longest_input(max_length, LIMITS["max_length"] if model is None else model.max_length)
        if model is None:
            return cls(Geometry(1, *SMALL_ENCODER, slices or SMALL_ENCODER[1]), "gelu", length, full_bits)
        geometry = Geometry(1, model.hidden, model.heads, model.head_dim, model.ffn, slices or model.heads)
        return cls(geometry, model.activation, length, full_bits, model.embeddings.norm.epsilon)

    def measure(
        self,
        target: Target,
        threads: int | None,
        lanes: int | None,
        folder: Path,
        tick: Tick,
        note: Note,
        runner: Runner | None = None,
        wide: bool = False,
        gpu_storage: Storage = "float16",
    ) -> dict[str, Any]:
        """`measure` with the target's defaults, and `measure_gpu` where the target has a GPU.

        wide: also bare reads with other numbers of lanes. Where layers do not run on the device's GPU, `note` is told
        why, and the profile has no "gpu"; it is told, too, if the device was busy meanwhile.
        """
        threads, lanes = threads or target.threads, lanes or DEFAULT_LANES
        sizes = (self.geometry, self.activation, self.full_bits, self.max_length, threads, lanes)
        survey = (1, 2 * lanes, ROW_LANES) if wide else ()
        watch = Watch() if runner is None else None  # who else works on a device behind a tracker is not known here
        data = measure(target, *sizes, folder, tick, epsilon=self.epsilon, survey=survey, runner=runner)
        if target.gpu is not None:
            try:
                data["gpu"] = measure_gpu(target, *sizes, folder, gpu_storage, self.epsilon, runner)
            except EngineError as error:
                note(str(error))
        if why := disturbed(data, None if watch is None else watch.others()):
            note(f"while the device was measured {why}: these times may be too long; probe while it does nothing else")
        return data


@contextmanager
def remote_runner(
    place: Place, target: Target, directory: str | None, system: str | None, progress: Progress
) -> Iterator[tuple[Runner, Path]]:
    """Lease a device that can run the target's code; yields it, and a folder here to write packages for it in."""
    with remote_device(place, target, directory, system, progress) as leased:
        lacks = leased.facts.missing(target.features)
        if lacks:
            raise TargetError(f"{leased.name} cannot run {target.name}: it lacks {', '.join(lacks)}")
        with leased.store.scratch() as there, tempfile.TemporaryDirectory(prefix="stic-probe-") as here:
            yield RemoteRunner(leased, there), Path(here)
