"""Target files: complete, sourced, and refused where wrong."""

from __future__ import annotations

import platform
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stic.runtime.errors import TargetError
from stic.runtime.format import FEATURES
from stic.targets import target as targets
from stic.targets.gpu import NUMBERS
from stic.targets.target import load, names, parse

BOARDS = ("jetson-nano", "odroid-n2plus", "raspberry-pi-4", "snapdragon-8-gen2")
GPUS = {"mali-g52": "mali", "mali-g710": "mali", "adreno-640": "adreno", "adreno-740": "adreno"}  # and their styles
NAMED = (*BOARDS, *GPUS, "aarch64-dotprod", "aarch64-i8mm", "x86-64-v3", "host")
LEVELS = tomllib.loads((Path(targets.__file__).parent / "host.toml").read_text())["level"]


def good() -> dict[str, Any]:
    return {
        "name": "board",
        "description": "a board",
        "arch": "aarch64",
        "features": ["asimd"],
        "tvm": {"kind": "llvm"},
        "compute": {
            "threads": {"value": 4, "source": "data sheet"},
            "cores": {"value": [2, 3, 4, 5], "source": "device tree"},
        },
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


@pytest.mark.parametrize("name", NAMED)
def test_gpus_are_complete_and_sourced(name: str) -> None:
    gpu = load(name).gpu
    assert (gpu is not None) == (name in GPUS)
    if gpu is not None:
        assert gpu.style == GPUS[name] and set(gpu.facts) == set(NUMBERS)
        sources = [fact.source for fact in gpu.facts.values()] + [gpu.images_source, gpu.extensions.source]
        assert all(source.strip() for source in sources) and gpu.fp16
        assert gpu.max_alloc_bytes >= 1 << 28 and gpu.facts["work_group"].value >= 256


def test_a_device_and_its_gpu_share_one_set_of_facts() -> None:
    for name, base in (("mali-g52", "odroid-n2plus"), ("adreno-740", "snapdragon-8-gen2")):
        with_gpu, without = load(name), load(base)
        assert without.gpu is None and with_gpu.name == name
        plain = replace(with_gpu, name=base, description=without.description, gpu=None)
        assert plain == without and plain.compute == without.compute


def test_a_gpu_stands_beside_another_cpu() -> None:
    host = load("host", "mali")
    assert host.name == "host" and host.gpu == load("mali-g52").gpu and host.features == load("host").features
    assert load("adreno-740", "none").gpu is None
    assert load("mali") == load("mali-g52") and load("adreno") == load("adreno-640")
    with pytest.raises(TargetError, match=r"host has no GPU; those with one are adreno-640, .*mali-g710"):
        load("mali", "host")
    with pytest.raises(TargetError, match=r"unknown target 'toaster'.*mali, adreno"):
        load("mali", "toaster")


def test_int8_products_need_an_extension() -> None:
    chosen = {name: load(name).gpu for name in GPUS}
    dots = {name: gpu.integer_dot for name, gpu in chosen.items() if gpu is not None}
    assert dots["mali-g52"] is None and dots["adreno-640"] is None
    assert dots["mali-g710"] == "cl_arm_integer_dot_product_accumulate_int8"
    assert dots["adreno-740"] == "cl_khr_integer_dot_product"


def good_gpu() -> dict[str, Any]:
    numbers = {name: {"value": 64, "source": "data sheet"} for name in NUMBERS}
    extensions = {"value": ["cl_khr_fp16"], "source": "clinfo"}
    images = {"value": True, "source": "clinfo"}
    return {"name": "a GPU", "style": "mali", "extensions": extensions, "images": images, **numbers}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("style",), "vax", "style 'vax' is not one of mali, adreno"),
        (("name",), 3, "gpu.name must be a string"),
        (("colour",), "red", "unknown colour"),
        (("cores",), 3, "must be a table"),
        (("cores",), {"value": 0, "source": "s"}, "positive number"),
        (("cores", "source"), " ", "needs a source"),
        (("images", "value"), 1, "true or false"),
        (("extensions", "value"), "cl_khr_fp16", "list of names"),
    ],
)
def test_wrong_fields_of_a_gpu_are_refused(path: tuple[str, ...], value: Any, message: str) -> None:
    data = good() | {"gpu": good_gpu()}
    assert parse(data).gpu is not None
    table = data["gpu"]
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(TargetError, match=message):
        parse(data)


def test_a_gpu_s_missing_fact_is_named() -> None:
    data = good() | {"gpu": good_gpu()}
    del data["gpu"]["work_group"]
    with pytest.raises(TargetError, match="lacks work_group"):
        parse(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "toaster"}, "unknown target 'toaster'"),
        ({"base": 3}, "base must be a string"),
        ({"arch": "aarch64"}, "unknown arch"),
        ({"gpu": None}, "gpu must be a table"),
    ],
)
def test_wrong_files_with_a_base_are_refused(change: dict[str, Any], message: str) -> None:
    data = {"name": "b", "description": "a board", "base": "raspberry-pi-4", "gpu": good_gpu()}
    assert parse(data).threads == load("raspberry-pi-4").threads
    with pytest.raises(TargetError, match=message):
        parse(data | change)


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
    assert target.cores is not None and target.cores.numbers == (2, 3, 4, 5) and target.cores.source == "device tree"
    assert target.core_bits == 0b111100


def test_cores_are_named_where_they_differ() -> None:
    assert load("odroid-n2plus").core_bits == 0b111100
    assert load("snapdragon-8-gen2").core_bits == 0b11111000
    for name in ("jetson-nano", "raspberry-pi-4", "host"):
        assert load(name).cores is None and load(name).core_bits == 0


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
        (("compute", "cores"), [2, 3], "must be a table"),
        (("compute", "cores"), {"value": [2, 3, 4, 5]}, "lacks source"),
        (("compute", "cores"), {"value": 4, "source": "s"}, "different processors"),
        (("compute", "cores"), {"value": [], "source": "s"}, "different processors"),
        (("compute", "cores"), {"value": [0, 1, 2, 2], "source": "s"}, "different processors"),
        (("compute", "cores"), {"value": [0, 1, 2, 64], "source": "s"}, "different processors, below 64"),
        (("compute", "cores"), {"value": [0, 1, 2, True], "source": "s"}, "different processors"),
        (("compute", "cores"), {"value": [0, 1], "source": "s"}, "4 compute threads do not fit on 2 cores"),
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


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level["title"])
def test_a_machine_gets_the_best_level_it_has(level: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: level["arch"])
    monkeypatch.setattr(targets, "_cpu_flags", lambda: frozenset(targets.CPU_FLAGS[name] for name in level["features"]))
    assert load("host").features == tuple(level["features"])


def test_a_flag_is_known_for_every_feature() -> None:
    assert tuple(targets.CPU_FLAGS) == FEATURES


def test_foreign_architecture_cannot_run_here() -> None:
    other = "aarch64-dotprod" if load("host").arch == "x86_64" else "x86-64-v3"
    assert load(other).missing_features == (load(other).arch,)
