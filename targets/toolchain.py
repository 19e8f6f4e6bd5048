"""Find a C compiler for a target, link kernels with it, and build the engine with it.

Kernels need no C library, so any compiler for their architecture links them: this machine's own or the distribution's
cross compiler, clang of the NDK at $ANDROID_NDK_HOME, `python -m ziglang cc`, in this order. The engine needs one for
the device's system (SYSTEMS). `$STIC_CC` overrides the search (a command line; `$STIC_HOST_CC` is for the engine that
this stic itself loads, see `stic.runtime.native`). Built files live in a cache, keyed by everything they depend on.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stic.runtime.errors import ToolchainError
from stic.runtime.files import copy_file, whole_file
from stic.runtime.native import cache_dir, compile_engine, engine_sources
from stic.targets.target import Target

# What an engine is built for: Linux with glibc, Linux with musl (Alpine, postmarketOS), Android with bionic.
SYSTEMS = ("linux-gnu", "linux-musl", "android")
_TIMEOUT_S = 120
_API = 28  # oldest Android that the engine is built for
# Android's kernels have pages of 4 or of 16 KiB (developer.android.com/guide/practices/page-sizes); old NDKs mean 4.
_ANDROID_PAGES = "-Wl,-z,max-page-size=16384"


@dataclass(frozen=True)
class Compiler:
    """A C compiler driver for one target."""

    command: tuple[str, ...]
    name: str  # for people: which of the known toolchains this is

    def run(self, arguments: Sequence[str], what: str) -> None:
        """Run the compiler. Raises ToolchainError with its messages if it fails or hangs."""
        try:
            done = subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except OSError as error:
            raise ToolchainError(f"cannot start {self.name} ({shlex.join(self.command)}): {error}") from error
        except subprocess.TimeoutExpired as error:
            message = f"{self.name} did not finish {what} in {_TIMEOUT_S} s; try again on an idle machine"
            raise ToolchainError(message) from error
        if done.returncode:
            raise ToolchainError(f"{self.name} failed at {what} (exit {done.returncode}): {done.stderr.strip()}")

    @property
    def version(self) -> str:
        """First line of --version: what the cache is keyed by."""
        try:
            done = subprocess.run([*self.command, "--version"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolchainError(f"cannot ask {self.name} for its version: {error}") from error
        return done.stdout.partition("\n")[0]


@dataclass(frozen=True)
class EngineBuild:
    """The C engine, compiled for one target."""

    library: Path  # libstic.so
    runner: Path  # stic_run


def find_c_compiler(target: Target, system: str | None = None) -> Compiler:
    """Find what compiles and links C for the target, on one of SYSTEMS or (None) without a C library.

    Raises ToolchainError that says what was looked for.
    """
    if command := os.environ.get("STIC_CC"):
        return Compiler(tuple(shlex.split(command)), "the compiler in $STIC_CC")
    looked, advice = [], []
    for what, remedy, found in _candidates(target.arch, system):
        if found is not None:
            return found
        looked.append(what)
        advice.append(remedy)
    code = target.arch if system is None else f"{target.arch}, {system}"
    raise ToolchainError(
        f"no C compiler for target {target.name} ({code}); looked for {', '.join(looked)}; {', or '.join(advice)}"
    )


def _candidates(arch: str, system: str | None) -> Iterator[tuple[str, str, Compiler | None]]:
    """(what is looked for, how to come by it, what was found), best first."""
    native = arch == platform.machine()
    if native and system in (None, "linux-gnu"):
        advice = "install a C compiler (Debian: apt-get install gcc)"
        yield "cc, gcc and clang on PATH", advice, _on_path("cc", "gcc", "clang")
    elif system in (None, "linux-gnu"):
        name = f"{arch}-linux-gnu-gcc"
        yield f"{name} on PATH", f"install gcc-{arch.replace('_', '-')}-linux-gnu", _on_path(name)
    elif system == "linux-musl":
        name = f"{arch}-linux-musl-gcc"
        yield f"{name} on PATH", f"put {name} on PATH", _on_path(name)
    if system == "android" or (system is None and not native):
        yield "NDK clang under $ANDROID_NDK_HOME", "set ANDROID_NDK_HOME", _ndk_clang(arch)
    if system != "android":
        yield "the Python package ziglang", "pip install ziglang", _zig(arch, system or "linux-gnu")


def _on_path(*names: str) -> Compiler | None:
    for name in names:
        if path := shutil.which(name):
            return Compiler((path,), name)
    return None


def _ndk_clang(arch: str) -> Compiler | None:
    home = os.environ.get("ANDROID_NDK_HOME")
    if not home:
        return None
    found = sorted(Path(home).glob(f"toolchains/llvm/prebuilt/*/bin/{arch}-linux-android{_API}-clang"))
    return Compiler((str(found[0]), _ANDROID_PAGES), "NDK clang") if found else None


def _zig(arch: str, system: str) -> Compiler | None:
    if importlib.util.find_spec("ziglang") is None:
        return None
    # zig links musl statically unless told not to, and a static program cannot load kernels.so.
    shared = ("-dynamic",) if system == "linux-musl" else ()
    return Compiler((sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-{system}", *shared), "zig cc")


def link_shared(objects: Sequence[Path], out: Path, target: Target) -> None:
    """Link objects into a stripped shared library that exports stic_* and depends on nothing.

    `out` appears whole or not at all.
    """
    compiler = find_c_compiler(target)
    with whole_file(out) as partial, tempfile.TemporaryDirectory(prefix="stic-") as folder:
        exports = Path(folder) / "exports"
        exports.write_text("{ global: stic_*; local: *; };\n")
        arguments = ["-shared", "-nostdlib", "-s", "-Wl,-z,noexecstack", "-Wl,-z,defs"]
        arguments.append(f"-Wl,--version-script={exports}")
        arguments += ["-o", str(partial), *map(str, objects)]
        compiler.run(arguments, f"linking {out.name}")


def build_engine(target: Target, out_dir: Path, system: str = SYSTEMS[0]) -> EngineBuild:
    """Compile runtime/src/*.c for a target on one of SYSTEMS (for this machine's architecture, linux-gnu is its own).

    stic_run*.c with the others becomes `stic_run`, all others become `libstic.so`. Both are placed in out_dir; an
    unchanged engine is taken from the cache.
    """
    root = _runtime_root()
    compiler = find_c_compiler(target, system)
    sources = engine_sources(root)
    cached = cache_dir() / "engine" / sources.key(compiler.command, compiler.version, target.arch, system)
    if not cached.is_dir():
        compile_engine(compiler.run, sources, cached)
    build = EngineBuild(out_dir / "libstic.so", out_dir / "stic_run")
    for path in (build.library, build.runner):
        copy_file(cached / path.name, path)
    return build


def _runtime_root() -> Path:
    import stic.runtime

    return Path(next(iter(stic.runtime.__path__)))
