"""Commands end to end, on tiny encoders with random weights: what they print, and what they refuse."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest

from stic.compiler import cli

FACTS = "status objective bound gap solve_seconds predicted_us peak_bytes deadline_us memory_bytes mean_bits".split()
HOST = ["--target", "host", "--max-length", "32", "--memory", "16MiB"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def device(folder, tiny_dir):
    """A probe of this machine, shared by all tests that plan."""
    path = folder / "device.json"
    assert cli.main(["probe", str(tiny_dir), "--max-length", "32", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def encoder(folder, device, tiny_dir):
    """A sentence encoder, compiled for this machine."""
    arguments = [
        "compile",
        tiny_dir,
        *HOST,
        "--latency",
        "1s",
        "--device-profile",
        device,
        "-o",
        folder / "encoder.stic",
    ]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return folder / "encoder.stic"


@pytest.fixture(scope="module")
def classifier(folder, device, tiny_classifier_dir):
    """A classifier with labels, everything resident."""
    arguments = ["compile", tiny_classifier_dir, *HOST, "--planner", "preload", "--bits", "6"]
    arguments += ["--device-profile", device, "-o", folder / "classifier.stic"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return folder / "classifier.stic"


def test_export_keeps_the_tokenizer_beside_the_model(stic, tiny_dir, tmp_path):
    status, _, _ = stic("export", tiny_dir, "-o", tmp_path / "tiny.onnx")
    assert status == 0
    assert (tmp_path / "tokenizer.json").read_bytes() == (tiny_dir / "tokenizer.json").read_bytes()


def test_plan_as_json(stic, tiny_dir, device):
    status, out, _ = stic("plan", tiny_dir, *HOST, "--latency", "1s", "--device-profile", device, "--json")
    facts = json.loads(out)
    assert status == 0 and set(FACTS) <= facts.keys()
    assert (facts["deadline_us"], facts["memory_bytes"]) == (1_000_000, 16 << 20)
    assert facts["predicted_us"] <= facts["deadline_us"] and facts["peak_bytes"] <= facts["memory_bytes"]


def test_a_plan_says_what_it_loses_if_it_was_tried(stic, tiny_dir, device):
    arguments = ["plan", tiny_dir, *HOST, "--latency", "1s", "--device-profile", device]
    loss = json.loads(stic(*arguments, "--json")[1])["loss"]
    status, out, _ = stic(*arguments)
    assert status == 0 and loss > 0 and f"{loss:.4g} on calibration examples" in out
    untried = [*arguments, "--trial-tokens", 0]
    assert json.loads(stic(*untried, "--json")[1])["loss"] is None
    status, out, _ = stic(*untried)
    assert status == 0 and "on calibration examples" not in out


@pytest.mark.parametrize("trial", [[], ["--trial-tokens", 0]])
def test_bits_are_for_planners_that_hold_every_shard_at_them(stic, tiny_dir, device, trial):
    status, out, err = stic("plan", tiny_dir, *HOST, "--device-profile", device, "--bits", 4, *trial)
    assert status == 1 and out == "" and "planner ilp does not take --bits" in err


def test_impossible_budget_names_what_would_do(stic, tiny_dir, device, tmp_path):
    budget = ["--latency", "1us", "--memory", "1MiB"]
    status, _, err = stic("compile", tiny_dir, *HOST, *budget, "--device-profile", device, "-o", tmp_path / "p")
    assert status == 1 and "MiB" in err and not list(tmp_path.iterdir())
    assert err.splitlines()[-1].startswith("stic: error: ")


def test_sweep_is_a_table_and_a_picture(stic, tiny_dir, device, tmp_path):
    arguments = ["plan", tiny_dir, *HOST, "--latency", "1s", "--device-profile", device]
    arguments += ["--sweep", "--latencies", "1us,1s", "--memories", "8MiB,16MiB"]
    status, out, _ = stic(*arguments, "--figure", tmp_path / "sweep.svg", "--json")
    points = json.loads(out)
    assert status == 0 and len(points) == 4
    assert {point["status"] for point in points if point["deadline_us"] == 1} == {"infeasible"}
    assert (tmp_path / "sweep.svg").read_text().lstrip().startswith("<?xml")
    status, out, _ = stic(*arguments)
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert status == 0 and rows["latency"].split() == ["latency", "8MiB", "16MiB"]
    assert rows["1us"].split() == ["1us", "-", "-"]
    objectives = [point["objective"] for point in points if point["deadline_us"] == 1_000_000]
    shown = [float(number) for number in re.findall(r"(\S+) \(\d+\.\d b\)", rows["1s"])]
    assert len(shown) == 2 and shown == pytest.approx(objectives, rel=0.01)  # two searches, each to a small gap


def test_inspect_shows_shards_bytes_timeline_and_proof(stic, encoder):
    status, out, _ = stic("inspect", encoder, "--verify")
    assert status == 0
    for text in ("2 layers of 4 slices", "shards.bin", "bit planes", "proof", "predicted for 32", "every checksum"):
        assert text in out
    status, out, _ = stic("inspect", encoder, "--json")
    facts = json.loads(out)
    assert set(FACTS) <= facts.keys() and facts["shards"][0]["bits"]
    assert facts["files"]["shards.bin"] == sum(facts["kinds"].values())
    assert facts["peak_bytes"] == sum(facts["memory"].values())


def test_inspect_verify_finds_a_flipped_bit(stic, encoder, tmp_path):
    broken = shutil.copytree(encoder, tmp_path / "broken.stic")
    data = bytearray((broken / "shards.bin").read_bytes())
    data[100] ^= 1
    (broken / "shards.bin").write_bytes(data)
    assert stic("inspect", broken)[0] == 0
    status, _, err = stic("inspect", broken, "--verify")
    assert status == 1 and "shards.bin is corrupt" in err


def test_run_prints_similarities_trace_and_timeline(stic, encoder, tmp_path):
    texts = ["--text", "the cat sings", "--text", "the cat sings", "--text", "a bad film"]
    status, out, _ = stic("run", encoder, *texts, "--trace", tmp_path / "run.json", "--timeline")
    assert status == 0
    outputs = json.loads(stic("run", encoder, *texts, "--json")[1])["outputs"]
    units = [np.array(output) / np.linalg.norm(output) for output in outputs]
    lines = {
        line.split()[0]: line.split()[-3:] for line in out.splitlines() if line.split()[:1] in (["0"], ["1"], ["2"])
    }
    for i, unit in enumerate(units):
        assert [float(number) for number in lines[str(i)]] == pytest.approx([unit @ other for other in units], abs=1e-3)
    assert lines["0"][:2] == lines["1"][:2] == ["1.000", "1.000"] and lines["2"][2] == "1.000"
    assert float(lines["0"][2]) < 0.999  # another sentence is another vector
    assert "predicted for 32 tokens" in out and "measured with 5 tokens" in out
    names = {event["name"] for event in json.loads((tmp_path / "run.json").read_text())["traceEvents"]}
    assert {"embed", "qkv", "head"} <= names


def test_run_draws_a_picture_and_gives_vectors(stic, encoder, tmp_path):
    status, out, _ = stic("run", encoder, "--ids", "2,5,6,3", "--timeline", tmp_path / "run.svg", "--json")
    facts = json.loads(out)
    assert status == 0 and (tmp_path / "run.svg").exists()
    assert np.linalg.norm(facts["outputs"][0]) == pytest.approx(1.0, abs=1e-3)
    assert facts["runs"][0]["tokens"] == 4 and facts["runs"][0]["run_us"] > 0


def test_run_names_the_class(stic, classifier):
    """Of every text, the class of the larger logit and its share."""
    sentences = [f"a {word} {noun}" for word in ("good", "bad", "great", "awful", "very") for noun in ("movie", "dog")]
    texts = [argument for sentence in sentences for argument in ("--text", sentence)]
    logits = np.array(json.loads(stic("run", classifier, *texts, "--json")[1])["outputs"])
    status, out, _ = stic("run", classifier, *texts)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert status == 0
    for sentence, share in zip(sentences, shares, strict=True):
        line = next(line for line in out.splitlines() if line.rstrip().endswith(sentence))
        assert line.split()[:2] == [("negative", "positive")[share.argmax()], f"{share.max():.3f}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ids", "2,99999"], "99999"),
        (["--ids", "2,x"], "not a list of token numbers"),
        (["--ids", ",".join(["5"] * 33)], "32"),
        (["--text", "cat " * 40], "compiled for 32"),
    ],
)
def test_run_refuses_what_does_not_fit(stic, encoder, arguments, message):
    status, out, err = stic("run", encoder, *arguments)
    assert status == 1 and out == "" and message in err


def test_run_cuts_a_text_if_asked(stic, encoder):
    assert stic("run", encoder, "--text", "cat " * 40, "--truncate")[0] == 0


def test_eval_measures_accuracy_and_similarity(stic, classifier, encoder, tmp_path):
    labelled = tmp_path / "labelled.tsv"
    labelled.write_text("sentence\tlabel\na good film\tpositive\nan awful film\tnegative\nthe cat\tpositive\n")
    status, out, _ = stic("eval", classifier, "--data", labelled, "--json")
    facts = json.loads(out)
    assert status == 0 and facts["metric"] == "accuracy" and facts["n"] == 3 and 0 <= facts["value"] <= 1
    scored = tmp_path / "scored.tsv"
    scored.write_text("score\tsentence1\tsentence2\n5\ta cat\ta cat\n1\ta cat\tawful film\n3\tthe dog\ta dog\n")
    status, out, _ = stic("eval", encoder, "--data", scored, "--task", "similarity", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["metric"] == "spearman" and facts["n"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("wrong\tcolumns\na\tb\n", "columns"), ("sentence\tlabel\n", "no examples")],
)
def test_eval_refuses_a_wrong_file(stic, classifier, tmp_path, text, message):
    (tmp_path / "data.tsv").write_text(text)
    status, _, err = stic("eval", classifier, "--data", tmp_path / "data.tsv")
    assert status == 1 and message in err


def test_bench_reports_time_and_memory(stic, encoder):
    for cold in ([], ["--cold"]):
        status, out, _ = stic("bench", encoder, "--runs", 3, "--json", *cold)
        facts = json.loads(out)
        assert status == 0
        for name in "median_us p95_us predicted_us stall_us peak_bytes claimed_bytes rss_bytes".split():
            assert facts[name] >= 0
        assert facts["p95_us"] >= facts["median_us"] > 0
        assert facts["rss_bytes"] > 0 and facts["peak_bytes"] <= facts["claimed_bytes"]
        assert facts["late"] is None if facts["deadline_us"] is None else 0 <= facts["late"] <= 3


def test_profile_is_what_compile_takes(stic, tiny_classifier_dir, device, tmp_path):
    data = tmp_path / "calibration.tsv"
    data.write_text("sentence\tlabel\n" + "a good film\tpositive\nan awful film\tnegative\n" * 4)
    status, _, _ = stic(
        "importance", tiny_classifier_dir, "--calibration", data, "--checks", 4, "-o", tmp_path / "importance.json"
    )
    assert status == 0
    status, out, _ = stic(
        "plan",
        tiny_classifier_dir,
        *HOST,
        "--device-profile",
        device,
        "--importance",
        tmp_path / "importance.json",
        "--json",
    )
    assert status == 0 and json.loads(out)["deadline_us"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("sentence\tlabel\na\t1\nb\t1\n", "same class"),
        ("first\tsecond\na\tb\n", "columns"),
    ],
)
def test_profile_refuses_a_wrong_calibration_file(stic, tiny_classifier_dir, tmp_path, text, message):
    (tmp_path / "data.tsv").write_text(text)
    status, _, err = stic(
        "importance", tiny_classifier_dir, "--calibration", tmp_path / "data.tsv", "-o", tmp_path / "importance.json"
    )
    assert status == 1 and message in err and not (tmp_path / "importance.json").exists()


def test_unknown_target_lists_the_known_ones(stic, tiny_dir, tmp_path):
    status, _, err = stic("compile", tiny_dir, "--target", "toaster", "-o", tmp_path / "p")
    assert status == 1 and "toaster" in err and "odroid-n2plus" in err


def test_missing_compiler_is_said(stic, tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    status, _, err = stic("compile", tiny_dir, "--target", "raspberry-pi-4", "--max-length", 32, "-o", tmp_path / "p")
    assert status == 1 and "aarch64-linux-gnu-gcc" in err and not (tmp_path / "p").exists()


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", bytes(1000)])
def test_not_an_onnx_file(stic, tmp_path, content):
    model = tmp_path / "model.onnx"
    model.write_bytes(content)
    status, _, err = stic("plan", model, "--target", "host")
    assert status == 1 and "ONNX" in err


def test_a_model_that_is_not_there(stic, tmp_path):
    status, _, err = stic("plan", tmp_path / "nothing.onnx", "--target", "host")
    assert status == 1 and "nothing.onnx" in err


def test_output_that_is_something_else_is_left_alone(stic, tiny_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    status, _, err = stic("compile", tiny_dir, "--target", "host", "-o", tmp_path)
    assert status == 1 and "not a" in err
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


@pytest.mark.parametrize("command", ["inspect", "run", "eval", "bench"])
def test_something_that_is_no_package(stic, tmp_path, command):
    more = {"run": ["--ids", "1"], "eval": ["--data", tmp_path / "x.tsv"]}.get(command, [])
    status, _, err = stic(command, tmp_path, *more)
    assert status == 1 and "not a stic package" in err


def test_a_full_disk_leaves_what_was_there(stic, tiny_dir, device, folder, encoder, monkeypatch):
    sync = os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("shards.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    before = {path.name: path.read_bytes() for path in encoder.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    status, _, err = stic("compile", tiny_dir, *HOST, "--device-profile", device, "-o", encoder)
    assert status == 1 and "the disk is full" in err
    assert {path.name: path.read_bytes() for path in encoder.iterdir()} == before
    assert not list(folder.glob(".*.partial"))
