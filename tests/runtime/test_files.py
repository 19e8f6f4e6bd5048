"""Files and folders are there whole or not at all, whatever goes wrong on the way."""

import errno
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stic.runtime import files
from stic.runtime.files import CHUNK_BYTES, copy_file, crc_of, whole_file, whole_folder, write_bytes, write_text

REPOSITORY = Path(files.__file__).parents[1]


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    with whole_file(path) as partial:
        partial.write_text("new")
        yield partial


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    with whole_folder(path) as partial:
        (partial / "below").mkdir()
        (partial / "below" / "a").write_text("new")
        yield partial


def old_file(path: Path) -> None:
    path.write_text("old")


def old_folder(path: Path) -> None:
    path.mkdir()
    (path / "a").write_text("old")


def content(path: Path) -> dict[str, str]:
    found = {"": path} if path.is_file() else {str(p.relative_to(path)): p for p in path.rglob("*") if p.is_file()}
    return {name: each.read_text() for name, each in found.items()}


KINDS = {"file": (new_file, old_file), "folder": (new_folder, old_folder)}
LAST = {"file": "replace", "folder": "rename"}  # what puts it in its place
FAILURES = (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit(1), ValueError("x"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[Callable, Callable]:
    return KINDS[request.param]


@pytest.mark.parametrize("there", [False, True])
def test_it_takes_its_place(kind, there: bool, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if there:
        kind[1](path)
    before = content(path)
    with kind[0](path) as partial:
        assert partial.parent == tmp_path and content(path) == before
    assert set(content(path).values()) == {"new"} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_leaves_what_was_there(kind, there: bool, failure: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if there:
        kind[1](path)
    before = content(path)
    with pytest.raises(type(failure)), kind[0](path):
        raise failure
    assert content(path) == before and list(tmp_path.iterdir()) == [path] * there


@pytest.mark.parametrize(("name", "call"), [(k, c) for k, last in LAST.items() for c in ("fsync", last)])
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fails_late_leaves_what_was_there(
    name: str, call: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]

    def refuse(one: object, *_: object) -> None:
        if call == "fsync" or Path(str(one)).suffix == files.SUFFIX:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(one, *_)

    really = getattr(os, call)
    monkeypatch.setattr(os, call, refuse)
    path = tmp_path / "thing"
    if there:
        kind[1](path)
    before = content(path)
    with pytest.raises(OSError, match="No space"), kind[0](path):
        pass
    assert content(path) == before and list(tmp_path.iterdir()) == [path] * there


def test_everything_is_on_the_disk_before_it_is_renamed(kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        assert not (tmp_path / "thing").exists()
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with kind[0](tmp_path / "thing") as partial:
        pass
    assert synced == ([partial.name] if kind[0] is new_file else ["a", "below", partial.name])


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_folders_are_made(kind, tmp_path: Path) -> None:
    with kind[0](tmp_path / "a" / "b" / "thing"):
        pass
    assert set(content(tmp_path / "a" / "b" / "thing").values()) == {"new"}


@pytest.mark.parametrize("blocked", ["a file above", "a folder in its place"])
def test_a_place_that_cannot_hold_a_file(blocked: str, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    if blocked == "a file above":
        (tmp_path / "a").write_text("file")
    else:
        path.mkdir(parents=True)
    with pytest.raises(OSError):
        write_text(path, "x")
    assert not list(tmp_path.rglob("*.partial"))


def test_text_bytes_and_copies(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "ß\n")
    assert path.read_bytes() == b"\xc3\x9f\n"
    write_bytes(path, b"\0\1")
    path.chmod(0o755)
    copy_file(path, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"\0\1" and os.access(tmp_path / "b", os.X_OK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_threads_and_processes_do_not_meet(tmp_path: Path) -> None:
    """Writers of one file, all at once: it is always one writer's, whole."""
    path, size = tmp_path / "a", 1 << 16
    failed: list[BaseException] = []

    def write(letter: str) -> None:
        try:
            for _ in range(5):
                write_text(path, letter * size)
                found = path.read_text()
                assert len(found) == size and len(set(found)) == 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing(kind, tmp_path: Path) -> None:
    """Ctrl-C while a process writes."""
    whole = "whole_file" if kind[0] is new_file else "whole_folder"
    text = (
        f"import pathlib, time\nfrom stic.runtime.files import {whole}\n"
        f"with {whole}(pathlib.Path({str(tmp_path / 'thing')!r})) as path:\n"
        "    (path / 'a' if path.is_dir() else path).write_text('half')\n    print(1, flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None and child.stdout.readline() == b"1\n" and list(tmp_path.iterdir())
    child.send_signal(signal.SIGINT)
    child.wait(timeout=30)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("once", "expected"), [(True, "old"), (False, "new")])
def test_what_all_write_alike_is_written_once(once: bool, expected: str, tmp_path: Path) -> None:
    """Another process was first."""
    path = tmp_path / "thing"
    with whole_folder(path, once) as partial:
        (partial / "a").write_text("new")
        old_folder(path)
    assert content(path) == {"a": expected} and list(tmp_path.iterdir()) == [path]


def test_nobody_else_renames() -> None:
    """One writer of whole files: no other module of the tree renames or makes temporary files beside a destination."""
    for folder in ("runtime", "targets", "schedules", "compiler", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path != Path(files.__file__):
                for sign in ("os.replace(", "os.rename(", "mkstemp", "NamedTemporaryFile", '.partial"'):
                    assert sign not in text, f"{path}: {sign}"


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_crc_is_that_of_the_whole_file(size: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "file").write_bytes(content)
    assert crc_of(tmp_path / "file") == zlib.crc32(content)


def test_a_crc_needs_no_copy_of_the_file(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(20 * CHUNK_BYTES)
    tracemalloc.start()
    crc_of(tmp_path / "file")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * CHUNK_BYTES
