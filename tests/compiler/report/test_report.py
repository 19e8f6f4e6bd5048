import io
from dataclasses import replace

from rich.console import Console

from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.compiler.report import report
from stic.compiler.report.drawing import terminal
from stic.compiler.simulate import EMBEDDING, HEAD, Event
from stic.runtime import trace

PLAN = Plan(
    planner="ilp",
    layers=(LayerPlan((16, 8, 4), (0, 4, 2)), LayerPlan((), ()), LayerPlan((3, 2), (0, 0))),
    table_resident=False,
    read_ahead=1,
    overlap=True,
    budget=Budget(latency_us=60_000, memory_bytes=14 << 20),
    margin=0.05,
    proof=Proof("feasible", 9.5, 10.0, 1.25),
    notes=("a note [with brackets]",),
)


def printed(print_it, width=120):
    written = io.StringIO()
    print_it(Console(file=written, width=width, markup=False))
    return written.getvalue()


def test_facts_hold_what_scripts_read():
    facts = report.plan_facts(PLAN, 57_000.0, 13 << 20)
    assert facts["gap"] == 0.05 and facts["mean_bits"] == 33 / 5
    assert (facts["predicted_us"], facts["deadline_us"]) == (57_000.0, 60_000)
    assert (facts["peak_bytes"], facts["memory_bytes"]) == (13 << 20, 14 << 20)
    assert {"status", "objective", "bound", "solve_seconds"} <= facts.keys() and facts["loss"] is None
    assert report.plan_facts(replace(PLAN, loss=0.25), 57_000.0, 13 << 20)["loss"] == 0.25


def test_plan_is_printed_with_proof_and_grid():
    text = printed(lambda console: report.print_plan(console, PLAN, 57_000.0, 13 << 20))
    assert "57ms of 60ms (95%)" in text and "13MiB of 14MiB (93%)" in text
    assert "no plan exceeds 10, gap 5.00%" in text and "the time limit ended the search" in text
    assert "proven optimal" not in text
    near = replace(PLAN, proof=replace(PLAN.proof, gap_limit=0.05))
    assert "9.5, near enough: no plan exceeds 10" in report.proof_sentence(near)
    assert "F84" in text and ".42" in text and "left out" in text and "32." in text
    assert "a note [with brackets]" in text


def test_a_measured_loss_is_printed():
    untried, tried = (
        printed(lambda c, p=p: report.print_plan(c, p, 1.0, 1)) for p in (PLAN, replace(PLAN, loss=0.01234567))
    )
    assert "0.01235 on calibration examples" in tried and "calibration" not in untried


def test_places_are_shown_where_there_is_a_gpu():
    placed = replace(PLAN, layers=(replace(PLAN.layers[0], place="gpu"), *PLAN.layers[1:]))
    with_gpu, without = (printed(lambda c, p=p: report.print_plan(c, p, 1.0, 1)) for p in (placed, PLAN))
    assert "runs on" in with_gpu and "GPU" in with_gpu and "CPU" in with_gpu
    assert "runs on" not in without
    assert [shard["place"] for shard in report.plan_facts(placed, 1.0, 1)["shards"]] == ["gpu", "cpu", "cpu"]


def test_a_gpu_has_a_row_of_its_own():
    events = (
        Event("compute", EMBEDDING, -1, 0.0, 2.0, 0, "gpu"),
        Event("stall", 0, -1, 2.0, 3.0, 0, "gpu"),
        Event("compute", 0, -1, 3.0, 9.0, 0, "gpu"),
        Event("compute", HEAD, -1, 9.0, 10.0, 0),
    )
    strip = report.predicted(events, 16, None)
    assert strip.lanes == ("GPU", "compute")
    assert [(span.lane, span.label) for span in strip.spans if span.kind == "compute"] == [
        ("GPU", "E"), ("GPU", "0"), ("compute", "H")
    ]  # fmt: skip
    assert "  GPU " in terminal([strip])


def test_heuristics_claim_no_bound():
    plan = Plan("greedy", PLAN.layers, False, 1, True, Budget(), 0.0, Proof("heuristic", 3.0, None, 0.1))
    text = printed(lambda console: report.print_plan(console, plan, 10.0, 10))
    assert "no bound is known" in text and "no limit was set" in text


