"""`stic deploy`, `devices`, `probe`, `eval` and `compile` with a real tracker and real devices on this machine.

Needs apache-tvm and what its tracker needs.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.targets import storage
from stic.targets.rpc import DeviceAddress, lease
from tests.compiler.conftest import Stic
from tests.compiler.deploying import LIST, device, expected_output, output_of, package, start_stic
from tests.rpc_devices import RpcDevices
from tests.runtime.conftest import make_package

__all__ = ["device", "make_package", "package"]


def test_devices_are_listed(stic: Stic, device: list[str]) -> None:
    status, out, _ = stic("devices", *device[:2], "--json")
    assert status == 0
    (found,) = json.loads(out)
    assert (found["key"], found["total"], found["free"], found["waiting"]) == ("here", 1, 1, 0)
    assert found["addresses"][0].startswith("127.0.0.1:91")
    status, out, _ = stic("devices", *device[:2])
    assert status == 0 and out.splitlines()[1].split()[:4] == ["here", "1", "1", "0"]


def test_a_package_runs_there_as_here(stic: Stic, device: list[str], package: Path, tmp_path: Path) -> None:
    run = ["deploy", package, *device, "--run", "--ids", LIST]
    status, out, _ = stic(*run, "--trace", tmp_path / "trace.json", "--json")
    output, facts = output_of(out)
    assert status == 0 and np.array_equal(output, expected_output(package))
    assert facts["sent"]["sent_bytes"] == facts["sent"]["total_bytes"] and facts["device"]["architecture"]
    names = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"embed", "qkv", "read"} <= names
    status, out, _ = stic(*run, "--timeline", "--emulate-storage", "300MB,25000")
    assert status == 0 and "sent nothing: all" in out
    assert "predicted for 40 tokens" in out and "measured with 20 tokens" in out


def test_only_what_changed_is_sent(stic: Stic, device: list[str], make_package: Any, tmp_path: Path) -> None:
    place = tmp_path / "model.stic"
    sent = []
    for bits in (8, 6):
        made = make_package(((bits,) * 4,) * 4)
        shutil.copytree(made, place, dirs_exist_ok=True)
        status, out, _ = stic("deploy", place, *device, "--run", "--ids", LIST, "--json")
        output, facts = output_of(out)
        assert status == 0 and np.array_equal(output, expected_output(made))
        sent.append(facts["sent"])
    assert sent[0]["files"] == len(list(place.iterdir()))
    assert 0 < sent[1]["files"] < sent[0]["files"]


def test_a_bench_there(stic: Stic, device: list[str], package: Path) -> None:
    status, out, _ = stic("deploy", package, *device, "--bench", "--runs", "3", "--cold", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["runs"] == 3 and facts["tokens"] == 40 and facts["cold"] is True
    assert facts["peak_bytes"] <= facts["claimed_bytes"] and facts["io_bytes"] > 0 and facts["rss_bytes"] is None
    status, out, _ = stic("deploy", package, *device, "--bench", "--runs", "3")
    assert status == 0 and "engine memory" in out and "process memory" not in out


def test_a_second_client_waits(stic: Stic, device: list[str], package: Path, rpc_devices: RpcDevices) -> None:
    with lease(DeviceAddress(rpc_devices.address, "here")):
        status, _, err = stic("deploy", package, *device, "--wait", "1s")
        assert status == 1 and "waiting for device here (in use)" in err and "in use for 1 s" in err
        process = start_stic("deploy", package, *device)
        assert process.stderr is not None
        assert process.stderr.readline() == "stic: waiting for device here (in use)\n"
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "sent" in out


def test_probe_compile_and_run_for_the_very_device(
    stic: Stic, device: list[str], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "FILE_BYTES", 16 << 20)
    monkeypatch.setattr(storage, "PASS_SECONDS", 0.002)
    profile, out_dir = tmp_path / "phone.json", tmp_path / "tiny.stic"
    status, _, err = stic("probe", tiny_dir, "--max-length", "32", *device, "-o", profile)
    assert status == 0, err
    found = json.loads(profile.read_text())
    assert found["device"].startswith("here, ") and found["io"]["points"] and found["compute"]["shapes"]
    assert not [path for path in Path(device[-1]).iterdir() if path.is_dir()]
    compiling = ["compile", tiny_dir, "--target", "host", "--max-length", "32", "--memory", "16MiB", "-o", out_dir]
    status, out, err = stic(
        *compiling, "--device-profile", profile, "--deploy", *device[1:], "--run", "--text", "the cat sings", "--json"
    )
    facts = json.loads(out)
    assert status == 0, err
    assert facts["package"] == str(out_dir) and facts["device"]["key"] == "here" and facts["runs"][0]["tokens"] == 5
    status, out, err = stic(*compiling, "--deploy", *device[1:])
    assert status == 0 and "measuring here" in err and "tiny.stic-" in out


@pytest.fixture(scope="module")
def pair(rpc_devices: RpcDevices) -> str:
    """The key of two devices."""
    for _ in range(2):
        rpc_devices.start("pair")
    return "pair"


def test_several_devices_evaluate_at_once(
    stic: Stic, rpc_devices: RpcDevices, device: list[str], pair: str, tiny_classifier_dir: Path, tmp_path: Path
) -> None:
    data, out_dir = tmp_path / "data.tsv", tmp_path / "classifier.stic"
    words = "a the movie film cat dog good bad great awful".split()
    lines = [f"{words[n % 10]} {words[n * 3 % 10]}\t{'positive' if n % 3 else 'negative'}" for n in range(240)]
    data.write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    planning = ["--planner", "preload", "--bits", "6", "--target", "host", "--max-length", "32"]
    status, _, err = stic("compile", tiny_classifier_dir, *planning, "-o", out_dir)
    assert status == 0, err
    here = json.loads(stic("eval", out_dir, "--data", data, "--json")[1])
    options = [*device[:2], "--key", pair, *device[4:], "--devices", "2", "--json"]

    def devices_that_took_part() -> int:
        before = rpc_devices.log.read_text().count("libstic-")
        status, out, err = stic("eval", out_dir, "--data", data, *options)
        assert status == 0, err
        assert json.loads(out) == here
        return rpc_devices.log.read_text().count("libstic-") - before

    # A device that is slow to answer may come when the other has done all.
    assert any(devices_that_took_part() == 2 for _ in range(5))
    status, _, err = stic("eval", out_dir, "--data", data, "--devices", "2")
    assert status == 2 and "--tracker" in err


def test_several_clients_share_the_devices_of_a_key(pair: str, device: list[str], package: Path) -> None:
    where = [*device[:2], "--key", pair, *device[4:]]
    clients = [start_stic("deploy", package, *where, "--run", "--ids", LIST, "--json") for _ in range(3)]
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: clients[n].communicate()[0]})) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [client.returncode for client in clients] == [0, 0, 0]
    expected = expected_output(package)
    assert all(np.array_equal(output_of(found[n])[0], expected) for n in range(3))
    assert sum(json.loads(found[n])["sent"]["sent_bytes"] > 0 for n in range(3)) == 1


def test_a_decoder_goes_on_with_a_text_there(stic: Stic, device: list[str], tmp_path: Path, package: Path) -> None:
    from tests.compiler.commands import small_decoder

    made, model = tmp_path / "decoder.stic", small_decoder.write(tmp_path / "decoder")
    planning = ["--target", "host", "--planner", "preload", "--bits", "4", "-o", made]
    status, _, err = stic("compile", model, *planning)
    assert status == 0, err
    asked = ["--prompt", "hello", "--max-tokens", "6"]
    for how in (["--greedy"], ["--seed", "7", "--repetition-penalty", "1.3"]):
        here = json.loads(stic("generate", made, *asked, *how, "--json")[1])
        status, out, err = stic("deploy", made, *device, "--run", *asked, *how, "--json")
        assert status == 0, err
        there = json.loads(out)
        assert (there["tokens"], there["text"]) == (here["tokens"], here["text"])
        assert there["device"]["key"] == "here" and there["first_token_us"] > 0
    for arguments, said in (
        ([made, *device, "--prompt", "hello"], "--prompt belongs to --run"),
        ([made, *device, "--run", "--text", "hello"], "use `stic generate`"),
        ([made, *device, "--run", "--prompt", "word " * small_decoder.CONTEXT], "shorten it"),
        ([package, *device, "--run", "--prompt", "hello"], "is an encoder"),
    ):
        status, out, err = stic("deploy", *arguments)
        assert status in (1, 2) and said in err
