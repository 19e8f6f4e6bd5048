"""Find a C compiler for a target, link kernels with it, and build the engine with it.

Search order for aarch64 on another machine: aarch64-linux-gnu-gcc, clang of the NDK at $ANDROID_NDK_HOME, `python -m
ziglang cc`. `$STIC_CC` overrides the search (a command line). Built files live in a cache, keyed by everything they
depend on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stic.runtime.errors import ToolchainError
from stic.runtime.native import FLAGS, cache_dir
from stic.targets.target import Target

_TIMEOUT_S = 120
_API = 28  # oldest Android that the engine is built for
_WARNINGS = ("-Wall", "-Wextra", "-Werror")
_FLAGS = (*FLAGS, *_WARNINGS)


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


def find_c_compiler(target: Target) -> Compiler:
    """Find what compiles and links C for the target. Raises ToolchainError that says what was looked for."""
    if command := os.environ.get("STIC_CC"):
        return Compiler(tuple(shlex.split(command)), "the compiler in $STIC_CC")
    if target.arch == platform.machine():
        for name in ("cc", "gcc", "clang"):
            if path := shutil.which(name):
                return Compiler((path,), name)
        looked, advice = ["cc, gcc and clang on PATH"], "install a C compiler (Debian: apt-get install gcc)"
    elif target.arch == "aarch64":
        if path := shutil.which("aarch64-linux-gnu-gcc"):
            return Compiler((path,), "aarch64-linux-gnu-gcc")
        if (ndk := _ndk_clang(target.arch)) is not None:
            return Compiler((str(ndk),), "NDK clang")
        looked = ["aarch64-linux-gnu-gcc on PATH", "NDK clang under $ANDROID_NDK_HOME"]
        advice = "install gcc-aarch64-linux-gnu, set ANDROID_NDK_HOME, or pip install ziglang"
    else:
        looked, advice = [], "pip install ziglang"
    if importlib.util.find_spec("ziglang") is not None:
        command_line = (sys.executable, "-m", "ziglang", "cc", "-target", f"{target.arch}-linux-gnu")
        return Compiler(command_line, "zig cc")
    looked.append("the Python package ziglang")
    raise ToolchainError(
        f"no C compiler for target {target.name} ({target.arch}); looked for {', '.join(looked)}; {advice}"
    )


def _ndk_clang(arch: str) -> Path | None:
    home = os.environ.get("ANDROID_NDK_HOME")
    if not home:
        return None
    found = sorted(Path(home).glob(f"toolchains/llvm/prebuilt/*/bin/{arch}-linux-android{_API}-clang"))
    return found[0] if found else None


def link_shared(objects: Sequence[Path], out: Path, target: Target) -> None:
    """Link objects into a stripped shared library that exports stic_* and depends on nothing.

    `out` appears whole or not at all.
    """
    compiler = find_c_compiler(target)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".link-") as folder:
        partial, exports = Path(folder) / out.name, Path(folder) / "exports"
        exports.write_text("{ global: stic_*; local: *; };\n")
        arguments = ["-shared", "-nostdlib", "-s", "-Wl,-z,noexecstack", "-Wl,-z,defs"]
        arguments.append(f"-Wl,--version-script={exports}")
        arguments += ["-o", str(partial), *map(str, objects)]
        compiler.run(arguments, f"linking {out.name}")
        os.replace(partial, out)


def build_engine(target: Target, out_dir: Path) -> EngineBuild:
    """Compile runtime/src/*.c: stic_run.c with the others into `stic_run`, all others into `libstic.so`.

    Both are placed in out_dir; an unchanged engine is taken from the cache.
    """
    root = _runtime_root()
    sources = sorted((root / "src").glob("*.c"))
    if not sources:
        raise ToolchainError(f"the C engine's sources are missing at {root / 'src'}; reinstall stic")
    compiler = find_c_compiler(target)
    headers = sorted([*(root / "src").glob("*.h"), *(root / "include").glob("*.h")])
    key = hashlib.sha256(repr((compiler.command, compiler.version, _FLAGS, target.arch)).encode())
    for path in (*sources, *headers):
        content = path.read_bytes()
        key.update(f"{path.name}:{len(content)}:".encode() + content)
    cached = cache_dir() / "engine" / key.hexdigest()[:32]
    if not cached.is_dir():
        _compile_engine(compiler, root, sources, cached)
    build = EngineBuild(out_dir / "libstic.so", out_dir / "stic_run")
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in (build.library, build.runner):
        _copy(cached / path.name, path)
    return build


def _runtime_root() -> Path:
    import stic.runtime

    return Path(next(iter(stic.runtime.__path__)))


def _compile_engine(compiler: Compiler, root: Path, sources: Sequence[Path], cached: Path) -> None:
    """Compile into a folder beside `cached`, then rename it: a cache entry is whole or absent."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".build-") as folder:
        work = Path(folder) / "entry"
        work.mkdir()
        includes = [f"-I{root / 'include'}", f"-I{root / 'src'}"]
        library = [str(path) for path in sources if path.name != "stic_run.c"]
        everything = [str(path) for path in sources]
        compiler.run([*_FLAGS, *includes, "-shared", "-o", str(work / "libstic.so"), *library, "-ldl"], "libstic.so")
        if len(everything) > len(library):
            compiler.run([*_FLAGS, *includes, "-o", str(work / "stic_run"), *everything, "-ldl"], "stic_run")
        try:
            os.replace(work, cached)
        except OSError:
            if not cached.is_dir():  # another process finished the same entry first
                raise


def _copy(source: Path, destination: Path) -> None:
    """Copy a file so that the destination is never half-written."""
    handle, partial = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}-")
    os.close(handle)
    try:
        shutil.copy(source, partial)
        os.replace(partial, destination)
    except BaseException:
        os.unlink(partial)
        raise
