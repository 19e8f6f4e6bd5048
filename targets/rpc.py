"""Devices behind a TVM RPC tracker: lease one, use it, give it back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stic.runtime.errors import TargetError

CONNECT_S = 5.0  # how long a tracker may take to answer
WAIT_S = 60.0  # how long to wait for a device that others use
SESSION_S = 600.0  # after which a device frees itself from a client that has gone


def _address(tracker: str) -> tuple[str, int]:
    host, _, port = tracker.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise TargetError(f"--tracker wants HOST:PORT, as in 192.168.1.10:9190, not {tracker!r}")
    return host, int(port)


@contextmanager
def lease(tracker: str, key: str) -> Iterator[Any]:
    """Yield a session (`upload`, `load_module`) on a device registered as `key`; it is given back in any case.

    Raises TargetError where there is no tracker, no such key, or no free device within WAIT_S seconds.
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
        keys = sorted(connection.summary()["queue_info"])
    except Exception as error:  # tvm raises its own kinds, and those of sockets
        raise TargetError(f"what answers at {tracker} is no RPC tracker of this TVM ({error})") from error
    if key not in keys:
        raise TargetError(f"the tracker at {tracker} has no device {key!r}; it has {', '.join(keys) or 'none at all'}")
    try:
        session = connection.request(key, max_retry=1, session_timeout=SESSION_S)
    except Exception as error:
        raise TargetError(f"no device {key!r} of the tracker at {tracker} could be leased ({error})") from error
    try:
        yield session
    finally:
        del session  # the connection ends with its last reference, and with it the lease
