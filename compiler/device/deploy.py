"""Have a package on a device behind an RPC tracker, and use it there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from stic.compiler.importance.examples import Examples
from stic.compiler.progress import Progress
from stic.compiler.quantities import format_bytes
from stic.compiler.report.texts import Ids, inputs_of
from stic.runtime.package import Package
from stic.runtime.session import SessionOptions
from stic.targets.depot import Sent
from stic.targets.remote_device import RemoteDevice, engine_target, remote_device
from stic.targets.remote_session import RemoteSession
from stic.targets.rpc import DeviceAddress, silent
from stic.targets.spread import spread

BATCH = 8  # inputs that a device takes at once of an evaluation


@dataclass(frozen=True)
class Deployment:
    """A package that lies on a leased device."""

    package: Package
    device: RemoteDevice
    sent: Sent

    def session(self, **options: Unpack[SessionOptions]) -> RemoteSession:
        """Run it there."""
        return self.device.session(self.package, self.sent.folder, **options)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        facts = self.device.facts
        return {
            "device": {
                "key": self.device.address.key,
                "architecture": facts.architecture,
                "features": sorted(facts.features),
                "cores": facts.cores,
                "page_bytes": facts.page_bytes,
                "available_bytes": facts.available_bytes,
            },
            "sent": asdict(self.sent),
        }

    def sentences(self) -> str:
        """The same for people."""
        facts = self.device.facts
        memory = format_bytes(facts.available_bytes)
        device = f"{self.device.address.key}: {facts.architecture}, {facts.cores} cores, {memory} of memory free"
        total, folder = format_bytes(self.sent.total_bytes), self.sent.folder
        if not self.sent.files:
            return f"{device}\nsent nothing: all {total} are in {folder} already"
        return f"{device}\nsent {format_bytes(self.sent.sent_bytes)} of {total}, {self.sent.files} files, to {folder}"


@contextmanager
def deployed(
    package: Package,
    address: DeviceAddress,
    directory: str | None = None,
    system: str | None = None,
    progress: Progress = silent,
) -> Iterator[Deployment]:
    """Lease a device, check that it can run the package, and send what is not there yet.

    Raises TargetError where something of that cannot be, DeviceLost for a device that goes away.
    """
    with remote_device(address, engine_target(package), directory, system, progress) as device:
        device.check(package)
        yield Deployment(package, device, device.send(package, progress))


def outputs_on(
    leased: Callable[[Progress], AbstractContextManager[Deployment]],
    devices: int,
    package: Package,
    examples: Examples,
    progress: Progress,
    **options: Unpack[SessionOptions],
) -> NDArray[np.float32]:
    """What `report.texts.outputs_of` returns, from several devices at once; `leased` gives a Deployment."""
    inputs = inputs_of(package, examples)
    outputs = np.zeros((len(inputs), int(package.model["output_features"])), np.float32)
    one_at_a_time = threading.Lock()
    done = 0

    def show(stage: str, count: int, total: int) -> None:
        with one_at_a_time:
            progress(stage, count, total)

    @contextmanager
    def session() -> Iterator[RemoteSession]:
        with leased(show) as deployment, deployment.session(**options) as opened:
            yield opened

    def work(opened: RemoteSession, batch: list[tuple[int, Ids, Ids | None]]) -> list[NDArray[np.float32]]:
        nonlocal done
        found = [opened.run(ids, types) for _, ids, types in batch]
        with one_at_a_time:
            done += len(batch)
            progress("evaluating", done, len(inputs))
        return found

    batches = [inputs[at : at + BATCH] for at in range(0, len(inputs), BATCH)]
    for batch, found in zip(batches, spread(session, devices, batches, work), strict=True):
        for (row, _, _), output in zip(batch, found, strict=True):
            outputs[row] = output
    return outputs
