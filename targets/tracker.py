"""What a TVM RPC tracker knows: its devices, and who may use one next.

The tracker's own protocol (tvm/rpc/tracker.py of TVM 0.27: a magic number, then JSON behind its length), spoken here
because TVM's client has no deadlines and tries again for a minute where nobody listens.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from stic.runtime.errors import TargetError

CONNECT_S = 5.0  # how long a tracker may take to answer
POLL_S = 0.5
_MAGIC = 0x2F271
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
_MOST_BYTES = 1 << 24  # of an answer; a summary of a thousand devices has 0.1 MB


@dataclass(frozen=True)
class DeviceKey:
    """The devices that share one key."""

    key: str
    total: int
    free: int
    waiting: int  # clients
    addresses: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Match:
    """A device that the tracker has promised to this client: where it is, and the word that opens it."""

    host: str
    port: int
    word: str


class Tracker:
    """The tracker at `address`, HOST:PORT. Raises TargetError for another form of address, and where none answers."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise TargetError(f"--tracker wants HOST:PORT, as in 192.168.1.10:9190, not {address!r}")
        self.address = address
        self._place = (host, int(port))

    def devices(self) -> tuple[DeviceKey, ...]:
        """All keys that have a device now, in alphabetical order."""
        try:
            with self._connect() as connection:
                _send(connection, [_SUMMARY])
                summary = _successful(connection)
        except (OSError, ValueError) as error:
            raise self._silence(error) from error
        places: dict[str, list[str]] = {}
        for server in summary["server_info"]:
            where = ":".join(map(str, server.get("addr", ())))
            places.setdefault(server["key"].removeprefix("server:"), []).append(where)
        queues = summary["queue_info"]
        return tuple(
            DeviceKey(
                key,
                len(found),
                int(queues.get(key, {}).get("free", 0)),
                int(queues.get(key, {}).get("pending", 0)),
                tuple(sorted(found)),
            )
            for key, found in sorted(places.items())
        )

    def device(self, key: str) -> DeviceKey:
        """The devices of one key. Raises TargetError with the keys there are if it is none of them."""
        devices = self.devices()
        for device in devices:
            if device.key == key:
                return device
        known = ", ".join(device.key for device in devices) or "none at all"
        raise TargetError(f"the tracker at {self.address} has no device {key!r}; it has {known}")

    def request(self, key: str, wait_s: float, waiting: Callable[[], None]) -> Match:
        """Wait for our turn with a device, in the tracker's own queue; `waiting` is called while it is another's.

        A tracker that is started again meanwhile is asked again. Raises TargetError if there is no tracker or no such
        key at first, or no device within `wait_s` seconds.
        """
        self.device(key)
        until = time.monotonic() + wait_s
        while True:
            try:
                found = self._queue(key, until, waiting)
            except (OSError, ValueError) as error:
                if time.monotonic() > until:
                    raise self._silence(error) from error
                time.sleep(POLL_S)
                continue
            if found is None:
                raise TargetError(
                    f"every device {key!r} of the tracker at {self.address} was in use for {wait_s:.0f} s: try again"
                    " later, or wait longer with --wait"
                )
            return found

    def _queue(self, key: str, until: float, waiting: Callable[[], None]) -> Match | None:
        with self._connect() as connection:
            _send(connection, [_REQUEST, key, "", 1])
            while not select.select([connection], [], [], POLL_S)[0]:
                if time.monotonic() > until:
                    return None
                waiting()
            host, port, word = _successful(connection)
            return Match(str(host), int(port), str(word))

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._place, CONNECT_S)
        try:
            connection.sendall(struct.pack("<i", _MAGIC))
            if struct.unpack("<i", _receive(connection, 4))[0] != _MAGIC:
                raise ValueError("what answers there is no RPC tracker")
        except BaseException:
            connection.close()
            raise
        return connection

    def _silence(self, error: Exception) -> TargetError:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        return TargetError(
            f"no RPC tracker answers at {self.address} ({reason}): start one with"
            " `python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190`"
        )


def _send(connection: socket.socket, message: list[Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(struct.pack("<i", len(data)) + data)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return data


def _successful(connection: socket.socket) -> Any:
    """The value of the tracker's next answer. Raises ValueError for one that is none."""
    size = struct.unpack("<i", _receive(connection, 4))[0]
    if not 0 < size <= _MOST_BYTES:
        raise ValueError("what answers there is no RPC tracker")
    answer = json.loads(_receive(connection, size))
    if not isinstance(answer, list) or len(answer) != 2 or answer[0] != _SUCCESS:
        raise ValueError(f"it refused: {answer!r}")
    return answer[1]
