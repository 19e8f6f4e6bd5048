"""plan.json: every value of another type, every missing and every unknown field is a sentence."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stic.runtime.plan_file import PLAN_FILE, Maybe, read_plan_file
from tests.runtime.conftest import FAMILY

WRONG: dict[str, tuple[Any, ...]] = {
    "str": (None, 1, True, [], {}),
    "bool": (None, 0, 1, "true", []),
    "int": (None, True, "1", 1.5, [], {}, -5, 1 << 70),
    "float": (None, False, "1", [], {}),
    "list": (None, 1, "a", {}, True),
    "dict": (None, 1, "a", [], True),
}


def values(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value and where it stands; of a list its first item only."""
    yield path, data
    inner = data.items() if isinstance(data, dict) else enumerate(data[:1]) if isinstance(data, list) else ()
    for key, value in inner:
        yield from values(value, (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> bytes:
    other = copy.deepcopy(data)
    holder = other
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return json.dumps(other).encode()


@pytest.fixture(scope="module")
def described(make_package: Any) -> dict[str, Any]:
    """plan.json of a family."""
    path: Path = make_package(*FAMILY[0], also=FAMILY[1:2], compiled=False)
    data: dict[str, Any] = json.loads((path / "plan.json").read_bytes())
    data["timeline"] = [dict(kind="io", layer=0, level=1, start_us=0.0, end_us=2.5, bytes=4096, place="cpu")]
    data["plan"]["notes"], data["model"]["labels"] = ["a note"], ["yes", "no"]
    assert read_plan_file(json.dumps(data).encode()) == data
    return data


def test_every_value_of_another_type_is_refused(described: dict[str, Any]) -> None:
    tried = 0
    for path, value in values(described):
        if not path or value is None:
            continue
        for wrong in WRONG[type(value).__name__]:
            nullable = wrong is None and path[-1] in ("latency_us", "memory_bytes", "preload_bytes", "bound", "loss")
            if not nullable:
                with pytest.raises(ValueError, match=r"^plan\.json"):
                    read_plan_file(changed(described, path, wrong))
                tried += 1
    assert tried > 300


def test_fields_are_neither_missing_nor_unknown(described: dict[str, Any]) -> None:
    for path, value in values(described):
        if isinstance(value, dict):
            with pytest.raises(ValueError, match="unknown field 'surplus'"):
                read_plan_file(changed(described, (*path, "surplus"), 1))
    for name, shape in PLAN_FILE.items():
        less = json.dumps({key: value for key, value in described.items() if key != name}).encode()
        if isinstance(shape, Maybe):
            read_plan_file(less)
        else:
            with pytest.raises(ValueError, match=re.escape(f"plan.json has no {name}")):
                read_plan_file(less)


@pytest.mark.parametrize(
    "text",
    (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b"1" * 5000, b'{"plan": NaN}', b'{"margin": 1e999}'),
)
def test_no_json(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^plan\.json"):
        read_plan_file(text)
