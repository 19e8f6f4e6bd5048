"""Peers that are no tracker, or a broken one: each is a sentence within its limit, through the commands themselves."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from stic.compiler import cli
from stic.runtime.errors import TargetError
from stic.targets import tracker
from stic.targets.rpc import DeviceAddress, lease

MAGIC = struct.pack("<i", 0x2F271)
LIMIT_S = 0.5  # in place of CONNECT_S
DRIP_S = 0.2  # between two bytes: below the limit, so that only one for the whole answer ends it
SERVER = {"key": "server:phone", "addr": ["127.0.0.1", 9100]}
FREE = {"phone": {"free": 1, "pending": 0}}


def framed(data: bytes) -> bytes:
    return struct.pack("<i", len(data)) + data


def answer(value: Any, code: Any = 0) -> bytes:
    return framed(json.dumps([code, value]).encode())


def summary(servers: Any = (SERVER,), queues: Any = FREE) -> bytes:
    return answer({"server_info": servers, "queue_info": queues})


def server(**changes: Any) -> bytes:
    return summary([{**SERVER, **changes}])


def queue(value: Any) -> bytes:
    return summary(queues={"phone": value})


@contextmanager
def fake_tracker(*answers: bytes, magic: bytes = MAGIC, drip: bool = False) -> Iterator[str]:
    """The address of a peer that gives each connection the next of the answers, and the last one from then on.

    It closes a connection after the answer, except after a drip: then it holds the connection until the client goes.
    """
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            number = 0
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        connection.recv(4)
                        connection.sendall(magic)
                        if len(magic) == 4:
                            connection.recv(1 << 16)
                        data = answers[min(number, len(answers) - 1)]
                        for at in range(len(data)) if drip else ():
                            if done.wait(DRIP_S):
                                break
                            connection.sendall(data[at : at + 1])
                        if not drip:
                            connection.sendall(data)
                    number += 1

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            done.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "CONNECT_S", LIMIT_S)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with one sentence, and return that."""

    def run(*arguments: str) -> str:
        assert cli.main(arguments) == 1
        sentence = capsys.readouterr().err.strip()
        assert len(sentence.splitlines()) == 1 and len(sentence) < 400 and sentence.isprintable()
        return sentence

    return run


# What is answered to the question for all devices; each is wrong in one way.
SUMMARIES = {
    "another code": answer({}, 1),
    "no code": framed(b"{}"),
    "empty object": answer({}),
    "a number": answer(5),
    "null": answer(None),
    "a text": answer("x" * 5000),
    "three parts": framed(b"[0, {}, {}]"),
    "no JSON": framed(b"{{{{"),
    "half a JSON": framed(summary()[4:-9]),
    "invalid UTF-8": framed(b'[0, "\xff\xfe\xfd"]'),
    "open brackets": framed(b"[" * 100_000),
    "nested lists": framed(b"[0," + b"[" * 900 + b"]" * 900 + b"]"),
    "an endless number": framed(b"[0, " + b"9" * 10_000 + b"]"),
    "a number of 4000 digits": framed(b"[0, " + b"9" * 4000 + b"]"),
    "infinity": queue({"free": float("inf"), "pending": 0}),
    "not a number": queue({"free": float("nan"), "pending": 0}),
    "servers: number": summary(5),
    "servers: numbers": summary([5]),
    "servers: null": summary(None),
    "server without key": summary([{}]),
    "key: number": server(key=5),
    "key: list": server(key=["phone"]),
    "key: control characters": server(key="server:\x1b[2J\nphone"),
    "key: half a surrogate": server(key="server:\ud800"),
    "address: null": server(addr=None),
    "address: text": server(addr="127.0.0.1:9100"),
    "address: one part": server(addr=["127.0.0.1"]),
    "address: number": server(addr=5),
    "port: null": server(addr=["127.0.0.1", None]),
    "port: list": server(addr=["127.0.0.1", []]),
    "port: too large": server(addr=["127.0.0.1", 1 << 40]),
    "port: true": server(addr=["127.0.0.1", True]),
    "host: null": server(addr=[None, 9100]),
    "queues: list": summary(queues=[]),
    "queues: null": summary(queues=None),
    "queue: number": queue(5),
    "queue: text": queue("free"),
    "free: text": queue({"free": "many", "pending": 0}),
    "free: null": queue({"free": None, "pending": 0}),
    "free: negative": queue({"free": -1, "pending": 0}),
    "pending: huge": queue({"free": 0, "pending": 10**300}),
    "pending: list": queue({"free": 0, "pending": []}),
    "length: zero": struct.pack("<i", 0),
    "length: negative": struct.pack("<i", -1),
    "length: least": struct.pack("<i", -(1 << 31)),
    "length: huge": struct.pack("<i", 1 << 30),
    "half a frame": summary()[:-1],
}


