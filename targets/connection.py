"""A device behind an RPC tracker, used through a process of its own so that every call has a deadline."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stic.runtime.errors import TargetError
from stic.targets.tracker import Match

STEP_S = 10.0  # how long a device may take for one step, unless more is known of it
END_S = 3.0  # how long the process may take to hang up
START_S = 60.0  # how long the process may take to import TVM, on a busy machine
_PROGRAM = Path(__file__).with_name("rpc_process.py")


class DeviceLost(TargetError):
    """A device that died, froze, or went out of reach. Its lease has ended."""


class DeviceRefused(TargetError):
    """What the code on a device raised; the device is as usable as before."""

    def __init__(self, device: str, message: str) -> None:
        super().__init__(f"{device} failed: {message}")
        self.message = message


class Functions(Protocol):
    """The functions that a library exports to TVM's FFI, here or on a device."""

    def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Call one with integers, strings, bytes, None and arrays; the function may write to the arrays.

        `seconds`: how long it may take if that is not the usual step. Raises DeviceLost, DeviceRefused.
        """


class Module:
    """A library that was loaded on a device."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection, self._number = connection, number

    def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
        """As Functions says."""
        return self._connection.apply("call", self._number, name, arguments, seconds=seconds)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self.call(name, *arguments)


class Connection:
    """One leased device. `close` ends the lease, and so does the end of this process, however it comes.

    device: what messages call it. step_s: how long each step may take.
    """

    def __init__(self, device: str, step_s: float = STEP_S) -> None:
        self.device, self.step_s = device, step_s
        self._pipe, child = Pipe()
        with child:
            # -P: the folder of the program is no place to import from.
            command = [sys.executable, "-P", str(_PROGRAM), str(child.fileno())]
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, pass_fds=(child.fileno(),), stdin=quiet, stdout=quiet, stderr=quiet
            )
        try:
            self._receive(START_S, "starting TVM's RPC client here")
        except BaseException:
            self.close()
            raise

    def connect(self, match: Match, session_s: float) -> None:
        """Open the device; after `session_s` seconds it frees itself."""
        doing = f"being connected to at {match.host}:{match.port}"
        self._ask("connect", match.host, match.port, match.word, session_s, doing=doing)

    def ask_global(self, name: str, *arguments: Any) -> Any:
        """Call a function of TVM's own on the device; None if that build of TVM lacks it."""
        return self.apply("global", name, arguments)

    def upload(self, data: bytes, name: str) -> None:
        """Put a small file into the folder of this lease, which goes with it."""
        self._ask("upload", name, data, doing=f"receiving {name}")

    def load_module(self, path: str) -> Module:
        """Load a shared library: a name in the folder of this lease, or an absolute path."""
        return Module(self, self._ask("load", path, doing=f"loading {Path(path).name}")[0])

    def apply(self, kind: str, *request: Any, seconds: float | None = None) -> Any:
        """Make a call whose last part are its arguments, and take back what it wrote to arrays among them."""
        name, arguments = request[-2:]
        value, arrays = self._ask(kind, *request, seconds=seconds, doing=f"serving {name.removeprefix('stic_')}")
        own = [each for each in arguments if isinstance(each, np.ndarray)]
        for array, written in zip(own, arrays, strict=True):
            array[...] = written
        return value

    def close(self) -> None:
        """End the process and with it the connection: the device is free once it notices. Twice does nothing more."""
        self._pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, *request: Any, doing: str, seconds: float | None = None) -> tuple[Any, list[Any]]:
        try:
            self._pipe.send(request)
        except OSError as error:
            raise DeviceLost(f"{self.device} is no longer connected") from error
        return self._receive(max(self.step_s, seconds or 0.0), doing)

    def _receive(self, seconds: float, doing: str) -> tuple[Any, list[Any]]:
        try:
            if not self._pipe.poll(seconds):
                self.close()
                raise DeviceLost(
                    f"{self.device} gave no answer for {seconds:.0f} s while {doing}: is it frozen, or out of reach? A"
                    " slow device needs a longer --timeout"
                )
            kind, *rest = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise DeviceLost(f"{self.device}: the process that talks to it ended while {doing}") from error
        if kind == "refused":
            raise DeviceRefused(self.device, _sentence(rest[0]))
        if kind == "lost":
            self.close()
            raise DeviceLost(f"{self.device} went away while {doing} ({_reason(rest[0])}): is it still running?")
        value, arrays = rest
        return value, arrays


def _sentence(message: str) -> str:
    """What the device said, without the condition of a failed check in front of it."""
    return " ".join(re.sub(r"^Check failed: .*? is false:", "", message.strip()).split())


def _reason(message: str) -> str:
    """The last line of a message of TVM's; where the other end has closed, that is a code, or one of the sockets'."""
    last = next((line for line in reversed(message.splitlines()) if line.strip()), "")
    closed = r"\bcode=\w+|\bSocket\S* .*(Connection reset by peer|Broken pipe)"
    return _sentence(re.sub(closed, "the connection was closed", last)) or "no reason given"
