"""Several plans in one package, end to end: `--also`, what is listed, and commands that open under a budget."""

import json

import pytest

from stic.compiler import cli
from stic.compiler.report import contents
from stic.runtime.format import MAJOR
from stic.runtime.package import Package

SIZES = {"hidden": 64, "heads_per_slice": 1, "head_dim": 16, "neurons_per_slice": 32, "slices": 4, "rows": 32}
CPU = {"layer_us": 50.0, "slice_us": {"2": 40.0, "16": 90.0}, "embed_us": 5.0, "head_us": 5.0, "submit_us": 5.0}
IO = {"direct": True, "lanes": 2, "request_us": 50.0, "bytes_per_s": 2e7, "row_us": 20.0}
HOST = ["--target", "host", "--max-length", "32", "--full-bits", "0", "--latency", "100ms"]
SMALLER = 80 << 10  # what the second plan has less than the first one takes: it must stream, at fewer bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def compiling(folder, tiny_dir):
    """Arguments of a compilation for a device with slow storage, all but budgets and output."""
    profile = folder / "device.json"
    compute = {"threads": 2, "shapes": [{**SIZES, **CPU}]}
    profile.write_text(json.dumps({"format": 1, "device": "a board", "io": IO, "compute": compute}))
    return ["compile", tiny_dir, *HOST, "--threads", "2", "--lanes", "2", "--device-profile", profile]


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def least(folder, compiling):
    """Memory of a plan that streams, in bytes; one with everything in memory takes more."""
    assert run(*compiling, "--memory", "16MiB", "-o", folder / "alone.stic") == 0
    return Package.open(folder / "alone.stic").entry.claimed_bytes - SMALLER


@pytest.fixture(scope="module")
def family(folder, compiling, least):
    """A package of two plans: everything in memory, and less."""
    path = folder / "family.stic"
    assert run(*compiling, "--memory", "16MiB", "--also", f",{least}B", "-o", path, "--dump", folder / "dump") == 0
    return path


def test_a_package_has_a_plan_for_each_budget(family, least):
    package = Package.open(family)
    package.verify()
    first, second = package.plans
    assert first.claimed_bytes > least >= second.claimed_bytes
    assert first.deadline_us == second.deadline_us == 100_000 and second.predicted_us < 100_000
    assert first.quality > second.quality and first.preload[1] > second.preload[1]
    plans = [contents.plan_of(package.with_plan(number)) for number in (0, 1)]
    assert [plan.budget.memory_bytes for plan in plans] == [16 << 20, least]
    assert [plan.quality for plan in plans] == [first.quality, second.quality]


def test_stages_say_what_they_made_of_each_plan(family, folder):
    for stage, name in (("plan", "budget"), ("check", "peak_bytes")):
        (path,) = (folder / "dump").glob(f"*-{stage}.json")
        told = json.loads(path.read_text())
        assert len(told["family"]) == 2 and told["family"][0][name] == told[name] != told["family"][1][name]


def test_compile_lists_the_plans(stic, compiling, least, tmp_path):
    arguments = [*compiling, "--memory", "16MiB", "--also", f",{least}B", "--also", "1us,", "-o", tmp_path / "m.stic"]
    status, out, err = stic(*arguments)
    assert status == 0 and "0*" in out and "quality: minus the loss on calibration examples" in out
    assert "note: there is no plan for 1us,16MiB: no plan fits 16MiB at 1us" in err
    status, out, _ = stic(*arguments, "--json")
    facts = json.loads(out)["family"]
    assert [(plan["number"], plan["default"]) for plan in facts] == [(0, True), (1, False)]
    assert facts[0]["quality"] > facts[1]["quality"] and facts[1]["peak_bytes"] <= least


def test_one_budget_makes_no_family(stic, folder, family):
    facts = json.loads(stic("inspect", folder / "alone.stic", "--json")[1])
    assert facts["family"] == [] and facts["plans"] == 1 and facts["format"] == f"{MAJOR}.0"
    assert "quality" not in stic("inspect", folder / "alone.stic")[1]


