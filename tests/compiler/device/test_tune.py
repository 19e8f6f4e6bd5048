"""`stic tune`, here and behind a real RPC tracker: records, what compiles from them, and what goes wrong.

Needs apache-tvm and a C compiler; the tracker needs tornado, cloudpickle and psutil.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.compiler.cli import main
from stic.compiler.device import tune as search
from stic.compiler.device.tune import CHAINS, Trial, device, tune
from stic.compiler.package.kernels import kernels_key
from stic.runtime.errors import TargetError
from stic.schedules import tuning
from stic.schedules.rule import kernels_for, micro_kernel
from stic.schedules.shape import KernelShape
from stic.schedules.tir import build
from stic.schedules.tuning import Tuning
from stic.targets.target import load, processor
from stic.targets.toolchain import link_shared
from tests.rpc_devices import RpcDevices

SHAPE = KernelShape(64, 16, "gelu", 1e-5, 1e-5)
HOST = load("host")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of schedules/tuned/."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    return tmp_path


def _write(path: Path, found: Tuning, measured_on: str) -> None:
    tuning.write(path, HOST, measured_on, found, {}, {"stic": "test"})


def test_defaults_without_a_record(records: Path) -> None:
    assert tuning.tuning_for(HOST) == Tuning()


def test_a_record_is_used_on_its_processor_only(records: Path) -> None:
    found = Tuning(micro_kernel(HOST).choices[-1], 4, 2560)
    before = kernels_key(SHAPE, HOST)
    _write(records / "host.json", found, processor())
    assert tuning.tuning_for(HOST) == found
    assert kernels_key(SHAPE, HOST) != before
    _write(records / "host.json", found, "another processor")
    assert tuning.tuning_for(HOST) == Tuning()
    assert kernels_key(SHAPE, HOST) == before


def test_tiles_that_are_none_are_refused() -> None:
    with pytest.raises(TargetError, match="register tiles that are none"):
        kernels_for(HOST, SHAPE, Tuning(((1, 3),)))


@pytest.mark.parametrize("change", [{"format": 2}, {"tuning": {}}, {"more": 1}, {"tuning": {"tiles": "x"}}])
def test_what_is_no_record_is_refused(records: Path, change: dict[str, Any]) -> None:
    _write(records / "host.json", Tuning(), processor())
    data = json.loads((records / "host.json").read_text()) | change
    (records / "host.json").write_text(json.dumps(data))
    with pytest.raises(TargetError, match=r"host\.json is not a record .* tune again"):
        tuning.tuning_for(HOST)


def _products(found: Tuning, folder: Path) -> list[np.ndarray]:
    """Outputs of stic_dot and stic_rows_b3 on fixed inputs, compiled with these choices."""
    wanted = ("stic_dot", "stic_rows_b3")
    functions = [f for f in kernels_for(HOST, SHAPE, found) if f.attrs["global_symbol"] in wanted]
    build(functions, dict(HOST.tvm)).write_to_file(str(folder / "k.o"))
    library = folder / f"{abs(hash(found))}.so"
    link_shared([folder / "k.o"], library, HOST)
    kernels, rng = ctypes.CDLL(str(library)), np.random.default_rng(0)

    def aligned(values: np.ndarray) -> np.ndarray:
        room = np.zeros(values.nbytes + 64, np.uint8)
        start = -room.ctypes.data % 64
        view = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        view[...] = values
        return view

    k, tiles = 96, 7
    panel, x = (aligned(rng.integers(0, 256, size).astype(np.uint8)) for size in (16 * k, 16 * k * tiles))
    floats = [aligned(rng.standard_normal(size).astype(np.float32)) for size in (16 * tiles, 16, 16, 256 * tiles)]
    sums, y = aligned(np.arange(16 * tiles, dtype=np.int32)), aligned(np.zeros((tiles, 16, 16), np.float32))
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (panel, x, sums, *floats, y)]
    kernels.stic_dot(*pointers, k, 16 * k, 16, tiles)
    acc, lut = aligned(np.zeros(256, np.int32)), aligned(np.arange(8, dtype=np.int8))
    planes = [panel.ctypes.data_as(ctypes.c_void_p)] * 8
    rest = [array.ctypes.data_as(ctypes.c_void_p) for array in (lut, x, acc)]
    kernels.stic_rows_b3(*planes, *rest, k // 4, 64, 1)
    return [y.copy(), acc.copy()]


def test_choices_change_no_result(tmp_path: Path) -> None:
    expected = _products(Tuning(), tmp_path)
    others = [Tuning(tiles, 4, 0) for tiles in micro_kernel(HOST).choices]
    others += [Tuning(chains=chains) for chains in CHAINS]
    for other in others:
        for found, want in zip(_products(other, tmp_path), expected, strict=True):
            np.testing.assert_array_equal(found, want)


def _check_trials(best: Tuning, trials: list[Trial]) -> None:
    assert best in ([Tuning()] + [trial.tuning for trial in trials if trial.taken])
    assert all(trial.ratio > 0 for trial in trials)


@pytest.fixture
def few_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of each kind beside the tiles, none of them the default: every further one compiles for seconds."""
    monkeypatch.setattr(search, "CHAINS", CHAINS[1:3])
    monkeypatch.setattr(search, "PREFETCH", search.PREFETCH[:2])