@pytest.mark.parametrize("data", SUMMARIES.values(), ids=SUMMARIES)
def test_a_summary_of_another_form(data: bytes, refused: Callable[..., str]) -> None:
    with fake_tracker(data) as address:
        assert f"no RPC tracker answers at {address}" in refused("devices", "--tracker", address)


@pytest.mark.parametrize("size", range(12))
def test_a_connection_that_is_closed_after_any_byte(size: int, refused: Callable[..., str]) -> None:
    whole = MAGIC + summary()
    with fake_tracker(whole[4:size], magic=whole[: min(size, 4)]) as address:
        assert "no RPC tracker answers" in refused("devices", "--tracker", address)


@pytest.mark.parametrize("magic", [b"HTTP", b"\0\0\0\0", struct.pack(">i", 0x2F271), struct.pack("<i", 0xFF271)])
def test_another_magic(magic: bytes, refused: Callable[..., str]) -> None:
    with fake_tracker(summary(), magic=magic) as address:
        assert "no RPC tracker" in refused("devices", "--tracker", address)


# What is answered to the request for a device.
MATCHES = {
    "a number": answer(5),
    "null": answer(None),
    "empty": answer([]),
    "two parts": answer(["127.0.0.1", 9100]),
    "four parts": answer(["127.0.0.1", 9100, "word", 0]),
    "an object": answer({"host": "127.0.0.1"}),
    "host: null": answer([None, 9100, "word"]),
    "port: null": answer(["127.0.0.1", None, "word"]),
    "port: text": answer(["127.0.0.1", "9100", "word"]),
    "port: negative": answer(["127.0.0.1", -1, "word"]),
    "port: huge": answer(["127.0.0.1", 10**30, "word"]),
    "word: number": answer(["127.0.0.1", 9100, 5]),
    "word: line": answer(["127.0.0.1", 9100, "a\nb"]),
    "refused": answer("no", 1),
    "no JSON": framed(b"[0, ["),
    "open brackets": framed(b"[" * 100_000),
    "length: negative": struct.pack("<i", -5),
}


@pytest.mark.parametrize("data", MATCHES.values(), ids=MATCHES)
def test_a_promise_of_another_form(data: bytes) -> None:
    with fake_tracker(summary(), data) as address, pytest.raises(TargetError, match="no RPC tracker answers"):
        tracker.Tracker(address).request("phone", 60, lambda: None)


@pytest.mark.parametrize("data", [summary(), framed(b" " * 1000)], ids=["summary", "blanks"])
def test_an_answer_that_drips_ends_with_the_limit(data: bytes, refused: Callable[..., str]) -> None:
    with fake_tracker(data, drip=True) as address:
        sentence = refused("devices", "--tracker", address)
    assert "did not end in time" in sentence or "timed out" in sentence


@pytest.mark.parametrize("data", [SUMMARIES["a number"], SUMMARIES["open brackets"], SUMMARIES["port: null"]])
def test_a_probe_at_a_fake_tracker(data: bytes, tmp_path: Path, refused: Callable[..., str]) -> None:
    with fake_tracker(data) as address:
        chosen = ("--tracker", address, "--key", "phone", "--target", "host", "-o", str(tmp_path / "phone.json"))
        assert "no RPC tracker answers" in refused("probe", *chosen)


def test_a_lease_at_a_fake_tracker() -> None:
    with (
        fake_tracker(SUMMARIES["queue: number"]) as address,
        pytest.raises(TargetError, match="no RPC tracker answers"),
        lease(DeviceAddress(address, "phone")),
    ):
        pass


def test_what_a_true_tracker_answers_is_taken() -> None:
    with fake_tracker(summary(), summary(), answer(["127.0.0.1", 9100, "word"])) as address:
        asked = tracker.Tracker(address)
        assert asked.devices() == (tracker.DeviceKey("phone", 1, 1, 0, ("127.0.0.1:9100",)),)
        assert asked.request("phone", 60, lambda: None) == tracker.Match("127.0.0.1", 9100, "word")
