"""The store on a device: what is sent, what is not, and what an interruption leaves. Needs apache-tvm-ffi.

The device is this machine, through the same functions; tests/compiler/test_deploy.py does it over RPC.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm_ffi", reason="needs apache-tvm")

from stic.runtime.errors import TargetError
from stic.targets.connection import DeviceLost
from stic.targets.depot import CHUNK, Depot
from stic.targets.host import HostFunctions

NAMES = ("index.bin", "shards.bin", "trunk.bin", "empty")


class Watched(HostFunctions):
    """Counts calls, and loses the device at one of them."""

    def __init__(self, lost_at_write: int | None = None) -> None:
        self.written: list[int] = []
        self._lost_at = lost_at_write

    def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
        if name == "stic_write":
            if len(self.written) == self._lost_at:
                super().call(name, arguments[0], arguments[1], arguments[2][: len(arguments[2]) // 2])
                raise DeviceLost("the device went away")
            self.written.append(len(arguments[2]))
        return super().call(name, *arguments)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Something like a package."""
    folder = tmp_path / "model.stic"
    folder.mkdir()
    (folder / "index.bin").write_bytes(os.urandom(300))
    (folder / "shards.bin").write_bytes(os.urandom(3 * CHUNK + 77))
    (folder / "trunk.bin").write_bytes(os.urandom(CHUNK))
    (folder / "empty").write_bytes(b"")
    return folder


def _store(tmp_path: Path, functions: HostFunctions | None = None) -> Depot:
    return Depot("the device", functions or HostFunctions(), str(tmp_path / "store"))


def _same(source: Path, there: str) -> bool:
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    return files == {path.name: path.read_bytes() for path in Path(there).iterdir()}


def test_everything_is_sent_once(tmp_path: Path, source: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    first = _store(tmp_path).put(source, NAMES, lambda *step: stages.append(step))
    total = sum(path.stat().st_size for path in source.iterdir())
    assert (first.files, first.sent_bytes, first.total_bytes) == (4, total, total) and _same(source, first.folder)
    assert stages[-1] == ("sending model.stic (MiB)", total >> 20, total >> 20)
    again = _store(tmp_path).put(source, NAMES)
    assert (again.files, again.sent_bytes, again.folder) == (0, 0, first.folder)


def test_only_what_changed_is_sent(tmp_path: Path, source: Path) -> None:
    there = _store(tmp_path).put(source, NAMES).folder
    data = bytearray((source / "shards.bin").read_bytes())
    data[2 * CHUNK + 5] ^= 1
    (source / "shards.bin").write_bytes(data)
    (source / "empty").unlink()
    (source / "of another program").write_text("never sent")
    again = _store(tmp_path).put(source, NAMES[:3])
    (source / "of another program").unlink()
    index = (source / "index.bin").stat().st_size  # comes last whatever changed
    assert (again.files, again.sent_bytes) == (2, len(data) + index) and _same(source, there)


@pytest.mark.parametrize("lost_at", range(6))
def test_an_interrupted_upload_goes_on(tmp_path: Path, source: Path, lost_at: int) -> None:
    failing = Watched(lost_at)
    with pytest.raises(DeviceLost):
        _store(tmp_path, failing).put(source, NAMES)
    there = next(path for path in (tmp_path / "store").iterdir() if path.is_dir())
    assert not (there / "index.bin").exists()
    going_on = Watched()
    sent = _store(tmp_path, going_on).put(source, NAMES)
    assert _same(source, sent.folder)
    assert sent.sent_bytes == sent.total_bytes - sum(failing.written)


def test_an_interrupted_upload_of_something_else_is_not_taken(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DeviceLost):
        _store(tmp_path, Watched(3)).put(source, NAMES)
    (source / "shards.bin").write_bytes(os.urandom(CHUNK + 5))
    sent = _store(tmp_path).put(source, NAMES)
    assert _same(source, sent.folder)


def test_a_file_that_was_damaged_there_is_sent_again(tmp_path: Path, source: Path) -> None:
    there = Path(_store(tmp_path).put(source, NAMES).folder)
    data = bytearray((there / "trunk.bin").read_bytes())
    data[-1] ^= 1
    (there / "trunk.bin").write_bytes(data)
    assert _store(tmp_path).put(source, NAMES).files == 2 and _same(source, str(there))


def test_storage_that_forgets_is_noticed(tmp_path: Path, source: Path) -> None:
    class Forgetful(HostFunctions):
        def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
            if name == "stic_write" and arguments[2]:
                arguments = (*arguments[:2], bytes(len(arguments[2])))
            return super().call(name, *arguments)

    with pytest.raises(TargetError, match="does not read back what was written"):
        _store(tmp_path, Forgetful()).put(source, NAMES)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three MiB, mounted where the store is."""
    folder = tmp_path / "store"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_before_anything_is_sent(tmp_path: Path, source: Path, small_disk: Path) -> None:
    functions = Watched()
    with pytest.raises(TargetError, match=r"has 3\.0 MiB free in .*, and 5\.0 MiB are needed: .*--directory"):
        _store(tmp_path, functions).put(source, NAMES)
    assert not functions.written


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, source: Path, small_disk: Path) -> None:
    class Optimist(HostFunctions):
        def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
            return 1 << 40 if name == "stic_free_bytes" else super().call(name, *arguments)

    with pytest.raises(TargetError, match=r"cannot write .*shards\.bin\.part: No space left on device"):
        _store(tmp_path, Optimist()).put(source, NAMES)
    (source / "shards.bin").write_bytes(os.urandom(1000))
    assert _same(source, _store(tmp_path).put(source, NAMES).folder)


def test_scratch_is_empty_and_goes(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.functions.call("stic_make_directory", store.folder)
    left = tmp_path / "store" / "scratch-0" / "package"
    left.mkdir(parents=True)
    (left / "file").write_text("left by a lease that ended too early")
    with store.scratch() as folder:
        assert not list(Path(folder).iterdir())
        (Path(folder) / "file").write_text("")
    assert not Path(folder).exists()
