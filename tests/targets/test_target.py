"""Target files: complete, sourced, and refused where wrong."""

from __future__ import annotations

from typing import Any

import pytest

from stic.runtime.errors import TargetError
from stic.targets.target import FEATURES, load, names, parse

NAMED = ("jetson-nano", "odroid-n2plus", "raspberry-pi-4", "snapdragon-8-gen2", "aarch64-dotprod", "x86-64-v3", "host")


def good() -> dict[str, Any]:
    return {
        "name": "board",
        "description": "a board",
        "arch": "aarch64",
        "features": ["asimd"],
        "tvm": {"kind": "llvm"},
        "compute": {"threads": {"value": 4, "source": "data sheet"}},
        "cache": {"l2_bytes": {"value": 1 << 20, "source": "manual", "estimated": True}},
    }


@pytest.mark.parametrize("name", NAMED)
def test_every_target_loads(name: str) -> None:
    target = load(name)
    assert target.name == name and target.threads >= 1 and target.description
    for section in (target.cache, target.storage, target.compute, target.memory):
        for fact in section.values():
            assert fact.value > 0 and fact.source
    assert load(name) == target and hash(target) == hash(load(name))


def test_names() -> None:
    assert set(NAMED) <= set(names())


def test_unknown_target_lists_the_names() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'toaster'.*odroid-n2plus.*x86-64-v3"):
        load("toaster")


def test_a_path_is_not_a_name() -> None:
    with pytest.raises(TargetError, match="unknown target"):
        load("../targets/host")


def test_parse() -> None:
    target = parse(good())
    assert target.threads == 4 and target.cache["l2_bytes"].estimated and not target.storage


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colour",), "red", "unknown colour"),
        (("arch",), "vax", "'vax' is not one of"),
        (("name",), 3, "name must be a string"),
        (("features",), ["mmx"], "'mmx' is not one of"),
        (("features",), "asimd", "must be a list"),
        (("tvm",), {}, "no `kind`"),
        (("compute", "speed"), {"value": 1, "source": "s"}, "unknown speed"),
        (("compute", "threads"), 4, "must be a table"),
        (("compute", "threads"), {"value": 4}, "lacks source"),
        (("compute", "threads"), {"value": -1, "source": "s"}, "positive number"),
        (("compute", "threads"), {"value": True, "source": "s"}, "positive number"),
        (("compute", "threads"), {"value": 4, "source": " "}, "needs a source"),
        (("compute", "threads"), {"value": 4, "source": "s", "note": ""}, "unknown note"),
        (("compute",), {}, "threads must be at least 1"),
    ],
)
def test_wrong_fields_are_refused(path: tuple[str, ...], value: Any, message: str) -> None:
    data = good()
    table = data
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(TargetError, match=message):
        parse(data)


def test_missing_field_is_named() -> None:
    data = good()
    del data["arch"]
    with pytest.raises(TargetError, match="lacks arch"):
        parse(data)


def test_host_runs_here() -> None:
    host = load("host")
    assert host.missing_features == () and set(host.features) <= set(FEATURES)


def test_foreign_architecture_cannot_run_here() -> None:
    other = "aarch64-dotprod" if load("host").arch == "x86_64" else "x86-64-v3"
    assert load(other).missing_features == (load(other).arch,)
