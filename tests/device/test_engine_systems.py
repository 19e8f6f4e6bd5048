"""One set of sources for glibc, musl and bionic: it compiles, it runs the same, and calls what all of them have.

Needs the emulated phone, which brings musl along, and aarch64-linux-gnu-gcc; clang where that is asked for. There is no
NDK here: for Android the tests check that clang takes the sources, and that they call nothing that bionic lacks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.cli import main
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from tests.runtime.test_engine_run import assert_same, inputs_for, run

SOURCES = Path(__file__).resolve().parents[2] / "runtime"
FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES / 'include'}")

# C11 and POSIX.1-2008, as far as bionic has them at API level 28 (AOSP, bionic: libc.map.txt; dl* in libdl).
PORTABLE = frozenset(
    """
    abort atoi bsearch calloc exit free getenv malloc posix_memalign qsort realloc realpath strtod strtof strtol
    strtoll strtoul strtoull
    memchr memcmp memcpy memmove memset strchr strcmp strcpy strcspn strdup strerror strlen strncmp strnlen strrchr
    strspn strstr strtok_r
    fclose feof ferror fflush fgets fopen fprintf fputc fputs fread fseek fseeko ftell ftello fwrite printf putc putchar
    puts remove rename snprintf sscanf vfprintf vsnprintf stderr stdin stdout
    dlclose dlerror dlopen dlsym
    access close fchmod fcntl fdatasync fdopen fileno fstat fsync ftruncate getpid isatty link lseek lstat mkdir mkstemp
    open openat pread pwrite read readlink rmdir stat statvfs sysconf unlink unlinkat write
    closedir dirfd fdopendir opendir readdir rewinddir
    mmap mprotect munmap
    clock_gettime gmtime_r nanosleep time
    pthread_attr_destroy pthread_attr_init pthread_attr_setstacksize pthread_cond_broadcast pthread_cond_destroy
    pthread_cond_init pthread_cond_signal pthread_cond_timedwait pthread_cond_wait pthread_condattr_init
    pthread_condattr_setclock pthread_create pthread_detach pthread_join pthread_mutex_destroy pthread_mutex_init
    pthread_mutex_lock pthread_mutex_trylock pthread_mutex_unlock pthread_once pthread_self pthread_sigmask
    sigaction sigaddset sigemptyset sigfillset
    """.split()
)
# No standard's, but of all three.
COMMON = frozenset({"flock", "getauxval"})
# What headers and compilers add: errno, position independent code, stack protection.
COMPILERS = ("__errno_location", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_")


def test_glibc_and_musl_engines_equal_the_reference_and_each_other(
    make_package: Callable[..., Path],
    emulator: list[str],
    musl_compiler: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("STIC_CC", raising=False)
    monkeypatch.setenv("PATH", f"{musl_compiler}{os.pathsep}{os.environ['PATH']}")
    package = make_package(bits=((16, 8, 5, 2), (6, 4)), resident=((0, 4, 2, 2), (6, 0)), target="raspberry-pi-4")
    inputs = inputs_for(package)[:4]
    outputs = []
    for system in ("linux-gnu", "linux-musl"):
        out = tmp_path / system
        assert main(["engine", "--target", "raspberry-pi-4", "--system", system, "-o", str(out)]) == 0
        assert f"aarch64, {system}" in capsys.readouterr().out
        outputs.append(run([*emulator, str(out / "stic_run")], package, inputs))
    reference = Reference(Package.open(package))
    assert_same(outputs[0], [reference.run(ids) for ids in inputs])
    np.testing.assert_array_equal(*outputs)


@pytest.fixture(scope="module")
def objects(musl_compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every source of the engine compiled against musl, without warnings: name to object."""
    folder = tmp_path_factory.mktemp("objects")
    sources = sorted((SOURCES / "src").glob("*.c"))
    line = [musl_compiler / "aarch64-linux-musl-gcc", *FLAGS, "-c", *sources]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {source.stem: folder / f"{source.stem}.o" for source in sources}


def _symbols(path: Path, which: str) -> set[str]:
    line = ["aarch64-linux-gnu-nm", "--format=posix", which, path]
    lines = subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    return {line.split()[0] for line in lines if line.strip()}


def test_only_one_file_calls_what_systems_have_apart(objects: dict[str, Path]) -> None:
    defined = set().union(*(_symbols(path, "--defined-only") for path in objects.values()))
    for name, path in objects.items():
        outside = _symbols(path, "--undefined-only") - defined - PORTABLE - COMMON
        strange = ", ".join(sorted(symbol for symbol in outside if not symbol.startswith(COMPILERS)))
        if name != "platform":
            assert not strange, f"{name}.c calls {strange}: if not all systems have that, it belongs to platform.c"


def test_clang_takes_the_sources_for_arm(tmp_path: Path) -> None:
    """The NDK's compiler is clang, whose warnings and intrinsics differ from gcc's."""
    if shutil.which("clang") is None:
        pytest.skip("needs clang (Debian: clang)")
    sources = sorted((SOURCES / "src").glob("*.c"))
    line = ["clang", "--target=aarch64-linux-gnu", *FLAGS, "-c", *sources]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_cmake_builds_the_engine_too(emulator: list[str], tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake (Debian: cmake)")
    arm = {"C_COMPILER": "aarch64-linux-gnu-gcc", "SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": "aarch64"}
    cross = [f"-DCMAKE_{name}={value}" for name, value in arm.items()]
    for line in (["-S", SOURCES, "-B", tmp_path, *cross], ["--build", tmp_path, "--parallel", "2"]):
        done = subprocess.run(["cmake", *line], capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
    shown = subprocess.run([*emulator, tmp_path / "stic_run", "--help"], capture_output=True, text=True, timeout=60)
    assert shown.stdout.startswith("usage: stic_run")
