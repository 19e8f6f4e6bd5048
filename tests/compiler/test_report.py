import io
from types import SimpleNamespace

from rich.console import Console

from stic.compiler import report
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.compiler.simulate import EMBEDDING, HEAD, Event

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
    console = Console(file=io.StringIO(), width=width, markup=False)
    print_it(console)
    return console.file.getvalue()


def test_facts_hold_what_scripts_read():
    facts = report.plan_facts(PLAN, 57_000.0, 13 << 20)
    assert facts["gap"] == 0.05 and facts["mean_bits"] == 33 / 5
    assert (facts["predicted_us"], facts["deadline_us"]) == (57_000.0, 60_000)
    assert (facts["peak_bytes"], facts["memory_bytes"]) == (13 << 20, 14 << 20)
    assert {"status", "objective", "bound", "solve_seconds"} <= facts.keys()


def test_plan_is_printed_with_proof_and_grid():
    text = printed(lambda console: report.print_plan(console, PLAN, 57_000.0, 13 << 20))
    assert "57ms of 60ms (95%)" in text and "13MiB of 14MiB (93%)" in text
    assert "no plan exceeds 10, gap 5.00%" in text and "the time limit ended the search" in text
    assert "proven optimal" not in text
    assert "F84" in text and ".42" in text and "left out" in text and "32." in text
    assert "a note [with brackets]" in text


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
    def event(kind, layer, track, begin_us, end_us):
        return SimpleNamespace(kind=kind, layer=layer, track=track, begin_ns=begin_us * 1000, end_ns=end_us * 1000)

    strip = report.measured(
        [
            event(1, -1, -1, 0, 10),
            event(0, 0, -1, 10, 20),
            event(3, 0, -1, 20, 30),
            event(4, 0, -1, 30, 45),
            event(3, 1, -1, 45, 50),
            event(10, -1, -1, 50, 51),
            event(20, 0, 1, 0, 20),
        ],
        tokens=9,
    )
    compute = [(s.kind, s.label, s.start_us, s.end_us) for s in strip.spans if s.lane == "compute"]
    assert compute == [
        ("compute", "E", 0, 10),
        ("stall", "", 10, 20),
        ("compute", "0", 20, 45),
        ("compute", "1", 45, 50),
        ("compute", "H", 50, 51),
    ]
    assert strip.lanes == ("IO 1", "compute")


def test_similarities_are_a_matrix():
    text = printed(lambda console: console.print(report.similarity_table(["one", "two"], [[1.0, 0.25], [0.25, 1.0]])))
    assert text.count("0.250") == 2 and text.count("1.000") == 2


def test_sizes_add_up():
    text = printed(lambda console: console.print(report.size_table("file", {"a": 1024, "b": 3072})))
    assert "4,096" in text and "25.0%" in text and "75.0%" in text
