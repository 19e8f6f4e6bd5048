"""Session over the C engine: answers, refusals, eviction, threads, traces. Needs a C compiler."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.device.synthetic import VOCABULARY
from stic.compiler.package.assembly import ROW_LANES
from stic.runtime import native
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError, InputError, PackageError, ToolchainError
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(package, tmp_path / "copy.stic"))


def test_run_equals_reference(package: Path) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    with Session(package) as session:
        output = session.run(ids)
    assert output.shape == (64,) and output.dtype == np.float32
    assert np.abs(output - Reference(Package.open(package)).run(ids)).max() < 1e-4


def test_runs_repeat_exactly(package: Path) -> None:
    ids = np.arange(33)
    with Session(package) as one, Session(package, threads=1, lanes=1) as two:
        first = one.run(ids)
        for _ in range(3):
            assert np.array_equal(one.run(ids), first)
            assert np.array_equal(two.run(ids), first)


@pytest.mark.parametrize(
    ("ids", "types", "words"),
    (
        ([], None, "no tokens"),
        (list(range(41)), None, "compiled for at most 40"),
        ([0, VOCABULARY], None, f"token 1 has id {VOCABULARY}"),
        ([-1], None, "token 0 has id -1"),
        ([1, 2], [0, 1], "token 1 has type 1"),
        ([1, 2], [0], "1 types"),
        ([1.5], None, "whole numbers"),
        ([[1, 2]], None, "flat"),
        ([1 << 40], None, "32 bits"),
    ),
)
def test_wrong_inputs(package: Path, ids: list[int], types: list[int] | None, words: str) -> None:
    with Session(package) as session:
        before = session.run([7, 8])
        with pytest.raises(InputError, match=words):
            session.run(ids, types)
        assert np.array_equal(session.run([7, 8]), before)


def test_run_after_close(package: Path) -> None:
    session = Session(package)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run([1])


@pytest.mark.parametrize("options", ({"threads": 99}, {"lanes": 17}))
def test_more_than_the_package_has_room_for(package: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="more than the package has memory for"):
        Session(package, **options)
    with pytest.raises(InputError, match="at least 1"):
        Session(package, threads=0)


def test_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is this a stic package"):
        Session(tmp_path / "nothing")
    (tmp_path / "index.bin").write_bytes(b"something else")
    with pytest.raises(PackageError, match="does not start with a stic header"):
        Session(tmp_path)


def test_corrupt_shard_leaves_the_session_usable(copy: Path) -> None:
    package = Package.open(copy)
    extent = package.extents[-1]
    at = int(package.records[extent["block"], extent["level"], extent["first"]]["offset"])
    good = (copy / "shards.bin").read_bytes()
    with Session(copy, direct=False) as session:
        before = session.run([1, 2, 3])
        with (copy / "shards.bin").open("r+b") as file:
            file.seek(at)
            file.write(bytes([good[at] ^ 1]))
        with pytest.raises(PackageError, match=f"corrupt at block {extent['block']}, slice 0"):
            session.run([1, 2, 3])
        (copy / "shards.bin").write_bytes(good)
        assert np.array_equal(session.run([1, 2, 3]), before)


def test_file_that_shrinks_under_the_session(copy: Path) -> None:
    good = (copy / "shards.bin").read_bytes()
    with Session(copy) as session:
        before = session.run([1, 2, 3])
        os.truncate(copy / "shards.bin", 0)
        with pytest.raises(EngineError, match="changed since it was opened"):
            session.run([1, 2, 3])
        (copy / "shards.bin").write_bytes(good)
        assert np.array_equal(session.run([1, 2, 3]), before)


def test_file_system_without_direct_reads(package: Path, tmp_path: Path) -> None:
    """A file system in memory: kernels before 6.6 refuse O_DIRECT there, and the session reads through the cache."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("needs a writable /dev/shm")
    copy = Path(shutil.copytree(package, memory / f"stic-{os.getpid()}.stic"))
    try:
        with Session(package) as disk, Session(copy) as session, Session(package, direct=False) as buffered:
            assert np.array_equal(session.run([1, 2, 3]), disk.run([1, 2, 3]))
            assert np.array_equal(buffered.run([1, 2, 3]), disk.run([1, 2, 3]))
            assert not buffered.stats().direct
    finally:
        shutil.rmtree(copy)


