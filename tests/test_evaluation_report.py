"""The evaluation's report: from made-up rows, tables and figures say what the rows say."""

import copy
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.evaluation import report
from benchmarks.evaluation.__main__ import RECORDED
from benchmarks.evaluation.acceptance import Finding, judge
from benchmarks.evaluation.agreement import agreement
from benchmarks.evaluation.comparisons import duels, equal_resources, tally, timed, without_plan
from benchmarks.evaluation.figures import drawings
from benchmarks.evaluation.results import Cell, Results
from benchmarks.evaluation.run_tables import failures, memory, peers, prediction, switch
from benchmarks.evaluation.tables import accuracy, findings, lower
from benchmarks.planner_study.measure import MOMENTS_S
from stic.runtime.errors import InputError
from tests.evaluation_results import MIB, PAPER_BYTES_PER_S, made_up


@functools.cache
def _once() -> dict[str, Any]:
    return made_up()


@pytest.fixture
def data() -> dict[str, Any]:
    return copy.deepcopy(_once())


def _row_of(data: dict[str, Any], planner: str, cell: Cell) -> dict[str, Any]:
    row = Results(data).answer(cell, planner)
    assert row is not None
    return row.data


def _finding(data: dict[str, Any], words: str) -> Finding:
    (found,) = (finding for finding in judge(Results(data)) if words in finding.claim)
    return found


def _line(text: str, *words: str) -> str:
    (line,) = (line for line in text.splitlines() if all(word in line for word in words))
    return line


def test_everything_is_made_from_the_file_alone(data, tmp_path):
    result = tmp_path / "evaluation.json"
    result.write_text(json.dumps(data))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "evaluation-timeline-sst2-100MB-9C.png").touch()  # of another result
    written = report.write(result, tmp_path / "report")
    assert {path.name for path in written} == {
        "evaluation.md", "evaluation-accuracy-sst2.png", "evaluation-memory.png", "evaluation-prediction.png",
        "evaluation-timeline-sst2-100MB-1.5C.png", f"evaluation-timeline-sst2-{PAPER_BYTES_PER_S / 1e6:.0f}MB-1.5C.png",
        "evaluation-memory-over-time.png",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "report").iterdir()} == {path.name for path in written}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")
    text = written[0].read_text()
    assert all(f"({path.name})" in text for path in written[1:])


def test_the_planner_study_is_part_of_the_report_where_there_is_one(data, tmp_path):
    spread = dict.fromkeys(("mean", "least", "median", "p95", "most"), 0.25)
    times = ("ilp_over_greedy", "captured_more", "seconds_to_default", "seconds_to_proof")
    figures: dict[str, Any] = dict.fromkeys(times, spread)
    figures |= dict.fromkeys(("greedy_optimal", "greedy_equals_ilp", "greedy_none", "proved"), 0.5)
    figures |= {"instances": 7, "greedy_captured_mean": 0.5, "ilp_captured_mean": 0.75}
    figures["gap_at"] = {str(seconds): spread for seconds in MOMENTS_S}
    results = Results(data)
    assert "random instances" not in report.everything(results, tmp_path / "planner-study.json")
    (tmp_path / "planner-study.json").write_text(json.dumps({"summary": {"all": figures}}))
    text = report.everything(results, tmp_path / "planner-study.json")
    assert "## The planner on random instances" in text and _line(text, "| all | 7 | 50 % |")


def test_a_page_gets_the_tables_and_keeps_the_rest(data, tmp_path):
    result, page = tmp_path / "evaluation.json", tmp_path / "docs" / "page.md"
    data["rows"] = [row | {"timeline": None, "memory_curve": None} for row in data["rows"]]
    result.write_text(json.dumps(data))
    page.parent.mkdir()
    page.write_text(f"before\n{report.BEGIN}old\n{report.END}after\n")
    report.write(result, tmp_path / "results", docs=page)
    first = page.read_text()
    assert first.startswith("before\n") and first.endswith(f"{report.END}after\n") and "old\n" not in first
    assert "](../results/evaluation-memory.png)" in first
    report.write(result, tmp_path / "results", docs=page)
    assert page.read_text() == first


