"""Measuring layers on a GPU: what a profile gets, and what is said where there is none. Needs an OpenCL driver."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.compiler.device.measure_gpu import _hand_overs, measure_gpu
from stic.compiler.device.workload import Workload
from stic.compiler.planner.costs import costs, parse
from stic.compiler.sharding import Geometry
from stic.runtime import trace
from stic.runtime.errors import EngineError
from stic.runtime.layout import Shape
from stic.targets.target import load

WORKLOAD = Workload(Geometry(1, 64, 4, 16, 128, 2), "gelu", 32, 2, 2, full_bits=0)
IO = {"direct": True, "lanes": 2, "request_us": 50.0, "bytes_per_s": 5e8, "row_us": 20.0}


def test_layers_are_measured_on_whatever_opencl_finds(tmp_path: Path) -> None:
    try:
        found = measure_gpu(load("host", "mali"), WORKLOAD, tmp_path)
    except EngineError as error:
        pytest.skip(f"needs an OpenCL device, for example PoCL: {error}")
    assert not list(tmp_path.iterdir())
    shape = found["shapes"][0]
    assert found["device"] and found["arithmetic"] in ("float", "int8") and found["hand_over_us"] > 0
    assert (shape["hidden"], shape["slices"], shape["rows"], shape["head_us"] > 0) == (64, 2, 32, True)
    assert shape["embed_us"] > 0 and all(us > 0 for us in shape["slice_us"].values())
    cpu = {**shape, "submit_us": 5.0}
    data = {"format": 1, "device": "here", "io": IO, "compute": {"threads": 2, "shapes": [cpu]}, "gpu": found}
    got = costs(parse(json.loads(json.dumps(data))), Shape.layer(64, 2, 2, 16, 64), 32, 2, bits=(2, 8))
    assert got.measured and got.gpu is not None and got.gpu.layer.slice_us[8] == shape["slice_us"]["8"]


def test_without_opencl_the_reason_is_said(tmp_path: Path) -> None:
    # In a process of its own, since one that has found OpenCL keeps it.
    code = (
        "from pathlib import Path; from stic.compiler.device.measure_gpu import measure_gpu\n"
        "from stic.compiler.device.workload import Workload; from stic.compiler.sharding import Geometry\n"
        "from stic.targets.target import load\n"
        f"measure_gpu(load('host', 'mali'), {WORKLOAD!r}, Path('.'))\n"
    )
    environment = {**os.environ, "STIC_OPENCL": str(tmp_path / "libnothing.so")}
    command = [sys.executable, "-c", code]
    got = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = got.stderr.splitlines()[-1]
    assert "EngineError: nothing can be measured on a GPU of" in said and "layers run on the CPU" in said
    assert "libnothing.so" in said and not list(tmp_path.iterdir())


def test_hand_overs_are_the_gaps_between_processors() -> None:
    def event(name: str, layer: int, track: int, begin_us: int, end_us: int) -> trace.Event:
        kind = next(number for number, known in trace.KINDS.items() if known == name)
        return trace.Event(kind, layer, track, 0, 0, 0, 0, 0, begin_us * 1000, end_us * 1000)

    run = trace.Trace((
        event("embed", -1, trace.COMPUTE, 0, 10),
        event("norm", 0, trace.COMPUTE, 10, 20),
        event("hand-over", -1, trace.GPU, 22, 25),
        event("qkv", 1, trace.GPU, 27, 40),
        event("norm", 1, trace.GPU, 40, 50),
        event("hand-over", -1, trace.GPU, 51, 52),
        event("stall", 2, trace.COMPUTE, 53, 60),
        event("qkv", 2, trace.COMPUTE, 61, 70),
        event("norm", 3, trace.GPU, 80, 90),
        event("head", -1, trace.COMPUTE, 103, 104),
    ))  # fmt: skip
    assert sorted(_hand_overs([run])) == [8.5, 12.0]  # to the GPU 7 and 10, to the CPU 11 and 13
