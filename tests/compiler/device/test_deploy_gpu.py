"""Packages with layers on a GPU, and probes of one, on devices behind a real tracker, one of them without OpenCL.

Needs apache-tvm, what its tracker needs, and for some tests OpenCL; PoCL, which runs it on the CPU, will do.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.compiler.planner.costs import parse
from stic.runtime.package import Package
from stic.runtime.session import GpuUse, Session
from stic.targets import storage
from tests.compiler.conftest import Stic
from tests.compiler.deploying import LIST, device, expected_output, output_of
from tests.rpc_devices import RpcDevices
from tests.runtime.conftest import gpu_package, make_gpu_package, make_package, opencl

__all__ = ["device", "gpu_package", "make_gpu_package", "make_package", "opencl"]
NOWHERE = "/nowhere/libOpenCL.so"
WITH_GPU = ["--target", "host", "--gpu", "mali", "--max-length", "32"]


@pytest.fixture(scope="module")
def cpu_device(rpc_devices: RpcDevices) -> str:
    """The key of a device without OpenCL."""
    rpc_devices.start("plain", environment={"STIC_OPENCL": NOWHERE})
    return "plain"


@pytest.fixture
def quick_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let probes read little, since no test here looks at what they find of the storage."""
    monkeypatch.setattr(storage, "FILE_BYTES", 16 << 20)
    monkeypatch.setattr(storage, "PASS_SECONDS", 0.002)


def _with_key(device: list[str], key: str) -> list[str]:
    return [*device[:2], "--key", key, *device[4:]]


@pytest.mark.usefixtures("opencl")
@pytest.mark.parametrize(("mode", "layers"), [("required", 3), ("off", 0)])
def test_layers_run_there_where_they_run_here(
    stic: Stic, device: list[str], gpu_package: Path, mode: GpuUse, layers: int
) -> None:
    status, out, err = stic("deploy", gpu_package, *device, "--run", "--ids", LIST, "--gpu-use", mode, "--json")
    assert status == 0, err
    output, facts = output_of(out)
    assert np.array_equal(output, expected_output(gpu_package, mode)) and facts["gpu"]["layers"] == layers
    with Session(gpu_package, gpu=mode) as session:
        assert facts["gpu"]["device"] == session.device
    assert ("layers planned for the GPU run on the CPU" in err) == (mode == "off")


@pytest.mark.usefixtures("opencl")
def test_the_device_and_its_cached_kernels_are_shown(stic: Stic, device: list[str], gpu_package: Path) -> None:
    here = ["deploy", gpu_package, *device, "--gpu-use", "required"]
    status, out, err = stic(*here, "--run", "--ids", LIST)
    assert status == 0 and "3 layers on " in out and "note" not in err
    status, out, _ = stic(*here, "--bench", "--runs", "2")
    assert status == 0 and "3 layers on" in out and "compiled before" in out  # the binary lies beside the package there


def test_without_opencl_layers_run_on_the_cpu_and_it_is_said(
    stic: Stic, device: list[str], cpu_device: str, gpu_package: Path
) -> None:
    run = ["deploy", gpu_package, *_with_key(device, cpu_device), "--run", "--ids", LIST]
    status, out, err = stic(*run, "--json")
    assert status == 0, err
    output, facts = output_of(out)
    assert np.array_equal(output, expected_output(gpu_package, "off")) and facts["gpu"]["layers"] == 0
    assert NOWHERE in facts["gpu"]["device"] and "layers planned for the GPU run on the CPU, because" in err
    status, _, err = stic(*run, "--gpu-use", "required")
    assert status == 1 and NOWHERE in err and "Traceback" not in err


@pytest.mark.usefixtures("opencl", "quick_storage")
def test_a_gpu_there_is_measured(stic: Stic, device: list[str], tiny_dir: Path, tmp_path: Path) -> None:
    profile = tmp_path / "there.json"
    status, _, err = stic("probe", tiny_dir, *device, *WITH_GPU, "-o", profile)
    assert status == 0, err
    gpu = parse(json.loads(profile.read_text())).gpu
    assert gpu is not None and gpu.device and gpu.hand_over_us > 0
    assert not [path for path in Path(device[-1]).iterdir() if path.is_dir()]


@pytest.mark.usefixtures("opencl", "quick_storage")
def test_a_plan_for_the_very_device_has_its_measured_times(
    stic: Stic, device: list[str], tiny_dir: Path, tmp_path: Path
) -> None:
    compiling = ["compile", tiny_dir, *WITH_GPU, "--place", "gpu", "-o", tmp_path / "m.stic"]
    status, out, err = stic(*compiling, "--deploy", *device[1:], "--run", "--text", "the cat sings", "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert facts["gpu"]["layers"] == 2 and not any("estimated" in note for note in facts["notes"])


@pytest.mark.usefixtures("quick_storage")
def test_a_plan_for_a_device_without_opencl_is_for_its_cpu(
    stic: Stic, device: list[str], cpu_device: str, tiny_dir: Path, tmp_path: Path
) -> None:
    compiling = ["compile", tiny_dir, *WITH_GPU, "--memory", "16MiB", "-o", tmp_path / "m.stic"]
    status, _, err = stic(*compiling, "--deploy", *_with_key(device, cpu_device)[1:])
    assert status == 0, err
    assert f"nothing can be measured on a GPU of {cpu_device}: layers run on the CPU, because" in err
    assert NOWHERE in err and Package.open(tmp_path / "m.stic").gpu is None