def test_a_page_without_a_place_is_refused_before_anything_is_written(data, tmp_path):
    result, page = tmp_path / "evaluation.json", tmp_path / "page.md"
    result.write_text(json.dumps(data))
    page.write_text("nothing here\n")
    with pytest.raises(InputError, match="no place for the tables: add the lines"):
        report.write(result, tmp_path / "results", docs=page)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content, sentence", [("{", "not JSON"), ("[]", "not a result"), ('{"format": 0}', "format")])
def test_what_is_no_result_is_refused(tmp_path, content, sentence):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        Results.read(tmp_path / "evaluation.json")


def test_results_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="make bench"):
        Results.read(tmp_path / "evaluation.json")


@pytest.mark.parametrize("name", RECORDED)
def test_the_page_shows_what_the_results_say(name):
    folder, page = RECORDED[name]
    _, _, rest = page.read_text(encoding="utf-8").partition(report.BEGIN)
    shown, _, _ = rest.partition(report.END)
    command = f"python -m benchmarks.evaluation benchmarks/evaluation/{name}.toml --report-only"
    found = report.region(Results.read(folder / "evaluation.json"), os.path.relpath(folder, page.parent))
    assert shown == found, f"out of date: run {command}"


def test_an_empty_result_makes_a_report_that_says_so(data):
    results = Results(data | {"rows": [], "store": {}, "switch": []})
    assert not drawings(results)
    text = findings(judge(results))
    assert text.count("not measured") >= text.count("\n") - 1 and "holds" not in text


def test_planners_at_fixed_bits_answer_for_every_preload_buffer(data):
    results = Results(data)
    for cell in results.cells:
        assert results.answer(cell, "pipeline-4") is not None
        assert results.answer(cell, "ilp").cell == cell
    assert len({cell.preload_bytes for cell in results.cells}) == 2


def test_a_baseline_that_is_late_or_claims_more_is_no_equal(data):
    found = equal_resources(Results(data), "pipeline-4")
    assert found and all(duel.other.median_us <= duel.cell.deadline_us for duel in found)
    cell = found[0].cell
    row = _row_of(data, "pipeline-4", cell)
    row["claimed_bytes"] = found[0].ilp.claimed_bytes + 1
    assert cell not in [duel.cell for duel in equal_resources(Results(data), "pipeline-4")]
    row["claimed_bytes"] = 0
    row["latency"]["median_us"] = cell.deadline_us + 1
    assert cell not in [duel.cell for duel in equal_resources(Results(data), "pipeline-4")]


def test_noise_is_that_of_examples_in_pairs(data):
    cell = duels(Results(data), "greedy")[0].cell
    for name, packed in (("ilp", "ff" * 9 + "f0"), ("greedy", "ff" * 8 + "0fff")):
        right = int(packed, 16).bit_count()
        _row_of(data, name, cell)["accuracy"] |= {"correct": packed, "n": 80, "value": right / 80}
    duel = next(duel for duel in duels(Results(data), "greedy") if duel.cell == cell)
    assert duel.points == 0  # four examples each that only one of the two answers
    assert duel.noise == pytest.approx(100 * 1.959964 * math.sqrt(8 / 80 / 80))


def test_noise_without_examples_is_the_wider_interval(data):
    for row in data["rows"]:
        row.get("accuracy", {}).pop("correct", None)
    duel = duels(Results(data), "greedy")[0]
    low, high = duel.ilp.interval
    assert duel.noise >= (high - low) / 2
    assert math.isnan(tally([duel]).noise)


