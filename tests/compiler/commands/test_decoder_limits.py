"""Limits on a decoder's first and next token, its memory and its context, through the commands."""

import json
import re

import pytest

from stic.compiler.quantities import parse_bytes
from tests.compiler.commands import small_decoder

UNIFORM = ("--planner", "preload", "--bits", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_decoder.write(tmp_path_factory.mktemp("limits") / "model")


@pytest.fixture
def plan(capfd, model):
    """Plans under options, by a file's facts, which need no measuring; returns status, what --json says, and errors."""
    from stic.compiler import cli

    def run(*options):
        capfd.readouterr()
        status = cli.main([str(part) for part in ("plan", model, "--target", "raspberry-pi-4", *options, "--json")])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, json.loads(out) if status == 0 else None, err

    return run


def test_a_plan_forecasts_prompts_and_positions(plan):
    status, facts, err = plan(*UNIFORM, "--chunk", 16, "--prompt", 40)
    assert status == 0, err
    forecast = facts["forecast"]
    lengths = [tokens for tokens, _ in forecast["first_token_us"]]
    positions = [position for position, _ in forecast["next_token_us"]]
    assert forecast["prompt"] == 40 and {1, 16, 40, small_decoder.CONTEXT - 1} <= set(lengths)
    assert positions[0] == 0 and positions[-1] == small_decoder.CONTEXT - 1
    assert all(us > 0 for name in ("first_token_us", "next_token_us") for _, us in forecast[name])
    assert facts["predicted_us"] == pytest.approx(forecast["next_token_us"][-1][1])


def test_limits_are_kept_or_what_they_take_is_said(plan):
    _, free, _ = plan(*UNIFORM)
    first = dict(free["forecast"]["first_token_us"])[free["forecast"]["prompt"]]
    status, facts, _ = plan("--first-token", f"{40 * first / 1000:.3f}ms", "--time-limit", "1s")
    assert status == 0 and facts["first_token_deadline_us"] == pytest.approx(40 * first, abs=2)
    assert facts["deadline_us"] is None
    for limit, said in (("--first-token", "first token"), ("--next-token", "next token")):
        status, _, err = plan(limit, "1us", "--time-limit", "1s")
        assert status != 0 and f"the least {said} with any memory is" in err
        assert "the cache of" in err


def test_memory_below_the_cache_names_a_context_that_fits(plan):
    _, free, _ = plan(*UNIFORM)
    _, short, _ = plan(*UNIFORM, "--context", 32)
    memory = (free["peak_bytes"] + short["peak_bytes"]) // 2
    status, _, err = plan(*UNIFORM, "--memory", f"{memory}B")
    context = re.search(r"the cache of (\d+) tokens takes (\S+): at any latency a --context of (\d+) would fit", err)
    assert status != 0 and context, err
    assert int(context[1]) == small_decoder.CONTEXT and parse_bytes(context[2]) > 0
    assert plan(*UNIFORM, "--memory", f"{memory}B", "--context", context[3])[0] == 0
    assert plan(*UNIFORM, "--memory", f"{memory}B", "--context", int(context[3]) + 16)[0] != 0
    status, _, err = plan(*UNIFORM, "--memory", "64KiB")
    assert status != 0 and "at no context would it fit" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--latency", "40ms"), "a decoder has two latencies"),
        (("--prompt", small_decoder.CONTEXT), "but the context has"),
        (("--prompt", 0), "--prompt"),
        (("--context", 10**6), "but the model takes"),
        (("--gpu", "mali-g52", "--place", "gpu"), "planned on the CPU alone"),
    ],
)
def test_what_a_decoder_cannot_be_asked_for_is_said(plan, options, said):
    status, _, err = plan(*UNIFORM, *options)
    assert status != 0 and said in err


def test_a_gpu_stays_idle_and_a_slow_storage_is_planned_for(plan):
    status, facts, err = plan(*UNIFORM, "--gpu", "mali-g52", "--storage", "50MB")
    assert status == 0 and "stays idle" in err
    assert any("storage is taken to deliver" in note for note in facts["notes"])


def test_greedy_plans_decoders_too(plan):
    status, facts, err = plan("--planner", "greedy", "--head-bits", "8", "--memory", "1GiB")
    assert status == 0, err
    assert set(facts["shards"][-1]["bits"]) == {8}
