"""kernels.so: written, cached, and dependent on what it should depend on. Needs apache-tvm and a C compiler."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.compiler.package import kernels
from stic.runtime.errors import ToolchainError
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
    monkeypatch.setattr(kernels, "_lower", lambda *_: pytest.fail("the cache was not used"))
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
