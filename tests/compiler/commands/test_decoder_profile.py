"""Device profiles of decoders: measured by `stic probe`, planned with, refused where they say nothing of it."""

import json

import pytest

from stic.compiler import cli
from tests.compiler.commands import small_decoder

UNIFORM = ("--planner", "preload", "--bits", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_decoder.write(tmp_path_factory.mktemp("profile") / "model")


@pytest.fixture(scope="module")
def profile(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "here.json"
    assert cli.main(["probe", str(model), "--context", "48", "-o", str(path)]) == 0
    return path


@pytest.fixture
def plan(capfd, model):
    def run(*options, target="raspberry-pi-4"):
        capfd.readouterr()
        status = cli.main([str(part) for part in ("plan", model, "--target", target, *options, "--json")])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, json.loads(out) if status == 0 else None, err

    return run


def threads_of(profile):
    return ("--threads", json.loads(profile.read_text())["compute"]["threads"])


def test_a_plan_takes_as_long_as_was_measured(plan, profile):
    entry = json.loads(profile.read_text())["decoders"][0]
    status, facts, err = plan(*UNIFORM, "--device-profile", profile, "--context", 48, *threads_of(profile))
    assert status == 0, err
    one = entry["times"]["late"]["1"]["4"]
    blocks = sum(one[kind] for kind in ("attention", "feed_forward"))
    assert facts["predicted_us"] > blocks and not any("estimated" in note for note in facts["notes"])


@pytest.mark.parametrize(
    ("options", "note"),
    [(("--context", 64), "attention beyond 48 tokens"), (("--kv", "float16"), "measured over a int8 cache")],
)
def test_what_was_not_measured_is_said(plan, profile, options, note):
    status, facts, err = plan(*UNIFORM, *options, "--device-profile", profile, *threads_of(profile))
    assert status == 0, err
    assert any(note in said for said in facts["notes"])


def test_bits_that_were_not_measured_take_as_long_as_the_next_larger_ones(plan, profile):
    status, facts, err = plan("--planner", "preload", "--bits", 7, "--device-profile", profile, *threads_of(profile))
    assert status == 0, err
    assert any("bits 7 were not measured" in said for said in facts["notes"])


def spoilt(data, change):
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda data: "{", "cannot be read as a device profile"),
        (lambda data: "[]", "cannot be read as a device profile"),
        (lambda data: spoilt(data, lambda d: d.pop("decoders")), "says nothing of this decoder"),
        (lambda data: spoilt(data, lambda d: d["decoders"][0].update(threads=63)), "says nothing of this decoder"),
        (lambda data: spoilt(data, lambda d: d["decoders"][0]["shapes"].pop()), "says nothing of this decoder"),
        (lambda data: spoilt(data, lambda d: d["decoders"][0].pop("times")), "a damaged device profile"),
        (lambda data: spoilt(data, lambda d: d["decoders"][0]["times"]["late"].clear()), "a damaged device profile"),
        (lambda data: spoilt(data, lambda d: d["io"].pop("row_us")), "a damaged device profile"),
    ],
)
def test_a_profile_that_says_nothing_sound_of_it_is_refused(plan, profile, tmp_path, content, said):
    other = tmp_path / "other.json"
    other.write_text(content(json.loads(profile.read_text())))
    status, _, err = plan(*UNIFORM, "--device-profile", other, *threads_of(profile))
    assert status != 0 and said in err


def test_each_has_the_options_of_its_kind(model, tiny_classifier_dir, capfd):
    for arguments, said in (
        ((model, "--max-length", "32"), "of a decoder, say --context"),
        ((tiny_classifier_dir, "--context", "32"), "of an encoder, say --max-length"),
        ((model, "--context", "4096"), "but the model takes"),
    ):
        assert cli.main(["probe", *map(str, arguments)]) != 0
        assert said in capfd.readouterr().err
