"""The benchmark of decoders: its cases, what it makes to measure, and how it judges; nothing is timed here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.decoders import __main__ as command
from benchmarks.decoders import acceptance, report, shape
from stic.compiler.frontend.gguf import read_gguf

CASES = json.loads(Path(acceptance.__file__).with_name("cases.json").read_text(encoding="utf-8"))
SIZES = shape.Sizes("small", hidden=256, layers=2, heads=4, key_heads=2, neurons=512, vocabulary=96, context=64)
TIMES = {"prefill": {"llama.cpp Q4_0": 3.5}, "next": {"llama.cpp Q4_0": 1.6}}
KEPT: dict[str, Any] = {
    "parity": {
        "model": "m", "settings": {"tokens": 4},
        "rows": [{"prompt": 0, "emulated_same": True, "reference_same": True, "transformers_differ": 1,
                  "margin_nats": 0.01}],
        "text": {"prompts": 3, "differ": {"texts": 1, "chats": 0}, "alone": {"texts": 0, "chats": 0}},
    },
    "quality": {
        "model": "m", "settings": {"task_bits": 4},
        "rows": [
            {"kind": "reference", "name": "float32", "perplexity": 30.0, "tokens": 8},
            {"kind": "stic", "name": "4 bits", "perplexity": 31.0, "file_bytes": 80, "layer_bits": 4.17, "tokens": 8},
            {"kind": "stic", "name": "2 bits", "perplexity": 80.0, "file_bytes": 50, "layer_bits": 2.17, "tokens": 8},
            {"kind": "llama.cpp", "name": "Q4_0", "perplexity": 33.0, "file_bytes": 90, "tokens": 8},
        ],
        "tasks": [{"task": "t", "items": 9, "package": 40.0, "model": 42.0, "points": -2.0,
                   "half_interval": 3.0, "same_picks": 0.9}],
    },
    "speed": {
        "rows": [
            {"model": "1.1B", "threads": 1, "contender": "stic", "prefill_tokens_per_s": 9.0, "next_tokens_per_s": 2.0,
             "bytes_a_token": 8, "sum_gb_s": 5.0, "share_of_sum": 0.9, "times_faster": TIMES},
        ],
    },
    "predicted": {
        "rows": [
            {"context": 256, "plan": "resident", "first_token_us": 9e3, "next_token_us": 1e3, "first_error": -0.05,
             "next_error": 0.04, "rss_bytes": 100, "claimed_bytes": 104, "slack": 0.04},
        ],
    },
}  # fmt: skip


def test_every_part_has_cases_and_a_sample() -> None:
    assert set(command.PARTS) <= set(CASES) and set(CASES["quick"]) == set(command.PARTS)
    for name, sample in CASES["quick"].items():
        assert set(sample) <= set(CASES[name])


def test_promises_that_are_kept() -> None:
    verdicts = acceptance.judge(KEPT, CASES["accepted"])
    assert len(verdicts) >= 12 and all(verdict.passed for verdict in verdicts)
    assert all(verdict.claim in report.tables(KEPT, verdicts) for verdict in verdicts)


@pytest.mark.parametrize(
    ("part", "row", "name", "value", "claim"),
    [
        ("parity", 0, "emulated_same", False, "emulated"),
        ("parity", 0, "reference_same", False, "reference"),
        ("parity", 0, "margin_nats", 0.5, "transformers' likeliest"),
        ("quality", 1, "perplexity", 33.1, "Q4_0"),
        ("quality", 1, "perplexity", 32.2, "4.2 bits"),
        ("quality", 2, "perplexity", 91.0, "2.5 bits"),
        ("speed", 0, "share_of_sum", 0.7, "plain sum"),
        ("predicted", 0, "next_error", -0.2, "next token"),
        ("predicted", 0, "slack", 0.2, "slack"),
        ("predicted", 0, "slack", -0.01, "held"),
    ],
)
def test_promises_that_are_broken(part: str, row: int, name: str, value: object, claim: str) -> None:
    parts = copy.deepcopy(KEPT)
    parts[part]["rows"][row][name] = value
    broken = [verdict.claim for verdict in acceptance.judge(parts, CASES["accepted"]) if not verdict.passed]
    assert any(claim in one for one in broken)


def test_points_count_beyond_the_interval() -> None:
    parts = copy.deepcopy(KEPT)
    parts["quality"]["tasks"][0] |= {"points": -4.0, "half_interval": 3.0}
    assert any(not verdict.passed for verdict in acceptance.judge(parts, CASES["accepted"]))


def test_a_shape_is_the_same_model_for_both_engines(tmp_path: Path) -> None:
    found, wanted = read_gguf(shape.gguf(SIZES, tmp_path)).architecture, SIZES.architecture
    assert found.blocks == wanted.blocks
    assert (found.hidden, found.vocabulary, found.context) == (wanted.hidden, wanted.vocabulary, wanted.context)
    assert found.rotaries[0].frequencies == pytest.approx(wanted.rotaries[0].frequencies)
