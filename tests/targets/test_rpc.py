"""Leasing from a real tracker, and what goes wrong there. Needs apache-tvm and what its tracker needs."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stic.runtime.errors import TargetError
from stic.targets.connection import Connection, DeviceLost, DeviceRefused
from stic.targets.remote_device import remote_device
from stic.targets.rpc import DeviceAddress, lease
from stic.targets.target import load
from stic.targets.tracker import Tracker
from tests.rpc_devices import RpcDevices

HOST = load("host")


@pytest.fixture
def here(rpc_devices: RpcDevices) -> Iterator[DeviceAddress]:
    """The device `here`, which must be free afterwards."""
    rpc_devices.wait_until("the device", lambda: rpc_devices.free("here") == 1)
    yield DeviceAddress(rpc_devices.address, "here")
    rpc_devices.wait_until("giving the device back", lambda: rpc_devices.free("here") == 1)


def _gone(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def test_a_lease_is_taken_and_given_back(here: DeviceAddress, rpc_devices: RpcDevices) -> None:
    with lease(here) as device:
        assert rpc_devices.free("here") == 0
        child = device._process.pid
        assert str(device.ask_global("target.llvm_get_system_triple")).startswith(HOST.arch)
        assert device.ask_global("no.such.function") is None
        assert "libtorch" not in Path(f"/proc/{child}/maps").read_text()  # TVM imports it where it can
    assert _gone(child)


def test_a_lease_is_given_back_after_an_error(here: DeviceAddress) -> None:
    with pytest.raises(ZeroDivisionError), lease(here):
        raise ZeroDivisionError


@pytest.mark.parametrize("address", ["nowhere", ":9190", "host:", "host:x", "host:0", "host:70000"])
def test_an_address_of_another_form(address: str) -> None:
    with pytest.raises(TargetError, match="HOST:PORT"):
        Tracker(address)


def test_no_tracker() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(TargetError, match=f"no RPC tracker answers at {address} .*refused.*rpc_tracker"):
            Tracker(address).devices()


@contextmanager
def _pretender(answer: bytes) -> Iterator[str]:
    """Something at an address that answers whatever it is asked with the same bytes."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(answer)
                        connection.recv(1 << 16)
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


MAGIC = struct.pack("<i", 0x2F271)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        MAGIC,
        MAGIC + struct.pack("<i", -1),
        MAGIC + struct.pack("<i", 1 << 30),
        MAGIC + struct.pack("<i", 4) + b"{{{{",
        MAGIC + struct.pack("<i", 2) + b"[]",
    ],
)
def test_what_is_no_tracker(answer: bytes) -> None:
    with _pretender(answer) as address, pytest.raises(TargetError, match="no RPC tracker answers"):
        Tracker(address).devices()


def test_an_unknown_key(rpc_devices: RpcDevices) -> None:
    with (
        pytest.raises(TargetError, match="has no device 'phone'; it has here"),
        lease(DeviceAddress(rpc_devices.address, "phone")),
    ):
        pass


def test_a_device_that_is_not_where_the_tracker_says() -> None:
    promise = json.dumps([0, ["127.0.0.1", 1, "word"]]).encode()
    summary = {"queue_info": {"gone": {"free": 1, "pending": 0}}, "server_info": [{"key": "server:gone"}]}
    both = json.dumps([0, summary]).encode()
    with _pretender(MAGIC + struct.pack("<i", len(both)) + both) as address:
        assert Tracker(address).device("gone").total == 1
    with _pretender(MAGIC + struct.pack("<i", len(promise)) + promise) as address:
        found = Tracker(address)._queue("gone", 1e18, lambda: None)
    assert found is not None
    device = Connection("device 'gone'")
    with pytest.raises(DeviceLost, match=r"device 'gone' went away while being connected to at 127\.0\.0\.1:1"):
        device.connect(found, 60)
    with pytest.raises(DeviceLost, match="no longer connected"):
        device.upload(b"", "file")
    device.close()


