"""struct_bytes: engine and caller of other versions understand each other. Needs a C compiler."""

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from stic.runtime import native
from stic.runtime.session import Session

INVALID = 10  # STIC_INVALID_ARGUMENT
OPTIONS, KINDS = native.Options, {"info": native.Info, "plan": native.Plan, "stats": native.Stats}


def ends(kind: type[ctypes.Structure]) -> list[int]:
    """Sizes of a structure that ends with each of its fields in turn."""
    return [getattr(kind, name).offset + getattr(kind, name).size for name, *_ in kind._fields_]


def block(data: bytes, size: int) -> "ctypes.Array[ctypes.c_char]":
    """A caller's structure of `size` bytes that says so."""
    return (ctypes.c_char * size).from_buffer_copy((size.to_bytes(4, "little") + data[4:]).ljust(size, b"\0")[:size])


@contextmanager
def opened(package: Path, options: "ctypes.Array[ctypes.c_char]") -> Iterator[tuple[int, ctypes.c_void_p]]:
    library, handle = native.load(), ctypes.c_void_p()
    given = ctypes.cast(options, ctypes.POINTER(OPTIONS))
    status = library.stic_session_open(str(package).encode(), given, ctypes.byref(handle))
    try:
        yield status, handle
    finally:
        library.stic_session_close(handle)


def told(handle: ctypes.c_void_p, name: str, room: "ctypes.Array[ctypes.c_char]") -> int:
    function, number = getattr(native.load(), f"stic_session_{name}"), (0,) if name == "plan" else ()
    return int(function(handle, *number, ctypes.cast(room, ctypes.POINTER(KINDS[name]))))


def threads_of(handle: ctypes.c_void_p) -> int:
    info = native.Info(struct_bytes=ctypes.sizeof(native.Info))
    assert native.load().stic_session_info(handle, ctypes.byref(info)) == 0
    return int(info.threads)


@pytest.mark.parametrize("size", [*ends(OPTIONS), ctypes.sizeof(OPTIONS), ctypes.sizeof(OPTIONS) + 8, 4096])
def test_options_of_every_version(size: int, package: Path) -> None:
    """What an older caller gives counts, what it does not give is as by default; so too with zeros of a newer one."""
    with opened(package, block(bytes(OPTIONS(0, 1, 1, 1)), size)) as (status, handle):
        assert status == 0
        assert threads_of(handle) == 1 or size < OPTIONS.threads.offset + 4


def test_fields_beyond_an_older_callers_options_are_not_read(package: Path) -> None:
    """An older caller's memory goes on behind its options: here with a number of threads that would be refused."""
    size = OPTIONS.threads.offset
    room = block(bytes(OPTIONS(0, 10_000)), ctypes.sizeof(OPTIONS))
    ctypes.c_uint32.from_buffer(room).value = size
    with opened(package, room) as (status, _):
        assert status == 0
    ctypes.c_uint32.from_buffer(room).value = size + 4
    with opened(package, room) as (status, _):
        assert status == INVALID


@pytest.mark.parametrize("at", [0, 7, 8, 63])
def test_an_option_of_a_newer_caller_is_refused_by_name(at: int, package: Path) -> None:
    size = ctypes.sizeof(OPTIONS) + 64
    room = block(b"", size)
    room[ctypes.sizeof(OPTIONS) + at] = b"\1"
    with opened(package, room) as (status, handle):
        assert status == INVALID and not handle
        sentence = native.load().stic_error_message(None).decode()
    assert f"{size} bytes" in sentence and "0.3" in sentence and "newer engine" in sentence


@pytest.mark.parametrize("size", [0, 1, 3, 5, 4100, 1 << 31, 0xFFFFFFFF])
def test_a_size_that_no_version_has_is_refused(size: int, package: Path) -> None:
    room = block(b"", 4096)
    ctypes.c_uint32.from_buffer(room).value = size
    with opened(package, room) as (status, handle):
        assert status == INVALID and not handle
        assert f"struct_bytes is {size}:" in native.load().stic_error_message(None).decode()
    with Session(package) as session:
        for name in KINDS:
            assert told(session._session, name, room) == INVALID
            assert f"stic_session_{name} was given" in native.load().stic_error_message(None).decode()
            assert bytes(room)[4:] == bytes(4092)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_told_goes_as_far_as_the_callers_structure(name: str, package: Path) -> None:
    kind = KINDS[name]
    whole = ctypes.sizeof(kind)
    with Session(package) as session:
        session.run([1, 2, 3])
        known = block(b"", whole)
        assert told(session._session, name, known) == 0 and any(bytes(known)[4:])
        for size in (*ends(kind), whole, whole + 4, whole + 8, whole + 400):
            room = block(b"\xee" * (size + 16), size + 16)  # 16 bytes of the caller's behind it
            ctypes.c_uint32.from_buffer(room).value = size
            assert told(session._session, name, room) == 0
            shared = min(size, whole)
            assert bytes(room)[4:shared] == bytes(known)[4:shared]
            assert bytes(room)[shared:size] == bytes(size - shared)
            assert bytes(room)[size:] == b"\xee" * 16
            assert int.from_bytes(bytes(room)[:4], "little") == size


def test_a_session_of_older_options_gives_the_same(package: Path) -> None:
    with Session(package) as session:
        expected = session.run([1, 2, 3])
    ids = (ctypes.c_int32 * 3)(1, 2, 3)
    output = np.zeros(expected.size, np.float32)
    with opened(package, block(b"", 24)) as (status, handle):
        place = output.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert status == 0 and native.load().stic_session_run(handle, ids, None, 3, place, output.size) == 0
    assert np.array_equal(output, expected.ravel())


def test_no_byte_too_many_under_sanitizers(sanitized: Callable[[str], Path], package: Path) -> None:
    done = subprocess.run([sanitized("versions.c"), package], capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout) == (0, "ok\n"), (done.stdout + done.stderr)[-4000:]
