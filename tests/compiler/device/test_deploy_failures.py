"""What `stic deploy` and `compile --deploy` refuse, and devices, trackers and clients that go away in the middle.

Needs apache-tvm and what its tracker needs. Whatever fails, the device is free afterwards and no process is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.targets import connection, remote_device
from stic.targets.target import load
from tests.compiler.conftest import Stic
from tests.compiler.deploying import LIST, device, expected_output, output_of, package, start_stic
from tests.rpc_devices import RpcDevices
from tests.runtime.conftest import make_package, with_header

__all__ = ["device", "make_package", "package", "with_header"]
LIMIT_S = 15  # for ending once a device is gone


def test_a_refused_input_is_said(stic: Stic, device: list[str], package: Path) -> None:
    status, out, err = stic("deploy", package, *device, "--run", "--ids", "2,99999", "--json")
    assert status == 1 and out == "" and "99999" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run"], "--text"),
        (["--run", "--bench"], "one at a time"),
        (["--text", "a cat"], "belongs to --run"),
        (["--wait", "long"], "long"),
    ],
)
def test_wrong_usage(stic: Stic, package: Path, options: list[str], message: str) -> None:
    status, _, err = stic("deploy", package, "--tracker", "127.0.0.1:1", *options)
    assert status == 2 and message in err


def test_no_tracker_and_no_such_key(stic: Stic, device: list[str], package: Path) -> None:
    status, _, err = stic("deploy", package, "--tracker", "127.0.0.1:9")
    assert status == 1 and "no RPC tracker answers at 127.0.0.1:9" in err
    status, _, err = stic("deploy", package, "--tracker", device[1])
    assert status == 1 and "has no device 'host'; it has here" in err


def test_a_package_for_another_architecture(stic: Stic, device: list[str], make_package: Any) -> None:
    foreign = "raspberry-pi-4" if load("host").arch == "x86_64" else "x86-64-v3"
    package = make_package(((8,) * 4,), target=foreign, compiled=False)
    status, _, err = stic("deploy", package, *device)
    assert status == 1 and f"is {load('host').arch}, and code for {load(foreign).arch} cannot run there" in err
    assert not Path(device[-1]).exists()


def test_another_architecture_where_tvm_does_not_say(
    stic: Stic, device: list[str], make_package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = "raspberry-pi-4" if load("host").arch == "x86_64" else "x86-64-v3"
    if shutil.which(f"{load(foreign).arch}-linux-gnu-gcc") is None:
        pytest.skip(f"needs a C compiler for {load(foreign).arch}")
    monkeypatch.setattr(remote_device, "_GLOBAL_TRIPLE", "no.such.function")
    package = make_package(((8,) * 4,), target=foreign, compiled=False)
    status, _, err = stic("deploy", package, *device)
    assert status == 1 and f"cannot load the engine for {load(foreign).arch}, linux-gnu" in err


def test_a_device_without_the_instructions(
    stic: Stic, device: list[str], package: Path, with_header: Callable[..., bytes], tmp_path: Path
) -> None:
    demanding = shutil.copytree(package, tmp_path / "demanding.stic")
    index = (demanding / "index.bin").read_bytes()
    (demanding / "index.bin").write_bytes(with_header(index, features=(1 << 13) - 1))
    status, _, err = stic("deploy", demanding, *device)
    assert status == 1 and "lacks" in err and "another --target" in err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB in place of the device's store."""
    folder = tmp_path / "device"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(stic: Stic, device: list[str], small_disk: Path, package: Path) -> None:
    status, _, err = stic("deploy", package, *device)
    assert status == 1 and "MiB free" in err and "--directory" in err


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _gone(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


Deploying = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def slow_run(rpc_devices: RpcDevices, device: list[str], package: Path) -> Iterator[Deploying]:
    """Starts `stic deploy --run` with such slow storage that it takes seconds; returns once the device works on it."""
    started = []

    def start(key: str, storage: str, *options: str) -> subprocess.Popen[str]:
        where = [*device[:2], "--key", key, *device[4:]]
        process = start_stic("deploy", package, *where, "--run", "--ids", LIST, "--emulate-storage", storage, *options)
        started.append(process)
        before = rpc_devices.log.read_text().count("libstic-")
        rpc_devices.wait_until(
            "the run", lambda: rpc_devices.log.read_text().count("libstic-") > before or process.poll() is not None
        )
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_device_that_dies_in_mid_run(slow_run: Deploying, rpc_devices: RpcDevices) -> None:
    mortal = rpc_devices.start("mortal")
    process = slow_run("mortal", "2kB")
    children = _children(process.pid)
    rpc_devices.end(mortal)
    _, err = process.communicate(timeout=LIMIT_S)
    rpc_devices.wait_until("forgetting the device", lambda: not rpc_devices.registered("mortal"))
    assert process.returncode == 1 and children and all(map(_gone, children))
    assert "stic: error: device 'mortal'" in err and "went away" in err and "Traceback" not in err


def test_a_device_that_dies_in_mid_upload(
    stic: Stic, rpc_devices: RpcDevices, device: list[str], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mortal = rpc_devices.start("mortal")
    where = [*device[:2], "--key", "mortal", *device[4:]]
    really = connection.Module.call

    def call(module: connection.Module, name: str, *arguments: Any, seconds: float | None = None) -> Any:
        if name == "stic_write" and arguments[0].endswith("shards.bin.part") and mortal.poll() is None:
            rpc_devices.end(mortal)
        return really(module, name, *arguments, seconds=seconds)

    monkeypatch.setattr(connection.Module, "call", call)
    status, _, err = stic("deploy", package, *where)
    assert status == 1 and "went away" in err and "Traceback" not in err
    rpc_devices.wait_until("forgetting the device", lambda: not rpc_devices.registered("mortal"))
    rpc_devices.start("mortal")
    status, out, _ = stic("deploy", package, *where, "--run", "--ids", LIST, "--json")
    output, facts = output_of(out)
    assert status == 0 and np.array_equal(output, expected_output(package))
    assert 0 < facts["sent"]["sent_bytes"] < facts["sent"]["total_bytes"]
    rpc_devices.end(rpc_devices.running["mortal"])


def test_a_device_that_freezes_in_mid_run(slow_run: Deploying, rpc_devices: RpcDevices) -> None:
    group = rpc_devices.running["here"].pid
    process = slow_run("here", "100kB", "--timeout", "2s")
    try:
        os.killpg(group, signal.SIGSTOP)
        _, err = process.communicate(timeout=LIMIT_S)
    finally:
        os.killpg(group, signal.SIGCONT)
    assert process.returncode == 1
    assert "gave no answer for" in err and "--timeout" in err and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_is_ended_frees_the_device(
    slow_run: Deploying, rpc_devices: RpcDevices, number: signal.Signals
) -> None:
    process = slow_run("here", "20kB")
    children = _children(process.pid)
    assert children and rpc_devices.free("here") == 0
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT_S)
    rpc_devices.wait_until("ending the children", lambda: all(map(_gone, children)), LIMIT_S)
    if number == signal.SIGINT:
        assert (process.returncode, "interrupted" in err, "Traceback" not in err) == (130, True, True), err


def test_a_tracker_that_was_started_again(
    stic: Stic, device: list[str], package: Path, rpc_devices: RpcDevices
) -> None:
    assert stic("deploy", package, *device)[0] == 0
    rpc_devices.end_tracker()
    status, _, err = stic("deploy", package, *device)
    assert status == 1 and "no RPC tracker answers" in err
    rpc_devices.start_tracker()
    rpc_devices.wait_until("registering again", lambda: rpc_devices.free("here") == 1)
    status, out, _ = stic("deploy", package, *device)
    assert status == 0 and "sent nothing" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run"], "--deploy"),
        (["--directory", "/data"], "--deploy"),
        (["--key", "x"], "tracker"),
        (["--deploy", "h:1", "--until", "plan"], "--until"),
    ],
)
def test_wrong_usage_of_compile(stic: Stic, tiny_dir: Path, tmp_path: Path, options: list[str], message: str) -> None:
    status, _, err = stic("compile", tiny_dir, "--target", "host", "-o", tmp_path / "p", *options)
    assert status == 2 and message in err