def test_the_second_client_waits_for_its_turn(here: DeviceAddress) -> None:
    shown: list[str] = []
    waiting = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        shown.append(stage)
        waiting.set()

    got: list[bool] = []

    def second() -> None:
        with lease(here, progress):
            got.append(True)

    thread = threading.Thread(target=second)
    with lease(here):
        thread.start()
        assert waiting.wait(60) and not got
    thread.join(60)
    assert got == [True] and set(shown) == {"waiting for device here (in use)"}


def test_waiting_has_an_end(here: DeviceAddress) -> None:
    with (
        lease(here),
        pytest.raises(TargetError, match=r"in use for 1 s: .*--wait"),
        lease(DeviceAddress(here.tracker, here.key, wait_s=1)),
    ):
        pass


def test_what_the_device_raises_leaves_it_usable(here: DeviceAddress) -> None:
    with lease(here) as device:
        with pytest.raises(DeviceRefused, match=r"cannot find file /nowhere\.so"):
            device.load_module("/nowhere.so")
        assert device.ask_global("target.llvm_get_system_triple")


def test_a_file_that_is_no_library(here: DeviceAddress) -> None:
    with lease(here) as device:
        device.upload(b"no library", "engine.so")
        with pytest.raises(DeviceRefused, match="Failed to load dynamic shared library"):
            device.load_module("engine.so")


def test_a_frozen_device_is_given_up_and_comes_back(here: DeviceAddress, rpc_devices: RpcDevices) -> None:
    group = rpc_devices.running["here"].pid
    silence = r"gave no answer for 1 s while serving .*frozen.*--timeout"
    with pytest.raises(DeviceLost, match=silence), lease(here) as device:
        os.killpg(group, signal.SIGSTOP)
        try:
            device.step_s = 1
            device.ask_global("target.llvm_get_system_triple")
        finally:
            os.killpg(group, signal.SIGCONT)


def test_a_device_that_dies_is_noticed(here: DeviceAddress, rpc_devices: RpcDevices) -> None:
    mortal = rpc_devices.start("mortal")
    with (
        pytest.raises(DeviceLost, match=r"went away while serving .*the connection was closed.*still running"),
        lease(DeviceAddress(here.tracker, "mortal")) as device,
    ):
        rpc_devices.end(mortal)
        device.ask_global("target.llvm_get_system_triple")
    rpc_devices.wait_until("forgetting the device", lambda: rpc_devices.registered("mortal") == 0)


def test_a_tracker_that_starts_again_serves_who_waits(rpc_devices: RpcDevices, here: DeviceAddress) -> None:
    waiting, got = threading.Event(), threading.Event()

    def second() -> None:
        with lease(here, lambda stage, done, total: waiting.set()):
            got.set()

    thread = threading.Thread(target=second)
    with lease(here):
        thread.start()
        assert waiting.wait(60)
        rpc_devices.end_tracker()
        rpc_devices.start_tracker()
    thread.join(60)
    assert got.is_set()


def test_an_engine_says_what_the_device_is(here: DeviceAddress, tmp_path: Path) -> None:
    for _ in range(2):  # the second loads it from the store
        with remote_device(here, HOST, str(tmp_path / "store")) as device:
            assert device.facts.architecture == HOST.arch and not device.facts.missing(HOST.features)
            assert device.facts.cores == len(os.sched_getaffinity(0))
    assert len(list((tmp_path / "store").glob("libstic-*.so"))) == 1


def test_another_architecture_is_refused_before_anything_is_sent(here: DeviceAddress, tmp_path: Path) -> None:
    foreign = load("raspberry-pi-4" if HOST.arch == "x86_64" else "x86-64-v3")
    with pytest.raises(TargetError, match=f"is {HOST.arch}, and code for {foreign.arch} cannot run there"):
        with remote_device(here, foreign, str(tmp_path / "store")):
            pass
    assert not (tmp_path / "store").exists()


def test_a_folder_that_cannot_be_a_store(here: DeviceAddress, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"has no folder for packages .*Not a directory.*--directory"):
        with remote_device(here, HOST, str(tmp_path / "file" / "store")):
            pass
