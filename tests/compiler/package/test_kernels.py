"""kernels.so: written, cached, and dependent on what it should depend on. Needs apache-tvm and a C compiler."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.compiler.package import kernels, kernels_process
from stic.runtime.errors import SticError, TargetError, ToolchainError
from stic.schedules.shape import KernelShape
from stic.targets.target import load

SHAPE = KernelShape(32, 16, "gelu", 1e-12, 1e-12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_library_loads_and_is_cached(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a" / "kernels.so", tmp_path / "b" / "kernels.so"
    kernels.generate(SHAPE, load("host"), first)
    assert hasattr(ctypes.CDLL(str(first)), "stic_dot")
    monkeypatch.setattr(kernels, "_compile", lambda *_: pytest.fail("the cache was not used"))
    kernels.generate(SHAPE, load("host"), second)
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["kernels.so"] and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("style", ["mali", "adreno"])
@pytest.mark.parametrize("q", [4, 8])
def test_a_gpu_s_program_is_text_and_launches(style: str, q: int, cache: Path, tmp_path: Path) -> None:
    program = kernels.generate_program(SHAPE, style, "float16", q, tmp_path / "kernels.cl")
    text = program.path.read_text()
    names = [name.decode() for name in program.launches["name"]]
    assert "stic_add_norm" in names and len(set(names)) == len(names)
    assert all(f"__kernel void {name}(" in text for name in names)
    assert (program.launches["local"] >= 1).all() and (program.launches["group"] >= 1).all()


def test_a_gpu_s_program_is_cached(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kernels.generate_program(SHAPE, "mali", "float32", 4, tmp_path / "a" / "kernels.cl")
    monkeypatch.setattr(kernels, "_in_process", lambda *_: pytest.fail("the cache was not used"))
    second = kernels.generate_program(SHAPE, "mali", "float32", 4, tmp_path / "b" / "kernels.cl")
    assert first.path.read_bytes() == second.path.read_bytes() and (first.launches == second.launches).all()
    assert [path.name for path in first.path.parent.iterdir()] == ["kernels.cl"]
    keys = {
        kernels.program_key(SHAPE, "mali", "float32", 4),
        kernels.program_key(SHAPE, "mali", "float16", 4),
        kernels.program_key(SHAPE, "adreno", "float32", 4),
        kernels.program_key(SHAPE, "mali", "float32", 8),
        kernels.program_key(replace(SHAPE, hidden=48), "mali", "float32", 4),
    }
    assert len(keys) == 5


def test_a_damaged_cache_is_filled_again(cache: Path, tmp_path: Path) -> None:
    first = kernels.generate_program(SHAPE, "mali", "float16", 4, tmp_path / "kernels.cl").path.read_bytes()
    for path in cache.glob("*.cl.json"):
        path.write_text("{")
    assert kernels.generate_program(SHAPE, "mali", "float16", 4, tmp_path / "kernels.cl").path.read_bytes() == first


def test_cached_kernels_need_no_tvm(cache: Path, tmp_path: Path) -> None:
    kernels.generate(SHAPE, load("host"), tmp_path / "kernels.so")
    code = (
        "import sys; from pathlib import Path; from stic.compiler import pipeline\n"
        "from stic.compiler.package import kernels\n"
        "from stic.schedules.shape import KernelShape; from stic.targets.target import load\n"
        f"kernels.generate({SHAPE!r}, load('host'), Path({str(tmp_path / 'again.so')!r}))\n"
        "print(*[name for name in ('tvm', 'ortools', 'joblib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert (tmp_path / "again.so").read_bytes() == (tmp_path / "kernels.so").read_bytes()


def test_compiling_leaves_tvm_to_another_process(cache: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from stic.compiler import pipeline\n"
        "from stic.compiler.package import kernels\n"
        "from stic.schedules.shape import KernelShape; from stic.targets.target import load\n"
        "def mib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"before, folder = mib(), Path({str(tmp_path)!r})\n"
        f"kernels.generate({SHAPE!r}, load('host'), folder / 'kernels.so')\n"
        f"kernels.generate_program({SHAPE!r}, 'mali', 'float16', 4, folder / 'kernels.cl')\n"
        "print(mib() - before, *[name for name in ('tvm', 'tvm_ffi', 'torch') if name in sys.modules])\n"
    )
    # In a folder with a file of tvm's name: what lies where a user works is nothing to import.
    (tmp_path / "tvm.py").write_text("raise SystemExit(3)\n")
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    grown, *imported = done.stdout.split()
    assert float(grown) < 24 and not imported  # TVM alone takes 150
    assert (tmp_path / "kernels.so").is_file() and (tmp_path / "kernels.cl").is_file()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("status", "answer", "kind", "message"),
    [
        (0, ("refused", TargetError("no such tiles: tune again")), TargetError, "^no such tiles: tune again$"),
        (0, ("refused", ToolchainError("no LLVM")), ToolchainError, "^no LLVM$"),
        (0, ("failed", "ValueError: 7"), RuntimeError, "ValueError: 7"),
        (-signal.SIGKILL, None, ToolchainError, "ended by signal 9, as where memory is short"),
        (1, None, RuntimeError, "failed with status 1: what it said"),
    ],
)
def test_errors_come_back(
    status: int,
    answer: tuple[str, object] | None,
    kind: type[Exception],
    message: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = b"" if answer is None else pickle.dumps(answer)
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), status, data, b"what it said")
    )
    with pytest.raises(kind, match=message):
        kernels.generate_program(SHAPE, "mali", "float16", 4, tmp_path / "kernels.cl")
    assert not cache.exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "kind"), [(TargetError("no such tiles"), "refused"), (ValueError("odd"), "failed"), (None, "done")]
)
def test_the_process_answers_with_errors(error: Exception | None, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        if error is not None:
            raise error

    monkeypatch.setitem(kernels_process._FUNCTIONS, "work", work)
    found, result = kernels_process._answer("work", ())
    assert found == kind
    assert result is error if isinstance(error, SticError) else str(error or "") in str(result)


def test_a_defect_there_is_one_here() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        kernels._in_process("nothing")


def _children(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, path.read_text().split())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("killed", ["parent", "child"])
def test_neither_process_outlives_the_other(killed: str, cache: Path, tmp_path: Path) -> None:
    code = (
        "import signal; from pathlib import Path; from stic.compiler.package import kernels\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from stic.schedules.shape import KernelShape; from stic.targets.target import load\n"
        f"target, out = load('host'), Path({str(tmp_path / 'kernels.so')!r})\n"
        f"kernels.kernels_key({SHAPE!r}, target); print('ready', flush=True)\n"
        f"kernels.generate({SHAPE!r}, target, out)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    while not (children := [pid for pid in _children(parent.pid) if _compiles(pid)]):
        assert parent.poll() is None
        time.sleep(0.01)
    os.kill(parent.pid if killed == "parent" else children[0], signal.SIGINT if killed == "parent" else signal.SIGKILL)
    _, said = parent.communicate(timeout=60)
    assert ("KeyboardInterrupt" if killed == "parent" else "ended by signal 9") in said
    for _ in range(1000):  # a process that is killed takes a moment to give its memory back
        if not any(_compiles(pid) for pid in children):
            break
        time.sleep(0.01)
    assert not any(_compiles(pid) for pid in children)
    assert not (tmp_path / "kernels.so").exists() and not cache.exists()


def _compiles(pid: int) -> bool:
    """Whether a process is there and is the one that compiles kernels."""
    try:
        return b"kernels_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_same_input_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for name in ("one", "two"):
        monkeypatch.setenv("STIC_CACHE", str(tmp_path / name))
        kernels.generate(SHAPE, load("x86-64-v3"), tmp_path / "kernels.so")
        contents.append((tmp_path / "kernels.so").read_bytes())
    assert contents[0] == contents[1]


def test_key_follows_shape_and_target() -> None:
    host = load("host")
    keys = {
        kernels.kernels_key(shape, target)
        for shape in (SHAPE, replace(SHAPE, hidden=48), replace(SHAPE, norm_epsilon=1e-5))
        for target in (host, replace(host, tvm={"kind": "llvm"}), replace(host, features=()))
    }
    assert len(keys) == 9


def test_missing_linker(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("STIC_CC", raising=False)
    with pytest.raises(ToolchainError, match="no C compiler for target host"):
        kernels.generate(SHAPE, load("host"), tmp_path / "kernels.so")
    assert not (tmp_path / "kernels.so").exists() and not cache.exists()
