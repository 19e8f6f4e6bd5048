"""The evaluation's harness: case files, plans, what is kept between runs; nothing is timed here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.evaluation import __main__ as command
from benchmarks.evaluation import plans
from benchmarks.evaluation.case_file import read_cases
from benchmarks.evaluation.cases import NONE, Case, Pattern, PeerCase
from benchmarks.evaluation.plans import Asked, answer, asked_of
from benchmarks.evaluation.resume import Finished, alone, write_json
from benchmarks.evaluation.tasks import Prepared, typical
from benchmarks.planner_study.synthetic import DEVICES, MINILM, problem_of
from stic.compiler.plan import Budget
from stic.compiler.simulate import simulate
from stic.runtime.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "evaluation"
GRID = """
[[grid]]
name = "one"
tasks = ["sst2"]
bytes_per_s = [100e6, "paper"]
preload_bytes = [1048576, 4194304]
deadlines = [2.0, "40ms", "none"]
planners = ["ilp", "pipeline-4"]
"""


def _written(folder: Path, text: str) -> Path:
    path = folder / "some.toml"
    path.write_text(text)
    return path


# Case files.


@pytest.mark.parametrize("name", ["full", "quick"])
def test_case_files_that_come_along_are_read(name: str) -> None:
    cases = read_cases(FOLDER / f"{name}.toml")
    assert cases.name == name and cases.cases and cases.peers and cases.switches
    assert {case.planner for case in cases.cases} >= {"ilp", "greedy", "pipeline-4", "preload-6"}
    for patterns in (cases.timelines, cases.memory_curves):
        matched = [case for case in (*cases.cases, *cases.peers) if any(one.matches(case) for one in patterns)]
        assert 0 < len(matched) < 30  # they make the result large


def test_the_full_evaluation_asks_about_both_sides_of_the_papers_ratio() -> None:
    cases = read_cases(FOLDER / "full.toml")
    for task in ("sst2", "qnli", "stsb"):
        rates = {case.bytes_per_s for case in cases.cases if case.task == task}
        assert rates >= {50_000_000, 100_000_000, 300_000_000, 1_000_000_000, "paper"}


def test_every_combination_is_a_case_but_fixed_planners_ignore_the_preload_buffer(tmp_path: Path) -> None:
    cases = read_cases(_written(tmp_path, GRID)).cases
    assert len(cases) == len(set(cases)) == 2 * 3 * (2 + 1)
    assert {case.preload_bytes for case in cases if case.planner == "pipeline-4"} == {None}
    assert {case.method for case in cases} == {("ilp", None), ("pipeline", 4)}
    assert {case.deadline for case in cases} == {2.0, "40ms", "none"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid = [", "is not TOML"),
        ("", "asks for no case"),
        ("speed = 3" + GRID, "'speed' is not known"),
        (GRID.replace('"sst2"', '"mnli"'), "'mnli' is not known; known are sst2"),
        (GRID.replace("pipeline-4", "pipeline"), "there is no planner 'pipeline'"),
        (GRID.replace("pipeline-4", "ilp-4"), "there is no planner 'ilp-4'"),
        (GRID.replace("[2.0, ", "[-2.0, "), "-2.0 is not a deadline"),
        (GRID.replace("40ms", "40"), "has no unit"),
        (GRID.replace("100e6", "0.5"), "0.5 is not a bandwidth"),
        (GRID.replace("[1048576, 4194304]", "1048576"), "preload_bytes is a list"),
        (GRID.replace('name = "one"', ""), "has a name"),
        (GRID + '[[peers]]\nnames=["onnxruntime fp32"]\ntasks=["sst2"]\nmodes=["cold"]', "give bytes_per_s"),
        (GRID + '[[peers]]\nnames=["tflite"]\ntasks=["sst2"]\nmodes=["resident"]', "'tflite' is not known"),
        ("[machine]\nruns = 25\nblock = 10" + GRID, "whole blocks of 10"),
        ("[machine]\ntokens = 0" + GRID, "tokens is a number above zero"),
        ("[grid]\nname = 'x'", "write [[grid]]"),
        (
            GRID + '[[switches]]\ntasks=["sst2"]\nbytes_per_s=[1e8]\ndeadlines=[2.0]\npreload_bytes=[4096, 1]',
            "least first",
        ),
    ],
)
def test_a_wrong_case_file_is_refused_with_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read_cases(_written(tmp_path, text))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_the_command_tells_mistakes_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments), "--folder", str(tmp_path / "made")])
        assert command.main() == 1
        lines = capsys.readouterr().err.splitlines()
        return next(line for line in lines if line.startswith("benchmarks.evaluation: "))

    assert "cannot read the cases" in run(tmp_path / "absent.toml")
    monkeypatch.setenv("STIC_DATA", str(tmp_path))
    assert "set STIC_DATA" in run(_written(tmp_path, GRID))
    assert "there are no results" in run(_written(tmp_path, GRID), "--report-only")


def test_a_pattern_matches_what_has_all_that_it_names() -> None:
    case = Case("one", "sst2", "ilp", 100, 4096, 2.0)
    fixed = Case("one", "sst2", "pipeline-4", 100, None, 2.0)
    peer = PeerCase("sst2", "onnxruntime fp32", "cold", 100)
    assert all(Pattern().matches(one) for one in (case, fixed, peer))
    pattern = Pattern(planners=("ilp", "pipeline-4"), preload_bytes=(4096,))
    assert pattern.matches(case) and pattern.matches(fixed)  # which has no preload buffer to differ in
    assert not pattern.matches(peer)
    assert not Pattern(preload_bytes=(1,)).matches(case)
    assert Pattern(modes=("cold",), bytes_per_s=(100,)).matches(peer)
    assert not Pattern(modes=("resident",)).matches(peer)


# What is kept between runs.


def test_finished_work_is_found_by_all_that_it_depends_on(tmp_path: Path) -> None:
    finished = Finished(tmp_path)
    assert finished.get("latency", ("a", 1)) is None
    finished.put("latency", ("a", 1), {"median_us": 3})
    assert Finished(tmp_path).get("latency", ("a", 1)) == {"median_us": 3}
    assert finished.get("latency", ("a", 2)) is None
    assert finished.get("accuracy", ("a", 1)) is None
    assert [path.suffix for path in (tmp_path / "cases").iterdir()] == [".json"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kind": "plan", "result": {}}'])
def test_a_damaged_result_is_measured_again(tmp_path: Path, damage: str) -> None:
    finished = Finished(tmp_path)
    finished.put("latency", "a", {"median_us": 3})
    finished.path("latency", "a").write_text(damage)
    assert finished.get("latency", "a") is None


def test_a_result_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="another folder"):
        write_json(path / "below", {})


def test_two_evaluations_do_not_share_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(InputError, match="another evaluation runs"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def _prepared(name: str = "sst2") -> Any:
    """A task whose problem is made up; hardly anything else of it is needed for planning."""
    problem = problem_of(MINILM, DEVICES[1], 1, Budget(), elastic=True)
    rest = dict.fromkeys(set(Prepared.__dataclass_fields__) - {"name", "problem", "trial"})
    trial = SimpleNamespace(setup=SimpleNamespace(key="calibration"))
    return Prepared(name=name, problem=problem, trial=trial, **rest)


def test_a_plan_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))
    prepared, finished = _prepared(), Finished(tmp_path)
    asked = asked_of(prepared, Case("one", "sst2", "pipeline-4", 100_000_000, None, 3.0))
    assert asked.deadline_us == round(3.0 * prepared.compute_us)
    first = answer(prepared, asked, 5.0, finished, print)
    assert first.plan is not None and first.timeline is not None
    assert first.timeline.latency_us <= asked.deadline_us and {b for bits in first.bits for b in bits} == {4}

    def again(*_: object) -> None:
        raise AssertionError("planned again")

    monkeypatch.setattr(plans, "planned", again)
    second = answer(prepared, asked, 5.0, finished, print)
    assert second.digest == first.digest and second.plan == first.plan
    with pytest.raises(AssertionError, match="planned again"):
        answer(prepared, Asked(asked.case, 50_000_000, asked.deadline_us, 3.0), 5.0, finished, print)


def test_pace_is_what_a_witness_shows_and_explains_a_slower_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))
    prepared = _prepared()
    asked = asked_of(prepared, Case("one", "sst2", "load-and-exec-4", 100_000_000, None, NONE))
    found = answer(prepared, asked, 5.0, Finished(tmp_path), print)
    assert found.timeline is not None
    problem = plans.problem_of(prepared, asked)
    rows_us = problem.io.row_us * problem.length
    whole_us = simulate(plans.witness(prepared), problem).latency_us
    measured = {"median_us": 1.5 * (whole_us - rows_us) + 3 * rows_us, "mean_stall_us": 3 * rows_us}
    pace = plans.pace_of(prepared, asked.bytes_per_s, measured)
    assert (pace.compute, pace.rows) == pytest.approx((1.5, 3.0))
    assert plans.at_pace(prepared, found, plans.Pace(1.0, 1.0)) == pytest.approx(found.timeline.latency_us)
    slower = plans.at_pace(prepared, found, pace)  # it reads all, then computes all
    computed_us = sum(e.end_us - e.start_us for e in found.timeline.events if e.kind == "compute")
    assert slower - found.timeline.latency_us == pytest.approx(0.5 * computed_us + 2 * rows_us, rel=0.01)


def test_profiles_are_joined_number_by_number() -> None:
    found = [{"name": "vm", "direct": True, "points": [{"us": n}, 1.0], "threads": 1} for n in (9.0, 2.0, 4.0)]
    assert typical(found) == {"name": "vm", "direct": True, "points": [{"us": 4.0}, 1.0], "threads": 1}


def test_a_budget_that_nothing_meets_is_an_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))
    prepared, finished = _prepared(), Finished(tmp_path)
    asked = asked_of(prepared, Case("one", "sst2", "pipeline-6", 100_000_000, None, 0.1))
    for _ in range(2):
        found = answer(prepared, asked, 5.0, finished, print)
        assert found.plan is None and "6 bits needs" in found.message
