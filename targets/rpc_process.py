"""The process that talks to one device: `python rpc_process.py DESCRIPTOR`, for stic.targets.connection.

A call through TVM's RPC blocks until the device answers, which a frozen one never does. Here nobody minds: the parent
waits with a deadline and lets go of this process, which hangs up and ends the lease. Nothing of stic is imported.

Requests and answers are tuples on the socket that DESCRIPTOR names:
  ("connect", host, port, word, session_s) -> None; ("global", name, arguments) -> value, None if there is no `name`
  ("upload", name, data) -> None; ("load", path) -> number of the module; ("call", module, name, arguments) -> value
Arrays among the arguments are written to by the device: they come back beside the value. An answer is
("done", value, arrays), ("refused", message) for what the device raised, ("lost", message) for all else.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

HANG_UP_S = 1.0  # how long the server may take to finish its sentence
RAISED_THERE = "Error caught from RPC call:"


def _end_with(descriptor: int) -> None:
    """End this process, whatever it waits for, when the parent has let go or has gone."""
    watch = select.poll()
    watch.register(descriptor, 0)  # errors and the end are always reported
    watch.poll()
    _hang_up()
    os._exit(0)


def _hang_up() -> None:
    """Say that nothing more will be sent, and read what the server still sends, for a moment.

    A socket that is closed with bytes unread resets the connection, and that stops TVM 0.27's server for good: its
    listening thread ends with the exception (tvm/rpc/server.py, _serving).
    """
    until = time.monotonic() + HANG_UP_S
    for device in _connections():
        with contextlib.suppress(OSError):
            device.shutdown(socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0 and select.select([device], [], [], left)[0]:
                if not device.recv(1 << 16, socket.MSG_DONTWAIT):
                    break


def _connections() -> list[socket.socket]:
    """The TCP connections of this process: TVM's client keeps its own to itself."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            connection = socket.socket(fileno=os.dup(int(name)))
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                found.append(connection)
    return found


class _Device:
    """One leased device."""

    def __init__(self) -> None:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # TVM's FFI imports it if it can: seconds, unused
        from tvm import rpc

        self._rpc = rpc
        self._session: Any = None
        self._modules: list[Any] = []

    def connect(self, host: str, port: int, word: str, session_s: float) -> tuple[Any, list[Any]]:
        self._session = self._rpc.connect(host, port, word, session_timeout=session_s)
        return None, []

    def upload(self, name: str, data: bytes) -> tuple[Any, list[Any]]:
        self._session.upload(bytearray(data), name)
        return None, []

    def load(self, path: str) -> tuple[Any, list[Any]]:
        self._modules.append(self._session.load_module(path))
        return len(self._modules) - 1, []

    def call(self, module: int, name: str, arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        return self._apply(self._modules[module][name], arguments)

    def global_(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        try:
            function = self._session.get_function(name)
        except AttributeError:
            return None, []
        return self._apply(function, arguments)

    def _apply(self, function: Any, arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        import numpy as np
        from tvm.runtime import tensor

        place = self._session.cpu()
        there = [tensor(each, place) if isinstance(each, np.ndarray) else each for each in arguments]
        value = function(*there)
        arrays = [b.numpy() for a, b in zip(arguments, there, strict=True) if isinstance(a, np.ndarray)]
        return value, arrays


def _answer(device: _Device, request: tuple[Any, ...]) -> tuple[Any, ...]:
    kind, *arguments = request
    try:
        value, arrays = getattr(device, "global_" if kind == "global" else kind)(*arguments)
        return "done", value, arrays
    except Exception as error:  # tvm raises its own kinds, and those of sockets
        _, raised, message = str(error).partition(RAISED_THERE)
        return ("refused", message.strip()) if raised else ("lost", str(error) or type(error).__name__)


def main(descriptor: int) -> None:
    """Serve requests until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    pipe = Connection(descriptor)
    threading.Thread(target=_end_with, args=(descriptor,), daemon=True).start()
    try:
        device = _Device()
        pipe.send(("done", None, []))
        while True:
            pipe.send(_answer(device, pipe.recv()))
    except ImportError as error:
        pipe.send(("lost", str(error)))
    except (EOFError, OSError):
        _hang_up()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