def test_a_lower_cell_is_counted_named_and_fails_the_claim(data):
    for row in data["rows"]:
        if "accuracy" in row:
            row["accuracy"] |= {"value": 0.9 if row["case"]["planner"] == "ilp" else 0.8}
    assert _finding(data, "less accurate than greedy").passed
    assert lower(Results(data), "greedy") == ""
    cell = duels(Results(data), "greedy")[0].cell
    _row_of(data, "ilp", cell)["accuracy"]["value"] = 0.7
    found = _finding(data, "less accurate than greedy")
    assert (found.measured, found.passed) == (1, False) and "-10.0 points" in found.worst
    assert lower(Results(data), "greedy").count("| sst2 |") == 1
    _row_of(data, "greedy", cell)["claimed_bytes"] = _row_of(data, "ilp", cell)["claimed_bytes"]
    assert "0 against plans that claim more" in _finding(data, "less accurate than greedy").worst
    _row_of(data, "greedy", cell)["claimed_bytes"] += 1
    assert "1 against plans that claim more" in _finding(data, "less accurate than greedy").worst
    assert tally(duels(Results(data), "greedy")).larger == 1


def _correct(right: list[bool]) -> dict[str, Any]:
    """A score of so many examples."""
    return {"metric": "accuracy", "value": sum(right) / len(right), "n": len(right), "low": 0.0, "high": 1.0,
            "correct": np.packbits(right).tobytes().hex()}  # fmt: skip


def test_answers_are_kept_where_they_are_the_whole_model_s(data):
    """Greedy is right more often than the whole model and the integer program, which answer alike."""
    scores = {"ilp": [True] * 8 + [False] * 2, "greedy": [True] * 9 + [False]}
    data["full_model"]["sst2"] = _correct(scores["ilp"])
    for row in data["rows"]:
        if "accuracy" in row:
            row["accuracy"] = _correct(scores.get(row["case"]["planner"], [False] * 10))
    cells = len(duels(Results(data), "greedy"))
    assert _finding(data, "less accurate than greedy").measured == cells > 0
    assert _finding(data, "answers than greedy").measured == 0
    kept = agreement(Results(data))
    assert {duel.ilp.points for duel in duels(kept, "greedy")} == {100.0}
    assert {duel.other.points for duel in duels(kept, "greedy")} == {90.0}
    assert {duel.other.points for duel in duels(kept, "pipeline-4")} == {20.0}
    assert "answers that are kept" in report.everything(Results(data), Path("nowhere"))
    _row_of(data, "ilp", duels(kept, "greedy")[0].cell)["accuracy"] = _correct([True] * 7 + [False] * 3)
    assert _finding(data, "answers than greedy").measured == 0  # one answer differs, as of greedy
    _row_of(data, "ilp", duels(kept, "greedy")[0].cell)["accuracy"] = _correct([True] * 6 + [False] * 4)
    found = _finding(data, "answers than greedy")
    assert (found.measured, found.passed) == (1, False) and "-10.0 points" in found.worst


def test_answers_of_tasks_without_classes_are_not_compared(data):
    data["full_model"]["sst2"].pop("correct", None)
    assert agreement(Results(data)).rows == ()
    assert not _finding(data, "answers than greedy").known
    assert "answers that are kept" not in report.everything(Results(data), Path("nowhere"))


def test_cells_without_a_plan_late_runs_and_gaps_are_told_apart(data):
    cell = duels(Results(data), "greedy")[0].cell
    row = _row_of(data, "ilp", cell)
    row["latency"] |= {"median_us": cell.deadline_us + 1, "times_us": [cell.deadline_us + 1]}
    data["rows"].remove(_row_of(data, "greedy", cell))
    baseline = _row_of(data, "pipeline-4", cell)
    data["rows"][data["rows"].index(baseline)] = {"case": baseline["case"], "status": "infeasible", "message": ""}
    where = ("| 1 MiB |", f"| {cell.bytes_per_s / 1e6:.0f} MB/s", f" {cell.deadline_us / 1e3:.1f} ms")
    entries = _line(accuracy(Results(data)), *where).split("|")[4:7]
    assert entries[0].strip().endswith("†") and entries[1].strip() == "" and entries[2].strip() == "–"


def test_greedy_without_a_plan_is_no_duel(data):
    cell = duels(Results(data), "greedy")[0].cell
    before = len(without_plan(Results(data), "greedy"))
    row = _row_of(data, "greedy", cell)
    data["rows"][data["rows"].index(row)] = {"case": row["case"], "status": "infeasible", "message": ""}
    assert cell in without_plan(Results(data), "greedy") and len(without_plan(Results(data), "greedy")) == before + 1
    assert cell not in [duel.cell for duel in duels(Results(data), "greedy")]


