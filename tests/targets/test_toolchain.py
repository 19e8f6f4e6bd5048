"""Finding compilers, linking, and building the engine. Needs a C compiler."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from stic.compiler.cli import main
from stic.runtime import native
from stic.runtime.errors import ToolchainError
from stic.runtime.native import cache_dir
from stic.targets import toolchain
from stic.targets.target import load
from stic.targets.toolchain import Compiler, build_engine, find_c_compiler, link_shared

HOST = load("host")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STIC_CC", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small runtime folder in place of the real one."""
    root = tmp_path / "runtime"
    (root / "src").mkdir(parents=True)
    (root / "include").mkdir()
    (root / "include" / "answer.h").write_text("int answer(void);\n")
    body = '#include "answer.h"\n__attribute__((visibility("default"))) int answer(void) { return 42; }\n'
    (root / "src" / "answer.c").write_text(body)
    (root / "src" / "stic_run.c").write_text('#include "answer.h"\nint main(void) { return answer(); }\n')
    monkeypatch.setattr(toolchain, "_runtime_root", lambda: root)
    return root


def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("STIC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "stic"


def test_missing_compiler_says_what_was_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_installed(monkeypatch)
    with pytest.raises(ToolchainError, match="looked for cc, gcc and clang"):
        find_c_compiler(HOST)
    if HOST.arch != "aarch64":
        with pytest.raises(ToolchainError, match=r"aarch64-linux-gnu-gcc.*NDK clang.*ziglang.*install"):
            find_c_compiler(load("odroid-n2plus"))


def with_ndk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """An NDK, as far as finding its compiler goes."""
    clang = folder / "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android28-clang"
    clang.parent.mkdir(parents=True)
    clang.write_text("")
    monkeypatch.setenv("ANDROID_NDK_HOME", str(folder))
    return Compiler((str(clang), "-Wl,-z,max-page-size=16384"), "NDK clang")


@pytest.mark.skipif(HOST.arch == "aarch64", reason="on aarch64 its own compiler is used")
def test_kernels_are_linked_by_the_ndk_then_by_zig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_installed(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang" or None)
    assert find_c_compiler(load("odroid-n2plus")).name == "zig cc"
    ndk = with_ndk(tmp_path, monkeypatch)
    assert find_c_compiler(load("odroid-n2plus")) == ndk


@pytest.mark.parametrize("system", toolchain.SYSTEMS)
def test_an_engine_is_built_by_a_compiler_of_its_system(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_installed(monkeypatch)
    ndk = with_ndk(tmp_path, monkeypatch)
    phone = load("snapdragon-8-gen2")
    if system == "android":
        assert find_c_compiler(phone, system) == ndk
        return
    with pytest.raises(ToolchainError, match=f"{system}.*looked for .* on PATH, the Python package ziglang"):
        find_c_compiler(phone, system)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang" or None)
    command = find_c_compiler(phone, system).command
    assert command[4:] == ("-target", f"aarch64-{system}", *(["-dynamic"] if system == "linux-musl" else []))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    if HOST.arch != "aarch64" or system == "linux-musl":
        assert find_c_compiler(phone, system).command == (f"/bin/aarch64-{system}-gcc",)


def test_android_wants_the_ndk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    with pytest.raises(ToolchainError, match=r"aarch64, android\); looked for NDK clang .*; set ANDROID_NDK_HOME$"):
        find_c_compiler(load("snapdragon-8-gen2"), "android")


def test_chosen_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIC_CC", "gcc -m64")
    assert find_c_compiler(HOST).command == ("gcc", "-m64")


def test_link_failure_shows_the_messages_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.o").write_text("not an object")
    with pytest.raises(ToolchainError, match=r"failed at linking k\.so .*bad\.o"):
        link_shared([tmp_path / "bad.o"], tmp_path / "out" / "k.so", HOST)
    assert not list((tmp_path / "out").iterdir())


def test_link_refuses_a_missing_symbol(tmp_path: Path) -> None:
    (tmp_path / "f.c").write_text("float expf(float); float stic_f(float x) { return expf(x); }")
    find_c_compiler(HOST).run(["-c", "-fPIC", "-o", str(tmp_path / "f.o"), str(tmp_path / "f.c")], "f.c")
    with pytest.raises(ToolchainError, match="expf"):
        link_shared([tmp_path / "f.o"], tmp_path / "f.so", HOST)


def test_compiler_that_cannot_start() -> None:
    with pytest.raises(ToolchainError, match="cannot start"):
        Compiler(("/nonexistent/cc",), "cc").run(["--version"], "nothing")


def test_compiler_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_TIMEOUT_S", 0.05)
    with pytest.raises(ToolchainError, match="did not finish"):
        Compiler(("sleep",), "sleep").run(["5"], "a nap")


def test_engine_is_built_and_cached(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = build_engine(HOST, tmp_path / "out")
    assert ctypes.CDLL(str(build.library)).answer() == 42
    assert subprocess.run([build.runner], check=False, timeout=20).returncode == 42
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "compile_engine", lambda *_, **__: pytest.fail("the cache was not used"))
        build_engine(HOST, tmp_path / "again")
    (engine / "include" / "answer.h").write_text("int answer(void); /* changed */\n")
    build_engine(HOST, tmp_path / "third")
    assert len(list((tmp_path / "cache" / "engine").iterdir())) == 2


def test_the_command_says_what_it_built(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "--target", "host", "-o", str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["arch"], facts["system"]) == (HOST.arch, "linux-gnu")
    assert subprocess.run([facts["runner"]], check=False, timeout=20).returncode == 42
    assert main(["engine", "--target", "host", "--system", "plan9", "-o", str(tmp_path / "other")]) == 2
    assert "android" in capsys.readouterr().err


def test_engine_warning_is_an_error(engine: Path, tmp_path: Path) -> None:
    (engine / "src" / "answer.c").write_text("int answer(void) { int unused; return 0; }\n")
    with pytest.raises(ToolchainError, match="unused"):
        build_engine(HOST, tmp_path / "out")
    assert not list((tmp_path / "cache" / "engine").iterdir())


def test_engine_without_sources(engine: Path, tmp_path: Path) -> None:
    shutil.rmtree(engine / "src")
    with pytest.raises(ToolchainError, match="sources are missing"):
        build_engine(HOST, tmp_path / "out")


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs aarch64-linux-gnu-gcc")
def test_engine_for_another_machine(engine: Path, tmp_path: Path) -> None:
    library = build_engine(load("odroid-n2plus"), tmp_path / "out").library.read_bytes()
    assert library[:4] == b"\x7fELF" and library[18] == 183  # EM_AARCH64


def test_every_engine_is_built_with_the_same_flags(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of $STIC_HOST_CC and of $STIC_CC: a compiler that notes how it is called."""
    log, compiler = tmp_path / "log", tmp_path / "noting-cc"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(native, "_ROOT", engine)
    monkeypatch.delenv("STIC_LIBRARY", raising=False)
    monkeypatch.setenv("STIC_HOST_CC", str(compiler))
    assert ctypes.CDLL(str(native.find_library())).answer() == 42
    monkeypatch.setenv("STIC_CC", str(compiler))
    build_engine(HOST, tmp_path / "out")

    def flags(line: str) -> list[str]:
        words = line.split()
        at = words.index("-o")
        return words[:at] + words[at + 2 :]

    calls = [flags(line) for line in log.read_text().splitlines() if "--version" not in line]
    host, library, program = calls
    assert host == library and set(native.FLAGS) <= set(host)
    shared = [word for word in program if not Path(word).name.startswith("stic_run")]
    assert shared == [word for word in host if word != "-shared"]


@pytest.mark.parametrize("variable", ["STIC_HOST_CC", "STIC_CC"])
def test_a_cache_that_cannot_be_written_is_a_sentence(
    variable: str, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(native, "_ROOT", engine)
    monkeypatch.delenv("STIC_LIBRARY", raising=False)
    with pytest.raises(ToolchainError, match=r"cannot be written to .*: Not a directory; .*STIC_CACHE"):
        native.find_library() if variable == "STIC_HOST_CC" else build_engine(HOST, tmp_path / "out")
