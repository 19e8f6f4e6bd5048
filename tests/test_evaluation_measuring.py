"""How the evaluation measures: limits, processes, turns, and what it makes of them; nothing is timed here."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.evaluation import measure, quiet
from benchmarks.evaluation.accuracy import interval, scored, workers
from benchmarks.evaluation.graphs import widen
from benchmarks.evaluation.measure import Contender, Setting, ended, take_turns
from benchmarks.evaluation.plans import resident
from benchmarks.evaluation.quiet import enough, quietest, repeated
from benchmarks.evaluation.switch import missing_bytes
from benchmarks.evaluation.throttle import Place, counted_memory, place_of, slow_reads, started
from benchmarks.planner_study.synthetic import DEVICES, MINILM, problem_of
from stic.compiler.importance.examples import Examples
from stic.compiler.importance.scoring import Metric
from stic.compiler.plan import Budget
from stic.compiler.simulate import EMBEDDING, HEAD
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError
from stic.runtime.trace import COMPUTE, KINDS, Event, Trace

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


class Turns:
    """Blocks that are made up: in what order they are asked for, and how much was stolen meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, stolen: dict[int, float], failing: str) -> None:
        self.order: list[str] = []
        self.ticks = 0
        self._stolen, self._failing, self._folder = stolen, failing, folder
        monkeypatch.setattr(measure, "_block", self._block)
        monkeypatch.setattr(quiet, "stolen_share", lambda before, after: self._stolen.get(len(self.order), 0.0))

    def _block(self, contender: Contender, setting: Setting) -> dict[str, Any]:
        self.order.append(contender.key)
        if contender.key == self._failing:
            raise EngineError("too large")
        number = len(self.order)
        sizes = {"rss_bytes": 7, "engine_bytes": 5, "cgroup_peak_bytes": 6 + number}
        stalls = {"stall_us": 1, "mean_stall_us": 2}
        return {"times_us": [number] * 2, **stalls, "io_bytes": 3, "direct": True, "timeline": None, **sizes}

    def _tick(self) -> None:
        self.ticks += 1

    def take(self, keys: str, runs: int) -> dict[str, dict[str, Any]]:
        """Blocks of two runs."""
        setting = Setting(self._folder, Place(self._folder, "8:0", True, ()), 1, (1, 2), runs=runs, block=2)
        contenders = [Contender(key, self._folder, EmulatedStorage(100), 10, timeline=False) for key in keys]
        return take_turns(contenders, setting, self._tick)


def test_packages_take_turns_and_one_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, tmp_path, {}, failing="b")
    found = turns.take("abc", runs=6)
    assert turns.order == ["a", "b", "c", "c", "a", "a", "c"] and turns.ticks == 9
    assert found["b"] == {"error": "too large"}
    assert found["a"]["latency"]["times_us"] == [1, 1, 5, 5, 6, 6] and found["a"]["latency"]["median_us"] == 5
    assert found["a"]["latency"]["throttle"] == "cgroup+paced" and found["a"]["latency"]["set_aside_us"] == []
    assert found["c"]["memory"] == {
        "rss_bytes": 7, "cgroup_peak_bytes": 13, "cgroup_limit_bytes": 10, "engine_bytes": 5,
    }  # fmt: skip


def test_disturbed_blocks_are_made_again_and_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch, tmp_path, {2: 0.06}, failing="")
    found = turns.take("ab", runs=4)
    assert turns.order == ["a", "b", "b", "a", "b"] and turns.ticks == 4
    assert found["b"]["latency"]["times_us"] == [3, 3, 5, 5] and found["b"]["latency"]["set_aside_us"] == [2, 2]
    assert found["b"]["latency"]["stolen"] == [0.0, 0.0]
    assert found["a"]["latency"]["times_us"] == [1, 1, 4, 4] and found["a"]["latency"]["set_aside_us"] == []


def test_where_all_is_disturbed_the_least_disturbed_count() -> None:
    assert enough([0.0, 0.04], 2) and not enough([0.0, 0.2], 2)
    assert enough([0.2, 0.3, 0.1, 0.4], 2)  # it gets no better
    assert quietest([0.2, 0.3, 0.1, 0.4], 2) == [0, 2]
    assert quietest([0.05, 0.2, 0.0, 0.0], 2) == [0, 2]  # what was left in peace is not chosen from


def test_what_was_disturbed_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.0, 0.5, 0.01, 0.02])
    monkeypatch.setattr(quiet, "stolen_share", lambda before, after: next(shares))
    results = iter("abcd")
    assert repeated(lambda: next(results), 3) == ["a", "c", "d"]


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
    whole = [resident(((bits,) * store.most_slices,) * store.blocks) for bits in (2, 3, 8)]
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

    curve = measure.watch(Ended(7), Group([0, 5, 5, 5, 9, 9, 9]))
    assert [size for _, size in curve] == [0, 5, 5, 9, 9]
    many = measure.watch(Ended(1000), Group(list(range(1000))))
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
