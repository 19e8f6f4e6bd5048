"""An emulated phone behind a real tracker: listed, probed, compiled for, run on, and lost.

The phone is Debian's arm64 Python with TVM's official aarch64 wheels under qemu-aarch64 -cpu max, and TVM's own RPC
server in it. QEMU shows that everything is right, and nothing about time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler.report.texts import tokens_of
from stic.compiler.text.packaged import coder_of
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.reference_decoder import ReferenceDecoder
from tests.compiler.commands import small_decoder
from tests.rpc_devices import RpcDevices

Stic = Callable[..., tuple[int, str, str]]
STREAMED = {"bits": ((4, 4, 4, 4),) * 2}
MIXED = {"bits": ((16, 8, 5, 2), (6, 4, 3), ()), "resident": ((0, 4, 2, 2), (6, 3, 0), ())}
IDS = ([3, 1, 4, 1, 5, 9, 2, 6], [5], list(range(40)))
PATIENCE = ("--timeout", "120s")  # for a step; the emulated phone shares its processor with everything else


@pytest.fixture(scope="module")
def packages(make_package: Callable[..., Path]) -> dict[str, Path]:
    """One for a phone without dot products, one for a phone with them."""
    return {
        "raspberry-pi-4": make_package(**STREAMED, target="raspberry-pi-4"),
        "aarch64-dotprod": make_package(**MIXED, target="aarch64-dotprod"),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the phone keeps packages."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def on_phone(phones: RpcDevices, store: Path) -> tuple[object, ...]:
    """The options that mean the phone."""
    return ("--tracker", phones.address, "--key", "phone", "--directory", store, *PATIENCE)


def _outputs(stic: Stic, package: Path, on_phone: tuple[object, ...], *more: object) -> dict[str, Any]:
    """What `stic deploy --run --json` says of IDS."""
    ids = [part for numbers in IDS for part in ("--ids", ",".join(map(str, numbers)))]
    status, out, err = stic("deploy", package, *on_phone, "--run", *ids, "--json", *more)
    assert status == 0, err
    return dict(json.loads(out))


def test_it_is_listed(stic: Stic, phones: RpcDevices) -> None:
    status, out, _ = stic("devices", "--tracker", phones.address)
    assert status == 0
    assert any(line.split()[:3] == ["phone", "1", "1"] for line in out.splitlines())


@pytest.mark.parametrize("target", ("raspberry-pi-4", "aarch64-dotprod"))
def test_a_package_runs_as_the_reference_says(
    target: str, packages: dict[str, Path], stic: Stic, on_phone: tuple[object, ...], tmp_path: Path
) -> None:
    package = packages[target]
    first = _outputs(stic, package, on_phone, "--trace", tmp_path / "run.json")
    reference = Reference(Package.open(package))
    for ids, output in zip(IDS, first["outputs"], strict=True):
        np.testing.assert_allclose(np.float32(output), reference.run(ids), rtol=1e-5, atol=2e-6)
    assert first["device"]["architecture"] == "aarch64"
    assert {"asimd", "asimddp", "i8mm"} <= set(first["device"]["features"])  # of -cpu max
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert {"read", "check", "qkv", "down", "head"} <= {event["name"] for event in events if event["ph"] == "X"}
    size = sum(path.stat().st_size for path in package.iterdir())
    assert first["sent"]["sent_bytes"] == first["sent"]["total_bytes"] == size
    second = _outputs(stic, package, on_phone)
    assert (second["sent"]["sent_bytes"], second["sent"]["files"]) == (0, 0)
    assert second["outputs"] == first["outputs"]


def test_what_is_measured_there_is_planned_with(
    tiny_dir: Path, stic: Stic, on_phone: tuple[object, ...], tmp_path: Path
) -> None:
    profile, package = tmp_path / "phone.json", tmp_path / "tiny.stic"
    model = ("--max-length", 32)
    status, _, err = stic("probe", tiny_dir, *on_phone, "--target", "raspberry-pi-4", *model, "-o", profile)
    assert status == 0, err
    budget = ("--latency", "10s", "--device-profile", profile)
    status, _, err = stic("compile", tiny_dir, "--target", "raspberry-pi-4", *model, *budget, "-o", package)
    assert status == 0, err
    status, out, err = stic("deploy", package, *on_phone, "--run", "--text", "a good film", "--text", "awful plays")
    assert status == 0, err
    assert "phone: aarch64" in out


def test_a_real_encoder_says_there_what_it_says_here(
    minilm_dir: Path, stic: Stic, on_phone: tuple[object, ...], tmp_path: Path
) -> None:
    package = tmp_path / "minilm.stic"
    small = ("--planner", "preload", "--bits", 6, "--calibration-tokens", 64, "--max-length", 32)
    status, _, err = stic("compile", minilm_dir, "--target", "raspberry-pi-4", *small, "-o", package)
    assert status == 0, err
    texts = ("A man plays the guitar.", "Someone makes music.")
    asked = [part for text in texts for part in ("--text", text)]
    status, out, err = stic("deploy", package, *on_phone, "--run", *asked, "--json")
    assert status == 0, err
    opened = Package.open(package)
    reference = Reference(opened)
    for (ids, types), output in zip(
        tokens_of(opened, [(text, None) for text in texts], False), json.loads(out)["outputs"], strict=True
    ):
        np.testing.assert_allclose(np.float32(output), reference.run(ids, types), rtol=1e-5, atol=2e-6)


def test_code_for_another_architecture_is_refused(
    make_package: Callable[..., Path], stic: Stic, on_phone: tuple[object, ...], store: Path
) -> None:
    package = make_package(**STREAMED, target="x86-64-v3", compiled=False)
    before = sorted(store.rglob("*"))
    status, _, err = stic("deploy", package, *on_phone)
    assert status == 1
    assert "is aarch64, and code for x86_64 cannot run there" in err
    assert sorted(store.rglob("*")) == before


def test_a_phone_that_dies_in_mid_run_ends_the_command(
    packages: dict[str, Path], phones: RpcDevices, phone_python: list[str], tmp_path: Path
) -> None:
    phone = phones.start("doomed", phone_python)
    options = ("--tracker", phones.address, "--key", "doomed", "--directory", tmp_path, *PATIENCE)
    slow = ("--run", "--ids", "1,2,3", "--emulate-storage", "1kB")  # a second: reading takes half a minute
    command = [sys.executable, "-m", "stic.compiler.cli", "deploy", packages["raspberry-pi-4"], *options, *slow]
    log = tmp_path / "client.log"
    with log.open("wb") as out:
        client = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, start_new_session=True)
    try:
        phones.wait_until("sending", lambda: b"sent " in log.read_bytes() or client.poll() is not None, 120)
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(3)  # so it runs by now
        phones.end(phone)
        assert client.wait(15) == 1
        assert re.search(r"went away while \w+ run\b", log.read_text().splitlines()[-1])
        with pytest.raises(ProcessLookupError):
            os.killpg(client.pid, 0)  # nothing of it is left
    finally:
        if client.poll() is None:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
    assert phones.devices() is not None and phones.registered("doomed") == 0
    assert phones.free("phone") == 1


def test_a_decoder_is_measured_planned_for_and_goes_on_with_a_text_there(
    stic: Stic, on_phone: tuple[object, ...], tmp_path: Path
) -> None:
    """Its tokens are the reference's, and come as they are made; nothing takes more memory than the plan claims."""
    model, profile, package = small_decoder.write(tmp_path / "model"), tmp_path / "phone.json", tmp_path / "small.stic"
    target = ("--target", "raspberry-pi-4")
    status, _, err = stic("probe", model, *on_phone, *target, "--context", 48, "-o", profile)
    assert status == 0, err
    budget = ("--first-token", "60s", "--next-token", "10s", "--device-profile", profile, "--calibration-tokens", 128)
    status, _, err = stic("compile", model, *target, *budget, "--context", 48, "--time-limit", "2s", "-o", package)
    assert status == 0, err
    asked = ("--run", "--prompt", "a sea", "--greedy", "--max-tokens", 6, "--json")
    status, out, err = stic("deploy", package, *on_phone, *asked)
    assert status == 0, err
    said, opened = json.loads(out), Package.open(package)
    reference = ReferenceDecoder(opened)
    logits, tokens = reference.extend(coder_of(opened).prompt("a sea")), list[int]()
    while len(tokens) < 6:
        tokens.append(int(np.argmax(logits[-1])))
        logits = reference.extend(tokens[-1:])
    assert said["tokens"] == tokens and said["peak_bytes"] <= said["claimed_bytes"]