def test_inspect_lists_the_plans_and_shows_the_one_asked_for(stic, family):
    package, shown = Package.open(family), []
    for number in (0, 1):
        status, out, _ = stic("inspect", family, "--plan", number, "--json")
        facts = json.loads(out)
        shown.append(facts)
        entry = package.plans[number]
        assert status == 0 and facts["plan"] == number and len(facts["family"]) == 2
        assert (facts["peak_bytes"], facts["predicted_us"]) == (entry.claimed_bytes, entry.predicted_us)
        assert facts["peak_bytes"] == sum(facts["memory"].values())
    assert shown[0]["shards"] != shown[1]["shards"] and shown[0]["files"] == shown[1]["files"]
    assert json.loads(stic("inspect", family, "--json")[1])["plan"] == 0
    out = stic("inspect", family, "--plan", 1)[1]
    assert "2 plans to switch between; this is plan 1" in out and "plan 1, predicted for 32 tokens" in out
    assert f"{shown[1]['mean_bits']:.2f}" in out and "0*" in out


def test_inspect_draws_every_plan_or_one(stic, family, tmp_path):
    for more, drawn in (([], ["plan 0", "plan 1"]), (["--plan", 1], ["plan 1"])):
        assert stic("inspect", family, "--figure", tmp_path / "f.svg", *more)[0] == 0
        text = (tmp_path / "f.svg").read_text()
        assert [name for name in ("plan 0", "plan 1") if f"<!-- {name}, predicted" in text] == drawn


def test_a_plan_that_is_not_there_is_a_sentence(stic, family):
    status, out, err = stic("inspect", family, "--plan", 7)
    assert status == 1 and out == "" and "no plan 7" in err and err.count("\n") == 1


def test_run_opens_under_a_budget(stic, family, least):
    for more, number in (([], 0), (["--memory", f"{least}B"], 1), (["--memory", "1GiB", "--latency", "1s"], 0)):
        status, out, err = stic("run", family, "--ids", "2,5,6,3", "--json", *more)
        assert status == 0, err
        assert json.loads(out)["plan"] == number
    status, out, _ = stic("run", family, "--ids", "2,5,6,3", "--memory", f"{least}B", "--timeline")
    assert status == 0 and "plan 1 of 2: for 100ms, predicted" in out and "plan 1, predicted for 32 tokens" in out


@pytest.mark.parametrize("command", ["run", "bench", "eval"])
@pytest.mark.parametrize("budget", [["--latency", "1us"], ["--memory", "1MiB"]])
def test_a_budget_that_no_plan_meets_is_one_line(stic, family, tmp_path, command, budget):
    data = tmp_path / "data.tsv"
    data.write_text("score\tsentence1\tsentence2\n1\tthe cat\tthe dog\n3\ta film\ta movie\n")
    more = {"run": ["--ids", "2,3"], "eval": ["--data", data], "bench": ["--runs", 1]}[command]
    status, out, err = stic(command, family, *more, *budget)
    said = [line for line in err.splitlines() if "error" in line]
    assert status == 1 and out == "" and len(said) == 1 and said[0].startswith("stic: error: ")
    assert "least" in said[0]


def test_bench_measures_the_plan_of_the_budget(stic, family, least):
    plans = Package.open(family).plans
    for more, number in (([], 0), (["--memory", f"{least}B"], 1)):
        status, out, err = stic("bench", family, "--runs", 2, "--json", *more)
        assert status == 0, err
        facts = json.loads(out)
        assert (facts["plan"], facts["predicted_us"]) == (number, plans[number].predicted_us)
        assert facts["claimed_bytes"] == plans[number].claimed_bytes >= facts["peak_bytes"]


def test_eval_opens_under_a_budget(stic, family, least, tmp_path):
    data = tmp_path / "data.tsv"
    data.write_text("score\tsentence1\tsentence2\n1\tthe cat\tthe dog\n3\ta film\ta movie\n2\tgood\tbad\n")
    status, out, err = stic("eval", family, "--data", data, "--memory", f"{least}B", "--json")
    assert status == 0 and json.loads(out)["n"] == 3, err
    there = ["--tracker", "127.0.0.1:9", "--memory", "4MiB"]
    status, _, err = stic("eval", family, "--data", data, *there)
    assert status == 2 and "first plan runs" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--place", "gpu", "--also", ",4MiB"], "plan with --place cpu"),
        (["--also", "0ms,"], "--also must be more than zero"),
        (["--also", ",4MiB"] * 64, "64 plans at most"),
    ],
)
def test_a_family_that_cannot_be_is_refused_before_anything_is_measured(stic, compiling, tmp_path, options, message):
    status, _, err = stic(*compiling, *options, "-o", tmp_path / "m.stic")
    assert status == 1 and message in err and "stic: load" not in err and not list(tmp_path.iterdir())
