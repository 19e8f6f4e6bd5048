"""The emulated phone, and what else runs beside it: needs qemu-aarch64, Debian's apt-get, and a network once."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compiler.conftest import stic, tiny_dir
from tests.device.phone_root import EMULATOR, NoPhone, phone_root
from tests.rpc_devices import RpcDevices
from tests.runtime.conftest import make_package

__all__ = ["make_package", "stic", "tiny_dir"]


@pytest.fixture(scope="session")
def phone_files() -> Path:
    """Folder with the phone's tree as `root/`, and its Python as `python`."""
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs aarch64-linux-gnu-gcc (Debian: gcc-aarch64-linux-gnu)")
    try:
        return phone_root()
    except NoPhone as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def phone_python(phone_files: Path) -> list[str]:
    """Command that starts Python on the phone."""
    return [str(phone_files / "python")]


@pytest.fixture(scope="module")
def phones(phone_python: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RpcDevices]:
    """A tracker with an emulated phone behind it, whose key is `phone`."""
    devices = RpcDevices(tmp_path_factory.mktemp("phones"))
    # pytest cleans up after Ctrl-C, but not after what `timeout` and CI send: phones would stay.
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 143))
    try:
        devices.start_tracker()
        devices.start("phone", phone_python)
        devices.wait_until("the phone", lambda: devices.free("phone") == 1)  # it registers first, then offers itself
        yield devices
    finally:
        signal.signal(signal.SIGTERM, before)
        devices.close()


@pytest.fixture(scope="session")
def emulator(phone_files: Path) -> list[str]:
    """Command that runs a program for arm64 Linux, of glibc or of musl, on the phone's files."""
    return [*EMULATOR, str(phone_files / "root")]


@pytest.fixture(scope="session")
def musl_compiler(phone_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an aarch64-linux-musl-gcc: the distribution's cross compiler, on musl's headers and libraries.

    As Debian's wrapper of that name does it, with the kernel's headers, which musl leaves to others. That compiler's
    functions for atomics ask glibc what the processor has, so they are left out.
    """
    folder, root = tmp_path_factory.mktemp("musl"), phone_files / "root"
    specs = (root / "usr/lib/aarch64-linux-musl/musl-gcc.specs").read_text()
    (folder / "specs").write_text(specs.replace("/usr/", f"{root}/usr/"))
    for name in ("linux", "asm", "asm-generic"):
        (folder / "kernel").mkdir(exist_ok=True)
        (folder / "kernel" / name).symlink_to(Path("/usr/aarch64-linux-gnu/include") / name)
    compiler = folder / "bin" / "aarch64-linux-musl-gcc"
    compiler.parent.mkdir()
    options = f"-mno-outline-atomics -idirafter {folder}/kernel -L{root}/lib/aarch64-linux-musl -specs {folder}/specs"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("aarch64-linux-gnu-gcc")} "$@" {options}\n')
    compiler.chmod(0o755)
    return compiler.parent