def _alternatives(target: str) -> int:
    """How many trials `few_choices` leaves; the best then meets the defaults in two more, unless it is the defaults."""
    return len(micro_kernel(load(target)).choices[1:]) + len(search.CHAINS) + len(search.PREFETCH)


def test_a_search_here(few_choices: None) -> None:
    ticks: list[tuple[int, int]] = []
    with device(HOST, None, None) as where:
        best, trials = tune(HOST, where, 3, lambda done, total: ticks.append((done, total)))
    _check_trials(best, trials)
    assert ticks[-1][0] == ticks[-1][1] == _alternatives("host")
    assert len(trials) - _alternatives("host") in (0, 2)


def test_another_machines_target_wants_a_tracker(capsys: pytest.CaptureFixture[str]) -> None:
    foreign = "raspberry-pi-4" if HOST.arch == "x86_64" else "x86-64-v3"
    assert main(["tune", "--target", foreign]) == 1
    assert "cannot run" in (message := capsys.readouterr().err) and "--tracker" in message


def test_no_tracker(capsys: pytest.CaptureFixture[str], records: Path) -> None:
    assert main(["tune", "--target", "x86-64-v3", "--tracker", "127.0.0.1:9", "--key", "phone"]) == 1
    assert "no RPC tracker answers at 127.0.0.1:9" in capsys.readouterr().err
    assert main(["tune", "--target", "x86-64-v3", "--tracker", "nowhere"]) == 1
    assert "HOST:PORT" in capsys.readouterr().err
    assert main(["tune", "--tracker", "127.0.0.1:9"]) == 1
    assert "target host is this machine" in capsys.readouterr().err
    assert main(["tune", "--key", "phone"]) == 2
    assert "--tracker" in capsys.readouterr().err
    assert not list(records.iterdir())


def test_a_search_behind_a_tracker(
    few_choices: None, rpc_devices: RpcDevices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.json"
    target = "x86-64-v3" if HOST.arch == "x86_64" else "raspberry-pi-4"
    arguments = ["tune", "--target", target, "--tracker", rpc_devices.address, "--key", "here", "--rounds", "3"]
    arguments += ["-o", str(out), "--json"]
    assert main(arguments) == 0
    best, measured_on = tuning.read(out)
    assert measured_on == ("here of an RPC tracker", load(target).features)
    trials = json.loads(capsys.readouterr().out)["measured"]["trials"]
    assert len(trials) - _alternatives(target) in (0, 2)
    assert best == Tuning() or any(trial["taken"] for trial in trials)


def test_an_unknown_key(rpc_devices: RpcDevices, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--target", "x86-64-v3", "--tracker", rpc_devices.address, "--key", "phone"]) == 1
    assert "has no device 'phone'; it has here" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["tune", "-o", str(tmp_path / "file" / "record.json")]) == 1
    assert "--output" in capsys.readouterr().err
