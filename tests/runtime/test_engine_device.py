"""What the engine tells of a device and does to its files. Needs apache-tvm-ffi."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm_ffi")

from stic.runtime import native
from stic.runtime.format import FEATURES, MACHINES, MAJOR, MINOR
from stic.targets.connection import DeviceRefused
from stic.targets.host import HostFunctions
from stic.targets.target import load

call = HostFunctions().call


def test_facts_are_those_of_this_machine() -> None:
    major, minor = native.header_version()
    assert call("stic_device", "version") == major << 16 | minor
    assert (call("stic_device", "format_major"), call("stic_device", "format_minor")) == (MAJOR, MINOR)
    host = load("host")
    assert MACHINES[call("stic_device", "architecture")] == host.arch
    assert all(call("stic_device", "features") >> FEATURES.index(name) & 1 for name in host.features)
    assert call("stic_device", "cores") == len(os.sched_getaffinity(0))
    assert call("stic_device", "page_bytes") == os.sysconf("SC_PAGESIZE")
    assert 0 < call("stic_device", "available_bytes") < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    with pytest.raises(DeviceRefused, match="stic_device knows"):
        call("stic_device", "colour")


def test_a_file_is_written_in_parts_and_renamed(tmp_path: Path) -> None:
    part, whole = str(tmp_path / "file.part"), str(tmp_path / "file")
    assert call("stic_file_bytes", part) == -1
    data = os.urandom(300_000)
    assert call("stic_write", part, 0, data[:200_000]) == 200_000
    assert call("stic_write", part, 100_000, data[100_000:]) == 300_000
    assert call("stic_crc32", part, 0, 1 << 40) == zlib.crc32(data)
    assert call("stic_crc32", part, 70_000, 80_000) == zlib.crc32(data[70_000:150_000])
    assert call("stic_write", part, 250_000, b"tiny") == 250_004
    call("stic_rename", part, whole)
    assert Path(whole).read_bytes() == data[:250_000] + b"tiny"
    assert call("stic_remove", whole) == 1 and call("stic_remove", whole) == 0


def test_directories(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    for _ in range(2):
        call("stic_make_directory", f"{folder}")
    names = {"one", "two words", "thrée"}
    for name in names:
        (folder / name).write_text("")
    room = np.zeros(100, np.uint8)
    used = call("stic_list", str(folder), room)
    assert set(room[:used].tobytes().decode().split("/")[:-1]) == names
    assert call("stic_list", str(folder), np.zeros(3, np.uint8)) == used
    assert call("stic_list", str(tmp_path / "none"), room) == 0
    (tmp_path / "link").symlink_to(folder)
    assert call("stic_list", str(tmp_path / "link"), room) == 0
    assert call("stic_free_bytes", str(folder)) > 0
    with pytest.raises(DeviceRefused, match=r"cannot remove .*not empty"):
        call("stic_remove", str(folder))


def test_a_lock_is_held_by_one_process(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    held = call("stic_lock", path)
    assert held >= 0
    child = os.fork()
    if child == 0:
        os._exit(1 if call("stic_lock", path) == -1 else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    call("stic_unlock", held)


def test_noise_fills_a_file(tmp_path: Path) -> None:
    call("stic_fill", str(tmp_path / "noise"), 100_001)
    data = (tmp_path / "noise").read_bytes()
    assert len(data) == 100_001 and len(zlib.compress(data)) > 99_000


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("stic_write", ("/nowhere/file", 0, b"x"), "cannot create /nowhere/file: No such file or directory"),
        ("stic_write", ("/dev/full", 0, b"x"), "cannot write /dev/full"),
        ("stic_write", ("relative", -1, b"x"), "stic_write"),
        ("stic_write", ("relative", 0, "text"), "stic_write"),
        ("stic_crc32", ("/nowhere", 0, 1), "cannot open /nowhere"),
        ("stic_crc32", ("/dev/null", 2**62, 2**62), "stic_crc32"),
        ("stic_rename", ("/nowhere", "/there"), "cannot open /nowhere"),
        ("stic_free_bytes", ("/nowhere",), "cannot ask for the free space of /nowhere"),
        ("stic_make_directory", ("relative",), "absolute path"),
        ("stic_make_directory", ("/dev/null/a",), "cannot make the directory /dev/null/a: Not a directory"),
        ("stic_lock", ("/nowhere/lock",), "cannot create"),
        ("stic_unlock", (-1,), "stic_unlock"),
        ("stic_fill", ("/nowhere/x", 1), "cannot create /nowhere/x"),
        ("stic_file_bytes", ("p" * 5000,), "stic_file_bytes"),
        ("stic_list", ("/tmp", np.zeros(4, np.int32)), "stic_list"),
    ],
)
def test_what_fails_says_why(name: str, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(DeviceRefused, match=message):
        call(name, *arguments)
