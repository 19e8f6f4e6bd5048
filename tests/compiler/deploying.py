"""What tests of `stic deploy` share: a device behind a real tracker, a package for it, and answers to compare.

After each test the device must be free again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.runtime.package import Package
from stic.runtime.session import GpuUse, Session
from tests.rpc_devices import RpcDevices

IDS = list(range(2, 22))
LIST = ",".join(map(str, IDS))


@pytest.fixture(scope="module")
def package(make_package: Callable[..., Path]) -> Path:
    """A package that streams, so that its runs can be made to last."""
    return make_package(((8, 8, 8, 8),) * 4)


@pytest.fixture
def device(rpc_devices: RpcDevices, tmp_path: Path) -> Iterator[list[str]]:
    """Options that name the device `here`, with a store of its own; it must be free afterwards."""
    rpc_devices.wait_until("the device", lambda: rpc_devices.free("here") == 1)
    yield ["--tracker", rpc_devices.address, "--key", "here", "--directory", str(tmp_path / "device")]
    rpc_devices.wait_until("giving the device back", lambda: rpc_devices.free("here") == 1)


def expected_output(package: Path, gpu: GpuUse = "auto") -> np.ndarray:
    """Of a run on IDS here."""
    with Session(package, gpu=gpu) as session:
        return session.run(IDS, [0] * len(IDS) if int(Package.open(package).model["types"]) else None)


def output_of(out: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The first output that `stic ... --json` printed, and all of what it printed."""
    facts = json.loads(out)
    return np.array(facts["outputs"][0], np.float32), facts


def start_stic(*arguments: object) -> subprocess.Popen[str]:
    """`stic` in a process of its own."""
    command = [sys.executable, "-m", "stic.compiler.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
