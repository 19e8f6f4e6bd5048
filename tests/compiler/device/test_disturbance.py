"""Device profiles of busy machines: what counts as busy, and that such a profile is not kept. All times are made up."""

import json
import os
import time
from dataclasses import dataclass

import pytest

from stic.compiler.device import disturbance, measure
from stic.compiler.device.disturbance import MOST_OTHERS, MOST_SPREAD, Watch, disturbed


def profile(layers: float = 0.02, reads: float = 0.02, gpu: float | None = None) -> dict:
    points = [{"bytes": 4096, "lanes": 2, "median_us": 50.0, "spread_us": 50.0 * reads}] * 3
    made = {"io": {"points": points}, "compute": {"shapes": [{"spread": 0.01}, {"spread": layers}]}}
    return made if gpu is None else {**made, "gpu": {"shapes": [{"spread": gpu}]}}


@pytest.mark.parametrize("others", [None, 0.0, MOST_OTHERS])
def test_a_quiet_machine_is_not_disturbed(others):
    assert disturbed(profile(MOST_SPREAD, MOST_SPREAD, MOST_SPREAD), others) == ""
    assert disturbed({}, others) == "" and disturbed({"compute": {"shapes": [{}]}, "gpu": None}, others) == ""


@pytest.mark.parametrize(
    ("found", "others", "words"),
    [
        (profile(), 0.43, ("other processes took 43%",)),
        (profile(layers=0.5), None, ("runs of a layer differed by 50%",)),
        (profile(gpu=0.6), 0.0, ("runs of a layer differed by 60%",)),
        ({"shapes": [{"spread": 0.7}]}, 0.0, ("runs of a layer differed by 70%",)),  # a GPU's times by themselves
        (profile(reads=0.9), 0.0, ("repeated reads differed by 90%",)),
        (profile(layers=0.5, reads=0.9), 0.5, ("other processes took 50%", "a layer differed", "reads differed")),
    ],
)
def test_what_disturbs_is_said(found, others, words):
    sentence = disturbed(found, others)
    assert all(word in sentence for word in words)


def test_one_slow_read_of_several_is_no_busy_machine():
    found = profile()
    found["io"]["points"] = [*found["io"]["points"], {"median_us": 10.0, "spread_us": 90.0}]
    assert disturbed(found, 0.0) == ""


@dataclass
class Machine:
    """Processors, by what the system would say of them."""

    machine_s: float | None = 100.0
    own_s: float = 10.0
    now_s: float = 0.0


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(disturbance, "_machine_s", lambda: made.machine_s)
    monkeypatch.setattr(disturbance, "_own_s", lambda: made.own_s)
    monkeypatch.setattr(time, "monotonic", lambda: made.now_s)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return made


@pytest.mark.parametrize(
    ("busy_s", "own_s", "share"),
    [(20.0, 20.0, 0.0), (20.0, 0.0, 0.5), (40.0, 30.0, 0.25), (5.0, 6.0, 0.0), (90.0, 0.0, 1.0)],
)
def test_others_are_what_the_machine_did_beyond_this_process(machine, busy_s, own_s, share):
    watch = Watch()
    machine.now_s, machine.machine_s, machine.own_s = 10.0, 100.0 + busy_s, 10.0 + own_s
    assert watch.others() == pytest.approx(share)


def test_where_the_system_does_not_say_nothing_is_known(machine):
    machine.machine_s = None
    assert Watch().others() is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("cpu  100 0 100 5000 70 0 0 200 9 9\ncpu0 1 1", 400), ("cpu 100 100 100 100", 300), ("", 0), ("cpu a b", None)],
)
def test_waiting_is_not_work_but_stolen_time_is(monkeypatch, tmp_path, text, seconds):
    monkeypatch.setattr(disturbance, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    (tmp_path / "stat").write_text(text)
    assert disturbance._machine_s() == seconds
    (tmp_path / "stat").unlink()
    assert disturbance._machine_s() is None


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "cache_dir", lambda: tmp_path)
    return tmp_path


def test_a_profile_of_a_busy_machine_is_noted_and_measured_again(machine, cache):
    notes: list[str] = []
    measured = [profile(layers=0.5), profile(reads=0.5), profile()]
    waiting = iter(measured)
    found = [measure.cached(measure.__name__, ("key",), lambda: next(waiting), notes.append) for _ in range(5)]
    assert found == [*measured, *measured[2:] * 2]
    assert len(notes) == 2 and all("measures again" in note for note in notes)
    assert [json.loads(path.read_text()) for path in (cache / "profiles").iterdir()] == [profile()]


def test_others_at_work_keep_a_profile_out_of_the_cache(machine, cache):
    def work():
        machine.now_s, machine.machine_s = machine.now_s + 10.0, machine.machine_s + 20.0
        return profile()

    notes: list[str] = []
    assert measure.cached(measure.__name__, ("key",), work, notes.append) == profile()
    assert "other processes took 50%" in notes[0] and not (cache / "profiles").exists()


def test_nothing_measured_is_neither_kept_nor_noted(machine, cache):
    notes: list[str] = []
    assert measure.cached(measure.__name__, ("key",), dict, notes.append) == {}
    assert notes == [] and not list(cache.iterdir())