def test_corrupt_embedding_row(copy: Path) -> None:
    stride = int(Package.open(copy).header["row_stride"])
    with (copy / "embeddings.bin").open("r+b") as file:
        file.seek(5 * stride)
        file.write(b"\x55\xaa")
    with Session(copy) as session:
        session.run([4, 6])
        with pytest.raises(PackageError, match="token 5"):
            session.run([4, 5])


def test_file_of_another_package(copy: Path, make_package: Callable[..., Path]) -> None:
    other = make_package(((4, 4), (3, 3)))
    shutil.copyfile(other / "shards.bin", copy / "shards.bin")
    with pytest.raises(PackageError):
        Session(copy)


def test_eviction_starts_at_the_top(make_package: Callable[..., Path]) -> None:
    bits = ((4, 4), (4, 4), (4, 4))
    package = make_package(bits, bits)
    with Session(package) as session:
        before = session.run([1, 2, 3])
        held, base = session.stats().resident_bytes, session.stats().io_bytes
        session.evict(1)
        assert 0 < session.stats().resident_bytes < held
        assert np.array_equal(session.run([1, 2, 3]), before)
        assert {e.layer for e in session.trace() if e.name == "read"} == {2}
        assert session.stats().resident_bytes == held
        session.evict()
        assert session.stats().resident_bytes == 0
        assert np.array_equal(session.run([1, 2, 3]), before)
        assert session.stats().io_bytes == base + held
        reads = [e.layer for e in session.trace() if e.name == "check"]
        assert sorted(set(reads)) == [0, 1, 2]


def test_stats_and_trace(package: Path, tmp_path: Path) -> None:
    with Session(package) as session:
        session.run(np.arange(20))
        stats, trace = session.stats(), session.trace()
        session.write_trace(tmp_path / "run.json")
    assert stats.peak_bytes == stats.arena_bytes + stats.bookkeeping_bytes + stats.stack_bytes <= stats.claimed_bytes
    assert stats.io_bytes == sum(e.bytes for e in trace if e.name in ("read", "rows"))
    assert stats.io_requests == sum(e.name in ("read", "rows") for e in trace)
    assert all(e.submit_ns <= e.begin_ns <= e.end_ns <= (stats.run_us + 1) * 1000 for e in trace)
    compute = [e for e in trace if e.track < 0]
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(compute))
    for e in trace:  # nothing computes before it has been read
        if e.name == "check":
            assert e.end_ns <= min(c.begin_ns for c in compute if c.layer == e.layer and c.name == "qkv")
    assert json.loads((tmp_path / "run.json").read_text())["traceEvents"]


def test_emulated_storage_takes_its_time(package: Path) -> None:
    with Session(package, storage=EmulatedStorage(2_000_000)) as session:
        session.run([1, 2, 3])
        stats = session.stats()
    assert stats.emulated
    assert stats.run_us >= stats.io_bytes / 2_000_000 * 1e6


