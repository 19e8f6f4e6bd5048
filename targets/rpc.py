"""Devices behind a TVM RPC tracker: lease one, use it, give it back."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stic.runtime.errors import SticError, TargetError

CONNECT_S = 5.0  # how long a tracker may take to answer
WAIT_S = 60.0  # how long to wait for a device that others use
POLL_S = 0.5
SESSION_S = 3600.0  # after which a device frees itself from a client that has gone


def _address(tracker: str) -> tuple[str, int]:
    host, _, port = tracker.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise TargetError(f"--tracker wants HOST:PORT, as in 192.168.1.10:9190, not {tracker!r}")
    return host, int(port)


@contextmanager
def lease(tracker: str, key: str) -> Iterator[Any]:
    """Yield a session (`upload`, `load_module`) on a device registered as `key`; it is given back in any case.

    Raises TargetError where there is no tracker, no such key, or no free device within WAIT_S seconds, and for
    whatever goes wrong on the device.
    """
    host, port = _address(tracker)
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        raise TargetError(
            f"no RPC tracker answers at {tracker} ({error.strerror or error}): start one with"
            " `python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190`"
        ) from error
    from tvm import rpc

    try:
        connection = rpc.connect_tracker(host, port)
        _wait_until_free(connection, tracker, key)
        session = connection.request(key, max_retry=1, session_timeout=SESSION_S)
    except SticError:
        raise
    except Exception as error:  # tvm raises its own kinds, and those of sockets
        raise TargetError(f"the tracker at {tracker} gave no device {key!r} ({_first_line(error)})") from error
    try:
        yield session
    except (SticError, KeyboardInterrupt):
        raise
    except Exception as error:
        message = f"device {key!r} of the tracker at {tracker} failed ({_first_line(error)}): is it of this target?"
        raise TargetError(message) from error
    finally:
        del session  # the connection ends with its last reference, and with it the lease


def _wait_until_free(connection: Any, tracker: str, key: str) -> None:
    """Return once a device is free. A request would wait for ever, even for a device that has gone."""
    until = time.monotonic() + WAIT_S
    while True:
        summary = connection.summary()
        keys = sorted({server["key"].removeprefix("server:") for server in summary["server_info"]})
        if key not in keys:
            known = ", ".join(keys) or "none at all"
            raise TargetError(f"the tracker at {tracker} has no device {key!r}; it has {known}")
        if int(summary["queue_info"].get(key, {}).get("free", 0)) > 0:
            return
        if time.monotonic() > until:
            raise TargetError(f"every device {key!r} of the tracker at {tracker} was in use for {WAIT_S:.0f} s")
        time.sleep(POLL_S)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
