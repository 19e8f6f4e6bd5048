"""The planner study: what is drawn, what is kept, and what the figures say."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.planner_study import __main__ as study
from benchmarks.planner_study.gains import draw, measured
from benchmarks.planner_study.instances import instance, read
from benchmarks.planner_study.measure import captured, gap_at, measure, seconds_to, share_of_bits
from benchmarks.planner_study.summary import summary, tables
from benchmarks.planner_study.synthetic import BITS

SETTINGS = read(Path(study.__file__).with_name("study.toml"))
SOURCES = measured()
EASY = 8  # an instance of MiniLM's geometry whose search ends at once


def test_measured_gains_are_gains():
    for source in SOURCES:
        assert source.bits == BITS and source.gain.shape[2] == len(BITS)
        assert not source.gain[:, :, 0].any() and (np.diff(source.gain, axis=2) >= 0).all()
    assert [s.path is not None for s in SOURCES].count(True) >= 2


def test_drawn_curves_have_measured_shapes():
    source = SOURCES[-1]
    gain, path = draw(source, 24, 16, np.random.default_rng(1), 0.5, 0.25)
    assert gain.shape == (24, 16, len(BITS)) and path is not None and path.value.shape == (24, 16)
    shapes = source.gain / np.maximum(source.gain[:, :, -1:], 1e-300)
    known = {tuple(row.round(9)) for row in shapes.reshape(-1, len(BITS))}
    assert {tuple(row.round(9)) for row in (gain / np.maximum(gain[:, :, -1:], 1e-300)).reshape(-1, len(BITS))} <= known


@pytest.mark.parametrize("number", range(12))
def test_an_instance_is_the_same_whenever_it_is_drawn_and_lies_between_its_ends(number):
    one, again = (instance(number, SETTINGS, SOURCES) for _ in range(2))
    assert one.facts == again.facts and one.name == again.name
    assert (one.problem.gain == again.problem.gain).all()
    facts, budget = one.facts, one.problem.budget
    assert facts["shortest_us"] <= budget.latency_us <= facts["longest_us"] + 2
    assert facts["least_bytes"] <= facts["limit_bytes"] <= facts["most_bytes"] + 1
    assert (budget.memory_bytes is None) == (facts["kind"] == "preload")
    for name, (least, most) in _ranges():
        assert least <= facts[name] <= most


def _ranges():
    return ((name, ends) for name, ends in SETTINGS["device"].items() if name != "tokens")


def test_any_twelve_instances_hold_every_combination():
    found = [instance(n, SETTINGS, SOURCES).facts for n in range(5, 17)]
    assert len({(f["geometry"], f["elastic"], f["kind"]) for f in found}) == 12


def test_an_instance_is_solved_checked_and_recorded():
    row = measure(instance(EASY, SETTINGS, SOURCES), {**SETTINGS["solver"], "time_limit_s": 20.0})
    assert row["defects"] == [] and row["ilp"] >= row["greedy"]
    assert row["course"][-1][0] <= row["seconds"] and row["gap"] <= SETTINGS["solver"]["gap"]
    assert row["ilp_captured"] >= row["greedy_captured"]
    json.dumps(row)


def test_no_plan_within_the_time_is_a_defect_as_one_is_known():
    one = instance(EASY, SETTINGS, SOURCES)
    problem = replace(one.problem, budget=replace(one.problem.budget, latency_us=1))
    row = measure(replace(one, problem=problem), {**SETTINGS["solver"], "time_limit_s": 20.0})
    assert row["status"] == "failed" and "no plan was found, though there is one" in row["defects"][0]
    assert "defects" in summary([row])["all"] and "none" in tables(summary([row]))


def test_gaps_over_time():
    course = [(0.5, -math.inf, 10.0), (2.0, 5.0, 10.0), (4.0, 9.9, 10.0)]
    assert gap_at(course, 0.1) is None and gap_at(course, 1) is None
    assert gap_at(course, 3) == pytest.approx(0.5) and gap_at(course, 30) == pytest.approx(0.01)
    assert seconds_to(course, 0.02) == 4.0 and seconds_to(course, 0.001) is None


def test_gain_captured_is_nothing_at_the_lowest_bits_and_one_at_full_gains():
    for number in (0, 2):  # ordinary and elastic
        problem = instance(number, SETTINGS, SOURCES).problem
        whole = problem.presence.sum() if problem.elastic else 0.0
        assert captured(whole, problem) == 0
        assert captured(whole + problem.gain[:, :, -1].sum(), problem) == pytest.approx(1)
        assert (share_of_bits(problem) == 1) == (not problem.elastic)


def row(number, **changed):
    found = {
        "instance": number, "geometry": "bert-base", "elastic": False, "kind": "memory", "status": "feasible",
        "greedy": 1.0, "ilp": 1.1, "greedy_optimal": False, "greedy_equals_ilp": False, "greedy_captured": 0.5,
        "ilp_captured": 0.6, "greedy_seconds": 0.1, "seconds": 3.0, "seconds_to_default": 2.0, "seconds_to_proof": None,
        "gap_at": {"1": 0.5, "5": 0.01, "30": 0.001}, "defects": [],
    }  # fmt: skip
    return found | changed


def test_summary_counts_what_was_not_reached_as_later_than_anything():
    rows = [row(0), row(1, seconds_to_default=None), row(2, greedy=None, greedy_captured=None), row(3, elastic=True)]
    groups = summary(rows)
    everything = groups["all"]
    assert everything["instances"] == 4 and groups["elastic models"]["instances"] == 1
    assert "minilm-l6" not in groups
    assert everything["seconds_to_default"]["median"] == 2.0
    assert everything["seconds_to_default"]["most"] is None and everything["seconds_to_default"]["mean"] is None
    assert everything["greedy_none"] == 0.25 and everything["ilp_over_greedy"]["mean"] == pytest.approx(0.1)
    assert "not reached" in tables(groups)


def test_finished_instances_are_kept(tmp_path, monkeypatch, capsys):
    solved = []
    monkeypatch.setattr(study, "measure", lambda one, solver: solved.append(one.number) or row(one.number))
    arguments = ["planner_study", "--count", "3", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert study.main() == 0 and solved == [0, 1, 2]
    next(tmp_path.glob("*/0001.json")).write_text("{")  # cut short
    assert study.main() == 0 and solved == [0, 1, 2, 1]
    found = json.loads((tmp_path / "planner-study.json").read_text())
    assert [r["instance"] for r in found["rows"]] == [0, 1, 2] and found["summary"]["all"]["instances"] == 3
    assert {"machine", "versions", "command", "settings"} <= set(found)
    assert "### ilp against greedy" in capsys.readouterr().out


def test_a_defect_fails_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "measure", lambda one, solver: row(one.number, defects=["a bound of 1 is below 2"]))
    monkeypatch.setattr(sys, "argv", ["planner_study", "--count", "1", "--folder", str(tmp_path)])
    assert study.main() == 1
    assert "instance 0: a bound of 1 is below 2" in capsys.readouterr().err