def test_emulated_storage_serves_so_many_requests(package: Path) -> None:
    ids = list(range(0, VOCABULARY, VOCABULARY // 32))  # each in a block of its own
    with Session(package, storage=EmulatedStorage(1 << 40, 1000)) as session:
        session.run(ids)
        stats = session.stats()
    assert stats.emulated
    assert stats.run_us >= (stats.io_requests - 2) * 1000  # it may have saved up a millisecond


def test_storage_that_cannot_be() -> None:
    for limits in ((0, None), (1, 0), (-5, 1)):
        with pytest.raises(InputError, match="at least 1"):
            EmulatedStorage(*limits)
    for limits in ((2 << 40, None), (1, 2 * 10**9)):
        with pytest.raises(InputError, match="at most"):
            EmulatedStorage(*limits)


def test_one_call_at_a_time(package: Path) -> None:
    with Session(package, storage=EmulatedStorage(400_000)) as session:
        expected = session.run([1, 2, 3])
        outputs: list[np.ndarray] = []
        refused: list[str] = []

        def work() -> None:
            while not (outputs and refused):
                try:
                    outputs.append(session.run([1, 2, 3]))
                except EngineError as error:
                    refused.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all("another thread" in message for message in refused)
        assert all(np.array_equal(output, expected) for output in outputs)


def test_two_sessions_in_two_threads(package: Path) -> None:
    ids = np.arange(30)
    with Session(package) as session:
        expected = session.run(ids)
    same: list[bool] = []

    def work() -> None:
        with Session(package) as own:
            same.extend(bool(np.array_equal(own.run(ids), expected)) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 10


def test_a_forked_child_is_told_to_open_its_own(package: Path) -> None:
    script = (
        "import os, sys; from stic.runtime.session import Session; s = Session(sys.argv[1]); s.run([1])\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try: s.run([1]); os._exit(3)\n"
        "    except Exception as e: print(e, flush=True); s.close(); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0; s.run([1]); s.close()"
    )
    done = subprocess.run([sys.executable, "-c", script, str(package)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "another process" in done.stdout


def test_ctrl_c_during_a_run(package: Path) -> None:
    with Session(package, storage=EmulatedStorage(300_000)) as session:
        expected = session.run([1, 2])
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()  # in here, as it may end before this thread goes on: outside, that would end all of pytest
            for _ in range(100):
                session.run([1, 2])
        timer.join()
        assert np.array_equal(session.run([1, 2]), expected)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_compute_threads_keep_to_the_packages_cores(copy: Path, with_header: Callable[..., bytes]) -> None:
    everywhere = os.sched_getaffinity(0)
    core = min(everywhere)
    (copy / "index.bin").write_bytes(with_header((copy / "index.bin").read_bytes(), cores=1 << core))
    before = set(os.listdir("/proc/self/task"))
    with Session(copy) as session:
        own = [os.sched_getaffinity(int(thread)) for thread in set(os.listdir("/proc/self/task")) - before]
        assert own.count({core}) == session.info.threads - 1 and own.count(everywhere) == ROW_LANES
        session.run([1, 2])
        assert os.sched_getaffinity(0) == everywhere


def test_rows_are_read_on_more_lanes_than_weights(package: Path) -> None:
    ids = list(range(0, VOCABULARY, VOCABULARY // 32))  # each in a block of its own
    with Session(package, storage=EmulatedStorage(4_000_000)) as session:
        expected = session.run(ids)
        tracks = {name: {e.track for e in session.trace() if e.name == name} for name in ("rows", "read")}
        assert 2 < len(tracks["rows"]) <= ROW_LANES and tracks["read"] and tracks["read"] <= {0, 1}
    with Session(package, lanes=1) as session:
        assert np.array_equal(session.run(ids), expected)
        assert {e.track for e in session.trace() if e.name == "read"} == {0}


def test_library_from_the_environment(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = native.find_library()
    monkeypatch.setenv("STIC_LIBRARY", str(tmp_path / "missing.so"))
    with pytest.raises(ToolchainError, match="not a file"):
        native.find_library()
    monkeypatch.setenv("STIC_LIBRARY", str(built))
    assert native.find_library() == built


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("STIC_HOST_CC", raising=False)
    monkeypatch.delenv("STIC_LIBRARY", raising=False)
    with pytest.raises(ToolchainError, match="no C compiler"):
        native.find_library()


def test_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIC_HOST_CC", "false")
    monkeypatch.setenv("STIC_CACHE", str(tmp_path))
    monkeypatch.delenv("STIC_LIBRARY", raising=False)
    with pytest.raises(ToolchainError, match="could not be built"):
        native.find_library()
    assert not list(tmp_path.rglob("*.so"))
