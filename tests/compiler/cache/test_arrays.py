"""Arrays on disk: found again, computed again when damaged, and never more than the limit."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stic.compiler.cache import arrays
from stic.compiler.cache.arrays import Arrays, Cursor, joined, remember

ARRAYS: dict[str, NDArray[Any]] = {
    "codes": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "values": np.linspace(-1, 1, 5, dtype=np.float16),
    "none": np.zeros((0, 3), np.int32),
    "one": np.array(7),
}


class Caller:
    """Computes ARRAYS, counts how often, and keeps the notes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.computed = folder, 0
        self.notes: list[str] = []

    def compute(self) -> Mapping[str, NDArray[Any]]:
        self.computed += 1
        return ARRAYS

    def ask(self, key: str = "key") -> None:
        def unpack(arrays: Arrays) -> Arrays:
            return {name: arrays[name] for name in ARRAYS}

        found = remember(self.folder, key, self.compute, lambda arrays: arrays, unpack, self.notes.append)
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype and found[name].shape == array.shape


@pytest.fixture
def caller(tmp_path: Path) -> Caller:
    return Caller(tmp_path / "cache")


def test_the_second_time_nothing_is_computed(caller: Caller) -> None:
    for _ in range(3):
        caller.ask()
    assert caller.computed == 1 and not caller.notes
    assert [path.name for path in caller.folder.iterdir()] == ["key.arrays"]
    caller.ask("other")
    assert caller.computed == 2


def test_damage_costs_a_note(caller: Caller) -> None:
    caller.ask()
    path = caller.folder / "key.arrays"
    whole = path.read_bytes()
    places = {*range(0, len(whole), 7), len(whole) - 1}
    damaged = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in sorted(places)]
    damaged += [whole[:at] for at in sorted(places)] + [whole + b"x", b"\x93NUMPY", b"PK\x03\x04"]
    for number, content in enumerate(damaged, 1):
        path.write_bytes(content)
        caller.ask()
        assert caller.computed == 1 + number and len(caller.notes) == number
        assert "key.arrays cannot be used" in caller.notes[-1] and "computed again" in caller.notes[-1]
        assert path.read_bytes() == whole


def test_a_renamed_file_is_not_taken_for_another(caller: Caller) -> None:
    caller.ask()
    (caller.folder / "key.arrays").rename(caller.folder / "other.arrays")
    caller.ask("other")
    assert caller.computed == 2 and "it was renamed" in caller.notes[0]


def test_other_arrays_than_expected_are_computed_again(caller: Caller) -> None:
    remember(caller.folder, "key", dict, lambda _: {"other": np.zeros(3)}, dict, caller.notes.append)
    caller.ask()
    assert caller.computed == 1 and len(caller.notes) == 1


def test_a_folder_that_cannot_be_written(caller: Caller) -> None:
    caller.folder.write_text("a file where the folder should be")
    caller.ask()
    assert caller.computed == 1 and "cannot be kept for the next time" in caller.notes[-1]


def test_nothing_is_kept_where_there_is_nothing_to_keep(tmp_path: Path) -> None:
    for _ in range(2):
        assert remember(tmp_path, "key", lambda: 1, lambda _: None, lambda _: 2, pytest.fail) == 1
    assert not list(tmp_path.iterdir())


def test_the_oldest_go_first(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    caller.ask("size")
    size = (caller.folder / "size.arrays").stat().st_size
    monkeypatch.setattr(arrays, "LIMIT_BYTES", 3 * size + 100)
    for age, key in ((400, "size"), (300, "b"), (200, "c")):
        caller.ask(key)
        path = caller.folder / f"{key}.arrays"
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    caller.ask("size")  # used again, hence the youngest
    abandoned, unfinished = caller.folder / "x.arrays.1.partial", caller.folder / "y.arrays.2.partial"
    for path in (abandoned, unfinished):
        path.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    caller.ask("d")
    assert {path.name for path in caller.folder.iterdir()} == {
        "size.arrays", "c.arrays", "d.arrays", unfinished.name,
    }  # fmt: skip
    monkeypatch.setattr(arrays, "LIMIT_BYTES", 1)
    caller.ask("e")
    assert {path.name for path in caller.folder.iterdir()} == {"e.arrays", unfinished.name}


def test_a_cursor_takes_what_was_joined() -> None:
    parts = [np.arange(6.0).reshape(2, 3), np.arange(2.0), np.zeros((0, 4))]
    cursor = Cursor({"a": joined(parts)})
    for part in parts:
        np.testing.assert_array_equal(cursor.take("a", *part.shape), part)
    cursor.close()
    with pytest.raises(ValueError, match="reshape"):
        cursor.take("a", 1)
    with pytest.raises(KeyError):
        cursor.take("b", 1)
    half = Cursor({"a": joined(parts)})
    half.take("a", 2)
    with pytest.raises(ValueError, match="more than expected of a"):
        half.close()