def test_predicted_strip():
    events = (
        Event("io", EMBEDDING, -1, 0.0, 5.0, 4096),
        Event("stall", EMBEDDING, -1, 0.0, 5.0, 0),
        Event("compute", EMBEDDING, -1, 5.0, 7.0, 0),
        Event("compute", 11, -1, 7.0, 9.0, 0),
        Event("compute", HEAD, -1, 9.0, 10.0, 0),
    )
    strip = report.predicted(events, 128, 60_000)
    assert strip.lanes == ("IO", "compute") and strip.end_us == 10.0
    assert [span.label for span in strip.spans if span.kind == "compute"] == ["E", "11", "H"]


def test_measured_strip_joins_the_steps_of_a_layer():
    def event(name, layer, track, begin_us, end_us):
        kind = next(number for number, known in trace.KINDS.items() if known == name)
        return trace.Event(kind, layer, track, 0, 0, 0, 0, 0, begin_us * 1000, end_us * 1000)

    events = (
        event("embed", -1, -1, 0, 10),
        event("stall", 0, -1, 10, 20),
        event("qkv", 0, -1, 20, 30),
        event("attention", 0, -1, 30, 45),
        event("qkv", 1, -1, 45, 50),
        event("head", -1, -1, 50, 51),
        event("rows", -1, 1, 0, 4),
        event("read", 0, 1, 4, 20),
        event("rows", -1, 2, 0, 5),
        event("rows", -1, 3, 0, 6),
    )
    strip = report.measured(trace.Trace(events), tokens=9)
    compute = [(s.kind, s.label, s.start_us, s.end_us) for s in strip.spans if s.lane == "compute"]
    assert compute == [
        ("compute", "E", 0, 10),
        ("stall", "", 10, 20),
        ("compute", "0", 20, 45),
        ("compute", "1", 45, 50),
        ("compute", "H", 50, 51),
    ]
    assert strip.lanes == ("IO 1", "IO rows", "compute")


def test_similarities_are_a_matrix():
    values = [["1.000", "0.250"], ["0.250", "1.000"]]
    text = printed(lambda console: console.print(report.similarity_table(["one", "two"], values)))
    assert text.count("0.250") == 2 and text.count("1.000") == 2


def test_plans_of_a_family_are_a_table():
    facts = {"number": 0, "default": True, "deadline_us": 60_000, "predicted_us": 57_000, "peak_bytes": 6 << 20}
    facts |= {"preload_bytes": 1 << 20, "mean_bits": 5.5, "quality": -0.01234567}
    other = facts | {"number": 1, "default": False, "deadline_us": None, "quality": 9.5}
    lines = printed(lambda console: console.print(report.family_table([facts, other]))).splitlines()
    assert lines[1].split() == ["0*", "60ms", "57ms", "6MiB", "1MiB", "5.50", "-0.01235"]
    assert lines[2].split() == ["1", "-", "57ms", "6MiB", "1MiB", "5.50", "9.5"]
    said = " ".join(" ".join(lines[3:]).split())
    assert "minus the loss on calibration examples, or the objective where untried" in said


def test_sizes_add_up():
    text = printed(lambda console: console.print(report.size_table("file", {"a": 1024, "b": 3072})))
    assert "4,096" in text and "25.0%" in text and "75.0%" in text


def test_a_probe_is_printed():
    shape = {"hidden": 384, "heads_per_slice": 1, "head_dim": 32, "neurons_per_slice": 128, "slices": 12, "rows": 128}
    shape |= {"layer_us": 80.0, "slice_us": {"2": 90.0, "8": 110.0}, "embed_us": 10.0, "head_us": 5.0, "submit_us": 2.0}
    points = [{"bytes": 1 << 20, "lanes": 2, "median_us": 2000.0, "spread_us": 30.0}]
    io_facts = {"direct": True, "lanes": 2, "points": points, "request_us": 90.0, "bytes_per_s": 5.2e8, "row_us": 45.0}
    data = {"device": "a phone", "io": io_facts, "compute": {"threads": 2, "shapes": [shape | {"spread": 0.1}]}}
    text = printed(lambda console: report.print_device(console, data))
    assert "past the page cache; 2 lanes: 520 MB/s" in text and "1MiB" in text and "524" in text
    assert "8 bits" in text and "110us" in text


def test_facts_are_lines():
    facts = {"rank_correlation": 0.91234567, "loss": None, "raw": [1, 2, 3], "method": "curves"}
    text = printed(lambda console: console.print(report.facts_table(facts)))
    assert "rank correlation" in text and "0.912346" in text and "not measured" in text and "1, 2, 3" in text
