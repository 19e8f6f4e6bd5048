"""Layers on a GPU give the reference's answers: placements, arithmetics, streaming, eviction, threads, traces.

Needs OpenCL; PoCL, which runs it on the CPU, will do.
"""

import json
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError, PackageError
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session
from stic.runtime.trace import GPU

LENGTHS = (1, 8, 9, 33, 40)  # few tokens, then tiles that are full and not


pytestmark = pytest.mark.usefixtures("opencl")


# With float arithmetic in single precision only the order of sums differs. Half precision rounds at every store, where
# a difference in the last bit may become one of 2^-11; an int8 that flips is 1/127 of a token's largest value.
@pytest.mark.parametrize(
    ("options", "arithmetic", "tolerance"),
    (
        ({}, "float", 5e-3),
        ({}, "int8", 3e-2),
        ({"gpu_precision": "float32"}, "float", 1e-4),
        ({"gpu": "adreno-640"}, "float", 5e-3),
    ),
)
def test_answers(
    options: dict[str, Any], arithmetic: Any, tolerance: float, make_gpu_package: Callable[..., Path]
) -> None:
    path = make_gpu_package(**options)
    reference = Reference(Package.open(path), gpu_arithmetic=arithmetic)
    with Session(path, gpu="required", gpu_arithmetic=arithmetic) as session:
        for n in LENGTHS:
            ids = 5 * np.arange(n)
            np.testing.assert_allclose(session.run(ids), reference.run(ids), rtol=0, atol=tolerance)
        stats = session.stats()
        assert stats.gpu_layers == 3 and stats.gpu_arithmetic == arithmetic and session.device
        assert stats.peak_bytes <= stats.claimed_bytes
        parts = stats.arena_bytes + stats.bookkeeping_bytes + stats.stack_bytes + stats.gpu_bytes
        assert stats.peak_bytes == parts


@pytest.mark.parametrize(
    "places", (("gpu", "cpu", "cpu", "gpu"), ("gpu", "gpu", "cpu", "cpu"), ("cpu", "gpu", "cpu", "gpu"))
)
def test_layers_on_both(places: tuple[str, ...], make_gpu_package: Callable[..., Path]) -> None:
    path = make_gpu_package(places=places, table_resident=places[0] == "cpu")
    reference = Reference(Package.open(path), gpu_arithmetic="float")
    with Session(path, gpu="required", gpu_arithmetic="float") as session:
        for n in LENGTHS:
            ids = 7 * np.arange(n)
            np.testing.assert_allclose(session.run(ids), reference.run(ids), rtol=0, atol=3e-2)
        assert session.stats().gpu_layers == places.count("gpu")
        session.evict()
        np.testing.assert_allclose(session.run(ids), reference.run(ids), rtol=0, atol=3e-2)


def test_gpu_switched_off_is_the_cpu_exactly(gpu_package: Path) -> None:
    ids = np.arange(20)
    with Session(gpu_package, gpu="off") as session:
        output = session.run(ids)
        assert session.stats().gpu_layers == 0 and session.stats().gpu_arithmetic is None
        assert session.stats().gpu_bytes == 0
        assert "switched off" in session.device
    np.testing.assert_allclose(output, Reference(Package.open(gpu_package)).run(ids), rtol=1e-5, atol=2e-6)


def test_package_without_a_gpu(package: Path) -> None:
    with Session(package) as session:
        assert session.device == ""
    with pytest.raises(EngineError, match="places no layer on a GPU"):
        Session(package, gpu="required")


def test_runs_repeat_exactly(gpu_package: Path) -> None:
    ids = np.arange(33)
    with Session(gpu_package) as one, Session(gpu_package, threads=1, lanes=1, direct=False) as two:
        first = one.run(ids)
        for n in (3, 40):
            one.run(np.arange(n))
            assert np.array_equal(one.run(ids), first)
            assert np.array_equal(two.run(ids), first)


def test_eviction_empties_the_preload_buffer(gpu_package: Path) -> None:
    with Session(gpu_package, gpu="required") as session:
        before = session.run([1, 2, 3])
        held, base = session.stats().resident_bytes, session.stats().io_bytes
        session.evict(0)
        assert session.stats().resident_bytes == held > 0
        for size_bytes in (1, None):
            session.evict(size_bytes)
            assert session.stats().resident_bytes == 0
            assert np.array_equal(session.run([1, 2, 3]), before)
            assert session.stats().resident_bytes == held
            assert session.stats().io_bytes == base + held
        assert np.array_equal(session.run([1, 2, 3]), before)
        assert session.stats().io_bytes == base


def test_two_sessions_in_two_threads(gpu_package: Path) -> None:
    ids = np.arange(30)
    with Session(gpu_package) as session:
        expected = session.run(ids)
    same: list[bool] = []

    def work() -> None:
        with Session(gpu_package, gpu="required") as own:
            same.extend(np.array_equal(own.run(ids), expected) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(same) == 40 and all(same)


def test_trace_has_a_track_for_the_gpu(gpu_package: Path, tmp_path: Path) -> None:
    with Session(gpu_package, gpu="required", gpu_arithmetic="float", storage=EmulatedStorage(5_000_000)) as session:
        session.run(np.arange(40))
        session.run(np.arange(40))
        stats, trace = session.stats(), session.trace()
        session.write_trace(tmp_path / "run.json")
    gpu = [e for e in trace if e.track == GPU and e.name != "stall"]
    stages = ["qkv", "attention", "out", "norm", "up", "down", "norm"]
    assert [e.name for e in gpu] == ["embed", *stages * 3, "hand-over"]
    assert [e.layer for e in gpu][1:-1] == [layer for layer in (0, 1, 3) for _ in stages]
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(gpu))
    assert all(e.begin_ns <= e.end_ns <= (stats.run_us + 1) * 1000 for e in trace)
    head = next(e for e in trace if e.name == "head")
    # PoCL's clock is the host's: the two agree to the length of the call that was timed.
    assert gpu[-1].end_ns <= head.begin_ns + 1_000_000
    for e in trace:  # nothing computes before it has been read
        if e.name == "check":
            assert e.end_ns <= min(c.begin_ns for c in gpu if c.layer == e.layer) + 1_000_000
    assert stats.stall_us > 0 and any(e.name == "stall" and e.track == GPU for e in trace)
    for rows in (json.loads((tmp_path / "run.json").read_text())["traceEvents"], trace.to_chrome()["traceEvents"]):
        row = next(e["tid"] for e in rows if e["ph"] == "M" and e["args"]["name"] == "GPU")
        assert sum(e["ph"] == "X" and e["tid"] == row for e in rows) >= len(gpu)


def test_corrupt_shard_fails_one_run(gpu_copy: Path) -> None:
    package = Package.open(gpu_copy)
    extent = package.extents[-1]
    record = package.records[extent["block"], extent["level"], extent["first"]]
    good = (gpu_copy / "shards.bin").read_bytes()
    with Session(gpu_copy, gpu="required") as session:
        before = session.run([1, 2, 3])
        data = bytearray(good)
        data[int(record["offset"])] ^= 1
        (gpu_copy / "shards.bin").write_bytes(data)
        with pytest.raises(PackageError, match=f"corrupt at block {extent['block']}"):
            session.run([1, 2, 3])
        (gpu_copy / "shards.bin").write_bytes(good)
        assert np.array_equal(session.run([1, 2, 3]), before)
