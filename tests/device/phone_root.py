"""A phone's file tree for qemu-user: Python of this Debian release for arm64, with TVM's official aarch64 wheels.

No root rights, no chroot, no binfmt: apt-get resolves and downloads into a state of its own, dpkg-deb unpacks, and a
wrapper starts the interpreter. The tree is made once (half a minute, 450 MB) and kept in stic's cache. Wheels are those
that are installed here, so that both ends of a connection are the same TVM. By hand: python tests/device/phone_root.py
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from stic.runtime.native import cache_dir

EMULATOR = ("qemu-aarch64", "-cpu", "max", "-L")
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
MUSL = ("musl", "musl-dev")  # without what they depend on: the cross compiler is this machine's
WHEELS = ("apache-tvm", "apache-tvm-ffi", "numpy", "ml_dtypes", "typing_extensions", "psutil", "cloudpickle")
_TOOLS = {"qemu-aarch64": "qemu-user", "apt-get": "apt", "dpkg-deb": "dpkg"}
_TIMEOUT_S = 300

# TVM's server starts workers as sys.executable, which would be the bare arm64 interpreter.
_INTERPRETER = "import os, sys; sys.executable = os.path.dirname(os.path.dirname(sys.prefix)) + '/python'\n"
_WRAPPER = """#!/bin/sh
unset PYTHONHOME PYTHONPATH
here=$(dirname "$0")
exec {emulator} "$here/root" "$here/root/usr/bin/{python}" "$@"
"""


class NoPhone(Exception):
    """This machine cannot make the tree; the text says what is needed."""


def phone_root() -> Path:
    """Folder with `python` (runs on this machine) and `root/` (the phone's /), made now if need be.

    Raises NoPhone where tools or the network are missing; any other failure is a RuntimeError.
    """
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise NoPhone(f"the emulated phone needs {tool} (Debian: {package})")
    made = cache_dir() / "phone" / _key()
    if not made.is_dir():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent, prefix=".build-") as folder:
            work = Path(folder) / "entry"
            _make(work, Path(folder) / "downloads")
            try:
                os.replace(work, made)
            except OSError:
                if not made.is_dir():  # another process finished the same tree first
                    raise
    return made


def _key() -> str:
    wheels = tuple((name, version(name)) for name in WHEELS)
    return hashlib.sha256(repr((Path(__file__).read_bytes(), wheels, _debian())).encode()).hexdigest()[:32]


def _debian() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def _run(command: Sequence[str | Path], what: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, cwd=folder)
    except subprocess.TimeoutExpired as error:
        raise NoPhone(f"the emulated phone needs a network: {what} took more than {_TIMEOUT_S} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        first = next((line for line in lines if line.startswith("E")), "".join(lines[-1:]))  # E: of apt, ERROR: of pip
        raise NoPhone(f"the emulated phone could not be made, for {what} failed: {first}")
    return done.stdout


def _make(work: Path, downloads: Path) -> None:
    root = work / "root"
    root.mkdir(parents=True)
    for archive in _download_packages(downloads):
        _run(["dpkg-deb", "-x", archive, root], f"unpacking {archive.name}")
    python = next((root / "usr" / "bin").glob("python3.[0-9]*")).name
    modules = root / "usr" / "lib" / "python3" / "dist-packages"
    _install_wheels(modules, python.removeprefix("python"))
    (modules / "interpreter.pth").write_text(_INTERPRETER)
    wrapper = work / "python"
    wrapper.write_text(_WRAPPER.format(emulator=" ".join(EMULATOR), python=python))
    wrapper.chmod(0o755)
    # Also leaves the bytecode of all that a server imports.
    found = _run([wrapper, "-c", "import platform, tvm.rpc; print(platform.machine())"], "its Python")
    if found.strip() != "aarch64":
        raise RuntimeError(f"the emulated phone's Python says {found!r}")


def _download_packages(folder: Path) -> list[Path]:
    """Debian packages for arm64 with all that they depend on, resolved against an empty system."""
    state, cache = folder / "state", folder / "cache"
    for each in (state / "lists" / "partial", cache / "archives" / "partial"):
        each.mkdir(parents=True)
    status = folder / "status"
    status.touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Dir::State": state,
        "Dir::State::status": status,
        "Dir::Cache": cache,
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    _run(["apt-get", *options, "-qq", "update"], "apt-get update for arm64")
    _run(["apt-get", *options, "-qq", "-y", "--download-only", "install", *PACKAGES], "apt-get for arm64")
    _run(["apt-get", *options, "-qq", "download", *MUSL], "apt-get for arm64", folder)
    return sorted([*(cache / "archives").glob("*.deb"), *folder.glob("*.deb")])


def _install_wheels(folder: Path, python: str) -> None:
    minor = int(platform.libc_ver()[1].partition(".")[2] or 17)  # the tree's C library is this release's
    platforms = [f"manylinux_2_{n}_aarch64" for n in range(17, minor + 1)] + ["manylinux2014_aarch64"]
    tags = ["--implementation", "cp", "--python-version", python]
    tags += [part for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for part in ("--abi", abi)]
    tags += [part for name in platforms for part in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    wheels = [f"{name}=={version(name)}" for name in WHEELS]
    _run([*pip, "--only-binary=:all:", "--target", folder, *tags, *wheels], "aarch64 wheels")


if __name__ == "__main__":
    try:
        print(phone_root())
    except NoPhone as reason:
        sys.exit(str(reason))
