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

CONNECT_S = 5.0  # how long a tracker may take for one whole answer
POLL_S = 0.5
_MAGIC = 0x2F271
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
_MOST_BYTES = 1 << 24  # of an answer; a summary of a thousand devices has 0.1 MB
_RECEIVE_BYTES = 1 << 16  # at once
_SHOWN = 60  # characters of an answer in a message


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


class _NoTracker(ValueError):
    """An answer that no tracker gives."""


class Tracker:
    """The tracker at `address`, HOST:PORT. Raises TargetError for another form of address, and where none answers."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise TargetError(f"--tracker wants HOST:PORT, as in 192.168.1.10:9190, not {address!r}")
        self.address = address
        self._place = (host, int(port))

    def devices(self) -> tuple[DeviceKey, ...]:
        """All keys that have a device now, in alphabetical order. Raises TargetError for an answer of another form."""
        until = time.monotonic() + CONNECT_S
        try:
            with self._connect(until) as connection:
                _send(connection, [_SUMMARY], until)
                return _device_keys(_successful(connection, until))
        except (OSError, ValueError) as error:
            raise self._silence(error) from error

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
            except _NoTracker as error:  # asking again would get the same
                raise self._silence(error) from error
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
        asked = time.monotonic() + CONNECT_S
        with self._connect(asked) as connection:
            _send(connection, [_REQUEST, key, "", 1], asked)
            while not select.select([connection], [], [], POLL_S)[0]:
                if time.monotonic() > until:
                    return None
                waiting()
            return _match(_successful(connection, time.monotonic() + CONNECT_S))

    def _connect(self, until: float) -> socket.socket:
        connection = socket.create_connection(self._place, _left(until))
        try:
            connection.sendall(struct.pack("<i", _MAGIC))
            if struct.unpack("<i", _receive(connection, 4, until))[0] != _MAGIC:
                raise _NoTracker("what answers there is no RPC tracker")
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


def _left(until: float) -> float:
    """The seconds until then. Raises TimeoutError if there are none: a socket takes 0 for "do not wait at all"."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("its answer did not end in time")
    return left


def _send(connection: socket.socket, message: list[Any], until: float) -> None:
    data = json.dumps(message).encode()
    connection.settimeout(_left(until))
    connection.sendall(struct.pack("<i", len(data)) + data)


def _receive(connection: socket.socket, size: int, until: float) -> bytes:
    """Exactly `size` bytes, all of them by `until`: a peer that sends a byte now and then gains no time by it."""
    data = bytearray()
    while len(data) < size:
        connection.settimeout(_left(until))
        part = connection.recv(min(size - len(data), _RECEIVE_BYTES))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return bytes(data)


def _successful(connection: socket.socket, until: float) -> Any:
    """The value of the tracker's next answer. Raises ValueError for one that is none."""
    size = struct.unpack("<i", _receive(connection, 4, until))[0]
    if not 0 < size <= _MOST_BYTES:
        raise _NoTracker("what answers there is no RPC tracker")
    data = _receive(connection, size, until)
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, an endless number; brackets without end
        raise _NoTracker("its answer is no JSON") from error
    if not isinstance(answer, list) or len(answer) != 2 or answer[0] != _SUCCESS:
        raise _NoTracker(f"it refused: {_shown(answer)}")
    return answer[1]


def _device_keys(summary: Any) -> tuple[DeviceKey, ...]:
    """A summary, checked. Raises ValueError for one of another form."""
    places: dict[str, list[str]] = {}
    for server in _typed(_typed(summary, dict).get("server_info"), list):
        key = _name(_typed(server, dict).get("key")).removeprefix("server:")
        where = ":".join(map(str, _address(server["addr"]))) if "addr" in server else ""
        places.setdefault(key, []).append(where)
    queues = _typed(summary.get("queue_info"), dict)
    found = []
    for key, addresses in sorted(places.items()):
        queue = _typed(queues.get(key, {}), dict)
        free, waiting = (_count(queue.get(name, 0)) for name in ("free", "pending"))
        found.append(DeviceKey(key, len(addresses), free, waiting, tuple(sorted(addresses))))
    return tuple(found)


def _match(value: Any) -> Match:
    """A promised device, checked. Raises ValueError for one of another form."""
    if len(_typed(value, list)) != 3:
        raise _other_form(value)
    host, port = _address(value[:2])
    return Match(host, port, _name(value[2]))


def _address(value: Any) -> tuple[str, int]:
    """Host and port of a device."""
    if len(_typed(value, list)) != 2:
        raise _other_form(value)
    host, port = value
    if not 0 < _count(port) < 1 << 16:
        raise _other_form(value)
    return _name(host), port


def _name(value: Any) -> str:
    """A text that can be printed on one line."""
    if not _typed(value, str) or not value.isprintable():
        raise _other_form(value)
    return str(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:  # True is an int, too
        raise _other_form(value)
    return value


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _other_form(value)
    return value


def _other_form(value: Any) -> _NoTracker:
    return _NoTracker(f"its answer has another form at {_shown(value)}")


def _shown(value: Any) -> str:
    """A value in a message: short, on one line, whatever is in it."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nested too deep
        text = type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