def test_memory_above_the_claim_fails_and_so_does_a_plan_that_was_killed(data):
    assert _finding(data, "more memory than claimed").passed
    row = next(row for row in data["rows"] if row["status"] == "ran" and row.get("plan"))
    row["memory"]["engine_bytes"] = row["claimed_bytes"] + 1
    assert _finding(data, "more memory than claimed").measured == 1
    row.update(status="failed", message="needs a | more")
    assert _finding(data, "more memory than claimed").measured == 1
    assert "needs a \\| more" in failures(Results(data))


def test_predictions_of_plans_that_share_their_runs_count_once(data):
    rows = timed(Results(data))
    assert len({(row.plan["digest"], row.bytes_per_s) for row in rows}) == len(rows)
    found = _finding(data, "predicted time")
    assert found.passed and f"{len(rows)} plans" in found.worst
    for row in data["rows"]:
        if row.get("predicted_us"):
            row["latency"]["median_us"] = 1.2 * row["predicted_us"]
    assert _finding(data, "predicted time").measured == pytest.approx(0.2)
    assert _finding(data, "machine's pace").measured == pytest.approx(1.2 / 1.1 - 1)
    line = _line(prediction(Results(data)), "| all |")
    assert "20.0 %" in line and "1.25 | 0.75 | 9.1 %" in line
    for row in data["rows"]:
        row.pop("pace", None)
        row.pop("predicted_at_pace_us", None)
    assert not _finding(data, "machine's pace").known and " | – | – | " in _line(prediction(Results(data)), "| all |")


def test_the_paper_s_ratio_is_judged_at_its_bandwidth_and_one_mib_only(data):
    results = Results(data)
    assert {cell.bytes_per_s for cell in results.cells if results.at_paper(cell)} == {PAPER_BYTES_PER_S}
    for row in data["rows"]:
        case = row["case"]
        if case["planner"] == "ilp" and row["status"] == "ran":
            there = case["bytes_per_s"] == PAPER_BYTES_PER_S and case["preload_bytes"] == MIB
            row["accuracy"]["value"] = 0.88 if there else 0.5
    found = _finding(data, "every deadline")
    assert found.passed and found.measured == pytest.approx(0.5)


def test_peers_are_charged_less_what_importing_them_took(data):
    share = _finding(data, "peak memory there").measured
    for row in data["rows"]:
        if row.get("mode"):
            row["memory"]["imported_bytes"] = row["memory"]["rss_bytes"] // 2
    assert _finding(data, "peak memory there").measured == pytest.approx(2 * share)
    assert "| cold, 100 MB/s |" in peers(Results(data)) and "100 MB/s" not in peers(Results(data), brief=True)


def test_memory_without_a_cgroup_is_not_judged(data):
    for row in data["rows"]:
        if "memory" in row:
            row["memory"] |= {"cgroup_peak_bytes": None, "cgroup_limit_bytes": None}
    assert not _finding(data, "more memory than claimed").known
    assert "| – | – | – |" in _line(memory(Results(data)), "| ilp |")


def test_a_refinement_may_read_the_blocks_that_a_plane_begins_and_ends_in_and_no_more(data):
    (step,) = data["store"]["sst2"]["upgrade"]
    step["bytes_read"] = step["plane_bytes"] + 6 * 2 * 4096
    assert _finding(data, "refinement reads").passed
    step["bytes_read"] += 1
    assert not _finding(data, "refinement reads").passed


def test_a_slow_switch_fails_and_is_named(data):
    assert _finding(data, "switch of plans").passed
    data["switch"].append(data["switch"][0] | {"from": "4 MiB", "to": "1 MiB", "share_of_run": 0.02})
    found = _finding(data, "switch of plans")
    assert not found.passed and found.worst == "sst2, 4 MiB to 1 MiB"
    assert "| 4 MiB to 1 MiB | 90 | 30.0 | 2.00 % |" in switch(Results(data))
