"""The evaluation's harness: case files, what is kept between runs, limits; nothing is timed here."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.evaluation import __main__ as command
from benchmarks.evaluation import measure, plans
from benchmarks.evaluation.accuracy import interval, scored, workers
from benchmarks.evaluation.case_file import read_cases
from benchmarks.evaluation.cases import NONE, Case, Pattern, PeerCase
from benchmarks.evaluation.graphs import widen
from benchmarks.evaluation.measure import Contender, Setting, ended, take_turns
from benchmarks.evaluation.plans import Asked, answer, asked_of
from benchmarks.evaluation.resume import Finished, alone, write_json
from benchmarks.evaluation.switch import missing_bytes
from benchmarks.evaluation.tasks import Prepared, typical
from benchmarks.evaluation.throttle import Place, counted_memory, place_of, slow_reads, started
from stic.compiler.plan import Budget
from stic.compiler.planner.synthetic import DEVICES, MINILM, problem_of
from stic.compiler.simulate import EMBEDDING, HEAD, simulate
from stic.compiler.task import Examples, Metric
from stic.runtime.errors import EngineError, InputError
from stic.runtime.trace import COMPUTE, KINDS, Event, Trace

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
    return Prepared(name=name, problem=problem, trial=trial, **rest)  # type: ignore[arg-type]


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


# Limits and processes.


def test_what_cannot_be_limited_is_said(tmp_path: Path) -> None:
    place = place_of(tmp_path)
    assert place.throttle(paced=True) == ("cgroup+paced" if place.device else "paced")
    assert place.throttle(paced=False) == ("cgroup" if place.device else None)
    assert bool(place.reasons) == (place.device is None or not place.memory)
    nothing = Place(tmp_path, None, False, ())
    with slow_reads(nothing, 1e6) as group, counted_memory(nothing, 1 << 20) as memory:
        assert group is None and memory is None


def test_a_process_that_needs_more_than_its_limit_is_ended_and_said_so(tmp_path: Path) -> None:
    place = place_of(tmp_path)
    if not place.memory:
        pytest.skip(f"needs a memory control group: {'; '.join(place.reasons)}")
    program = [sys.executable, "-S", "-c", "print(len(bytearray(96 << 20)))"]
    with counted_memory(place, 32 << 20) as memory:
        assert memory is not None
        with started(program, [memory.path]) as process, pytest.raises(EngineError, match="more memory than the plan"):
            ended(process, "the plan")
        assert 16 << 20 < memory.peak_bytes <= 32 << 20
        path = memory.path
    assert not path.exists()


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with started(["sleep", "60"], []) as process, pytest.raises(EngineError, match="had not ended"):
        ended(process, "any", patience_s=0.05)
    assert process.returncode == -9


def test_the_sentence_of_a_process_that_fails_is_kept() -> None:
    with started(["sh", "-c", "echo stic_run: no package here >&2; exit 1"], []) as process:
        with pytest.raises(EngineError, match=r"^no package here$"):
            ended(process, "any")


def _sleeping(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def _refusing(sentence: str) -> dict[str, Any]:
    raise EngineError(sentence)


def test_workers_give_results_as_they_end_and_sentences_for_failures() -> None:
    with workers(2) as run:
        found = dict(run({"a": (_refusing, ("no such package",)), "b": (_sleeping, (0.0,))}))
    assert found == {"a": {"error": "no such package"}, "b": {}}


def test_workers_end_with_what_waits_for_them() -> None:
    with pytest.raises(KeyboardInterrupt), workers(1) as run:
        for _ in run({"quick": (_sleeping, (0.0,)), "slow": (_sleeping, (300.0,))}):
            raise KeyboardInterrupt


# Measurements, as far as they can be had without measuring.


def test_packages_take_turns_and_one_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def block(contender: Contender, setting: Setting) -> dict[str, Any]:
        order.append(contender.key)
        if contender.key == "b":
            raise EngineError("too large")
        sizes = {"rss_bytes": 7, "engine_bytes": 5, "cgroup_peak_bytes": 6 + len(order)}
        stalls = {"stall_us": 1, "mean_stall_us": 2}
        return {"times_us": [len(order)] * 2, **stalls, "io_bytes": 3, "direct": True, "timeline": None, **sizes}

    monkeypatch.setattr(measure, "_block", block)
    setting = Setting(tmp_path, Place(tmp_path, "8:0", True, ()), 1, (1, 2), runs=6, block=2)
    contenders = [Contender(key, tmp_path, 100, 10, timeline=False) for key in "abc"]
    ticks: list[None] = []
    found = take_turns(contenders, setting, lambda: ticks.append(None))
    assert order == ["a", "b", "c", "c", "a", "a", "c"] and len(ticks) == 9
    assert found["b"] == {"error": "too large"}
    assert found["a"]["latency"]["times_us"] == [1, 1, 5, 5, 6, 6] and found["a"]["latency"]["median_us"] == 5
    assert found["a"]["latency"]["throttle"] == "cgroup+paced"
    assert found["c"]["memory"] == {
        "rss_bytes": 7, "cgroup_peak_bytes": 13, "cgroup_limit_bytes": 10, "engine_bytes": 5,
    }  # fmt: skip


def test_intervals_hold_the_score_and_narrow_with_more_examples() -> None:
    low, high = interval(Metric("accuracy", 0.9, 100))  # Wilson's, as tables give it
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)
    low, high = interval(Metric("spearman", 0.5, 103))  # Fisher's: atanh(0.5) -+ 1.96 / 10
    assert (round(low, 4), round(high, 4)) == (0.3393, 0.6323)
    for name in ("accuracy", "spearman"):
        few, many = (interval(Metric(name, 0.8, n)) for n in (50, 5000))
        assert few[0] < many[0] < 0.8 < many[1] < few[1]
    assert interval(Metric("accuracy", 1.0, 10))[1] == 1.0


def test_a_score_says_which_examples_are_right() -> None:
    texts = tuple((str(i), None) for i in range(9))
    examples = Examples("classification", texts, np.array([0, 1, 1, 0, 1, 0, 0, 0, 1.0]), "here")
    outputs = np.eye(2, dtype=np.float32)[[0, 1, 0, 0, 1, 1, 0, 0, 1]]
    found = scored(outputs, examples)
    assert found["value"] == 7 / 9 and found["n"] == 9
    assert np.unpackbits(np.frombuffer(bytes.fromhex(found["correct"]), np.uint8), count=9).tolist() == [
        1, 1, 0, 1, 1, 0, 1, 1, 1,
    ]  # fmt: skip


def test_a_bit_more_of_every_shard_misses_one_plane() -> None:
    store = problem_of(MINILM, DEVICES[0], 0, Budget()).store
    whole = [plans.resident(((bits,) * store.slices,) * store.layers) for bits in (2, 3, 8)]
    assert missing_bytes(store, whole[0], whole[1]) == int(store.bytes[:, 1].sum())
    assert missing_bytes(store, whole[0], whole[2]) == int(store.bytes[:, 1:7].sum())
    assert missing_bytes(store, whole[2], whole[0]) == 0


def test_half_precision_weights_are_widened_for_other_runtimes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = np.arange(6, dtype=np.float16).reshape(2, 3)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph)
    widen(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Cast"]
    assert model.graph.node[0].input[:] == ["x", "w"]
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight.astype(np.float32))


def test_memory_over_time_keeps_what_changes() -> None:
    class Ended:
        """A process that ends after some samples."""

        def __init__(self, samples: int) -> None:
            self.left = samples

        def poll(self) -> int | None:
            self.left -= 1
            return None if self.left >= 0 else 0

    class Group:
        """Memory as it is read, sample by sample."""

        def __init__(self, sizes: list[int]) -> None:
            self.sizes = iter(sizes)

        @property
        def used_bytes(self) -> int:
            return next(self.sizes)

    curve = measure.watch(Ended(7), Group([0, 5, 5, 5, 9, 9, 9]))  # type: ignore[arg-type]
    assert [size for _, size in curve] == [0, 5, 5, 9, 9]
    many = measure.watch(Ended(1000), Group(list(range(1000))))  # type: ignore[arg-type]
    assert len(many) <= measure.CURVE_POINTS and many[-1][1] == 999 and many == sorted(many)


def test_a_trace_becomes_a_timeline_in_the_words_of_a_replay() -> None:
    def event(kind: int, layer: int, track: int, begin: int, end: int, size: int = 0) -> Event:
        return Event(kind, layer, track, 0, 0, 1, size, 1000 * begin, 1000 * begin, 1000 * end)

    kinds = {name: number for number, name in KINDS.items()}
    events = [
        event(kinds["rows"], -1, 0, 0, 2, 4096), event(kinds["rows"], -1, 1, 0, 3, 4096),
        event(kinds["rows"], -1, 0, 2, 4, 4096), event(kinds["stall"], -1, COMPUTE, 0, 4),
        event(kinds["embed"], -1, COMPUTE, 4, 6), event(kinds["read"], 0, 1, 4, 9, 8192),
        event(kinds["qkv"], 0, COMPUTE, 9, 11), event(kinds["down"], 0, COMPUTE, 11, 15),
        event(kinds["head"], -1, COMPUTE, 15, 16),
    ]  # fmt: skip
    found = measure._timeline(Trace(tuple(events)).to_chrome()["traceEvents"])
    assert [(e["kind"], e["layer"], e["start_us"], e["end_us"], e["bytes"]) for e in found] == [
        ("io", EMBEDDING, 0, 4, 8192), ("io", EMBEDDING, 0, 3, 4096), ("stall", -1, 0, 4, 0),
        ("compute", EMBEDDING, 4, 6, 0), ("io", 0, 4, 9, 8192), ("compute", 0, 9, 15, 0), ("compute", HEAD, 15, 16, 0),
    ]  # fmt: skip
