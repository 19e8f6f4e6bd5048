"""A real TVM RPC tracker and real RPC servers on this machine, ended by force whatever happens.

Both start workers that survive a signal to their parent alone, so each gets a process group, and a log file instead of
a pipe, which a survivor would hold open.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from stic.runtime.errors import TargetError
from stic.targets.tracker import DeviceKey, Tracker

MODULES = ("tvm", "tornado", "cloudpickle", "psutil")  # of apache-tvm's extra `rpc`, but for itself
START_S = 120.0  # an emulated device needs half a minute


class RpcDevices:
    """A tracker at `address`, and the devices that tests start."""

    def __init__(self, folder: Path) -> None:
        if missing := [name for name in MODULES if importlib.util.find_spec(name) is None]:
            pytest.skip(f"an RPC tracker needs the Python packages {', '.join(missing)}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self.log = folder / "log"
        self._folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}  # the last device that was started with each key
        self._started: list[subprocess.Popen[bytes]] = []
        self._tracker: subprocess.Popen[bytes] | None = None

    def start_tracker(self) -> None:
        """Start the tracker, again if it was ended; always at the same address."""
        place = ("--port", str(self._port), "--port-end", str(self._port + 1))
        self._tracker = self._start([sys.executable], "rpc_tracker", place, {})
        self._wait("the tracker", self._tracker, lambda: self.devices() is not None)

    def end_tracker(self) -> None:
        """End the tracker."""
        assert self._tracker is not None
        self.end(self._tracker)

    def start(
        self, key: str, python: Sequence[str] = (sys.executable,), environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a device and wait until the tracker has it; `python` may be an emulator's command line."""
        before = self.registered(key)
        arguments = ("--port", "9100", "--port-end", "9199", "--tracker", self.address, "--key", key)
        server = self._start(python, "rpc_server", arguments, environment or {})
        self._wait(f"device {key}", server, lambda: self.registered(key) > before)
        self.running[key] = server
        return server

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process and all that it started."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._started.remove(process)

    def devices(self) -> dict[str, DeviceKey] | None:
        """What the tracker has, by key; None if it does not answer."""
        try:
            return {device.key: device for device in Tracker(self.address).devices()}
        except TargetError:
            return None

    def registered(self, key: str) -> int:
        """How many devices have this key."""
        found = (self.devices() or {}).get(key)
        return found.total if found else 0

    def free(self, key: str) -> int:
        """How many devices of this key are free."""
        found = (self.devices() or {}).get(key)
        return found.free if found else 0

    def wait_until(self, what: str, ready: Callable[[], bool], seconds: float = 30.0) -> None:
        """Poll; fails the test with the log if it takes longer."""
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > until:
                pytest.fail(f"{what} took longer than {seconds:.0f} s: {self.log.read_text()}")
            time.sleep(0.1)

    def close(self) -> None:
        """End everything."""
        for process in list(self._started):
            self.end(process)

    def _start(
        self, python: Sequence[str], module: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        folder = self._folder / f"{module}-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        (folder / "torch.py").write_text("raise ImportError")  # TVM would import it, if there, for seconds
        command = [*python, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1", *arguments]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=folder,
                env={**os.environ, **environment},
            )
        self._started.append(process)
        return process

    def _wait(self, what: str, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        def up() -> bool:
            if process.poll() is not None:
                pytest.fail(f"{what} did not come up: {self.log.read_text()}")
            return ready()

        self.wait_until(what, up, START_S)
