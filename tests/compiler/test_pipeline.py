"""The list of stages: where it begins and ends, and what it leaves behind to begin from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stic.compiler import artifacts, stages
from stic.compiler.cache.digests import digest
from stic.compiler.importance.measure import Importance
from stic.compiler.options import StageOptions
from stic.compiler.package.assembly import Materials
from stic.compiler.pipeline import plan_model
from stic.compiler.stages import Decided, Replays
from stic.runtime.errors import InputError
from tests.compiler.planning import options, planned

NAMES = "load calibrate order shard quantize gather importance device problem solver plan check".split()
KEPT = {
    "order": "order.arrays",
    "quantize": "codes.arrays",
    "importance": "importance.json",
    "device": "costs.json",
    "plan": "plans.json",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def dump(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dump")
    planned(tiny_dir, stages={"dump": folder})
    return folder


def test_every_stage_is_dumped(dump: Path) -> None:
    summaries = sorted(path for path in dump.iterdir() if path.name[:2].isdecimal())
    assert [json.loads(path.read_text())["stage"] for path in summaries] == NAMES
    assert {path.name for path in dump.iterdir()} - {path.name for path in summaries} == set(KEPT.values())


@pytest.mark.parametrize("start", NAMES)
def test_a_run_from_any_stage_makes_the_same(
    start: str, dump: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = planned(tiny_dir)
    skipped = {"order": "order", "quantize": "quantize", "importance": "value", "device": "cost", "plan": "decide"}
    for name in KEPT:
        if NAMES.index(name) < NAMES.index(start):
            monkeypatch.setattr(stages, skipped[name], lambda *_: pytest.fail("what was kept was made again"))
    again = planned(tiny_dir, stages={"dump": dump, "start": start})
    assert again[Decided].default.layers == whole[Decided].default.layers
    assert again[Replays].timelines == whole[Replays].timelines
    assert digest(again[Materials]) == digest(whole[Materials])


@pytest.mark.parametrize("until", NAMES)
def test_a_run_ends_where_it_is_told(until: str, tiny_dir: Path) -> None:
    made = planned(tiny_dir, stages={"until": until})
    assert made.stages == NAMES.index(until) + 1


@pytest.mark.parametrize("name", ["", "profile", "Plan", "package"])
def test_a_stage_that_is_none_is_named(name: str, tiny_dir: Path, dump: Path) -> None:
    for chosen in ({"until": name}, {"start": name, "dump": dump}):
        with pytest.raises(InputError, match="the stages are load, calibrate"):
            planned(tiny_dir, stages=chosen)


def test_from_needs_a_folder() -> None:
    with pytest.raises(InputError, match="--dump"):
        StageOptions(start="plan")


@pytest.mark.parametrize("file", KEPT.values())
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "no text", "other json"])
def test_a_damaged_file_is_a_sentence(file: str, damage: str, dump: Path, tiny_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    shutil.copytree(dump, folder)
    content = (folder / file).read_bytes()
    damaged = {"empty": b"", "cut": content[: len(content) // 2], "no text": b"\xff\xfe", "other json": b"[1]"}
    if damage == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(damaged[damage])
    with pytest.raises(InputError, match=file):
        planned(tiny_dir, stages={"dump": folder, "start": "check"})


def test_files_of_another_model_are_refused(dump: Path, tiny_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_dir, other)
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.endswith("intermediate.dense.weight"))
    save_file({**weights, name: weights[name] * np.float32(1.01)}, other / "model.safetensors")
    with pytest.raises(InputError, match=r"order\.arrays cannot be started from"):
        planned(other, stages={"dump": dump, "start": "shard"})


def test_a_plan_may_be_edited(dump: Path, tiny_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    shutil.copytree(dump, folder)
    plans = json.loads((folder / artifacts.PLANS.file).read_text())
    first = plans[0]["layers"][0]
    first["bits"], first["resident"] = [2] * len(first["bits"]), [0] * len(first["bits"])
    (folder / artifacts.PLANS.file).write_text(json.dumps(plans))
    made = planned(tiny_dir, stages={"dump": folder, "start": "check"})
    assert made[Decided].default.layers[0].bits == (2,) * len(first["bits"])


def test_a_folder_that_cannot_be_written_is_a_sentence(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot keep what stage load made"):
        planned(tiny_dir, stages={"dump": tmp_path / "file"})


def test_what_was_not_made_is_not_there(tiny_dir: Path) -> None:
    made = plan_model(options(tiny_dir, stages={"until": "load"}))
    assert Importance not in made
    with pytest.raises(KeyError):
        made[Importance]
