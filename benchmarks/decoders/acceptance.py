"""What was promised of decoders (`accepted` in cases.json), and whether the measured parts keep it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.kernels.acceptance import Verdict

Row = dict[str, Any]
Found = Iterable[tuple[float, str]]


def judge(parts: dict[str, Any], accepted: Row) -> list[Verdict]:
    """One verdict a promise, for the parts that were measured."""
    rules = {"parity": _parity, "quality": _quality, "speed": _speed, "predicted": _predicted}
    return [verdict for name, rule in rules.items() if name in parts for verdict in rule(parts[name], accepted)]


def _worst(claim: str, limit: float, at_most: bool, found: Found) -> Iterator[Verdict]:
    """The verdict on all (value, where) of a promise; none where nothing was measured for it."""
    if values := list(found):
        value, where = (max if at_most else min)(values)
        yield Verdict(claim, value, limit, at_most, where)


def _parity(part: Row, accepted: Row) -> Iterator[Verdict]:
    rows = part["rows"]
    for who in ("emulated", "reference"):
        differ = [(float(not row[f"{who}_same"]), f"prompt {row['prompt']}") for row in rows if f"{who}_same" in row]
        yield from _worst(f"parity, answers that the {who} one gives otherwise", 0, True, differ)
    margins = [(row["margin_nats"], f"prompt {row['prompt']}") for row in rows]
    yield from _worst("parity, nats of a token below transformers' likeliest", accepted["margin_nats"], True, margins)
    alone = [(float(count), kind) for kind, count in part["text"]["alone"].items()]
    yield from _worst("parity, prompts whose tokens are neither transformers' nor llama.cpp's", 0, True, alone)


def _quality(part: Row, accepted: Row) -> Iterator[Verdict]:
    rows = part["rows"]
    reference = next(row["perplexity"] for row in rows if row["kind"] == "reference")
    own = [row for row in rows if row["kind"] == "stic"]
    least = 0.0
    for bits, limit in accepted["perplexity_times"].items():  # ascending: a row counts for the narrowest that it fits
        fitting = [
            (row["perplexity"] / reference, row["name"]) for row in own if least < row["layer_bits"] <= float(bits)
        ]
        least = float(bits)
        claim = f"quality, perplexity by float32's, at most {bits} bits a weight"
        yield from _worst(claim, limit, True, sorted(fitting)[:1])
    for peer in (row for row in rows if row["kind"] == "llama.cpp"):
        fitting = [
            (row["perplexity"] / peer["perplexity"], row["name"])
            for row in own
            if row["file_bytes"] <= peer["file_bytes"]
        ]
        claim = f"quality, perplexity by that of llama.cpp's {peer['name']}, in a file that is no larger"
        yield from _worst(claim, 1, True, sorted(fitting)[:1])
    short = [
        (-row["points"] - max(0.0, row["half_interval"] - accepted["points"]), row["task"]) for row in part["tasks"]
    ]
    yield from _worst("quality, points lost by the package beyond its interval", accepted["points"], True, short)


def _speed(part: Row, accepted: Row) -> Iterator[Verdict]:
    rows = [row for row in part["rows"] if "times_faster" in row]
    for what, limit in accepted["times_faster"].items():
        found = [
            (ratio, f"{row['model']}, threads: {row['threads']}, {peer}")
            for row in rows
            for peer, ratio in row["times_faster"][what].items()
        ]
        yield from _worst(f"speed, {what}, times as fast as llama.cpp", limit, False, found)
    for model, limit in accepted["share_of_sum"].items():
        shares = [(row["share_of_sum"], f"threads: {row['threads']}") for row in rows if row["model"] == model]
        yield from _worst(f"speed, next token of {model}, share of a plain sum's bandwidth", limit, False, shares)


def _predicted(part: Row, accepted: Row) -> Iterator[Verdict]:
    rows = part["rows"]
    where = [f"context {row['context']}, {row['plan']}" for row in rows]
    for what in ("first", "next"):
        errors = [(abs(row[f"{what}_error"]), at) for row, at in zip(rows, where, strict=True)]
        yield from _worst(f"predicted, error of the {what} token", accepted["error"], True, errors)
    for claim, limit, at_most in (("slack of memory", accepted["slack"], True), ("claim over what was held", 0, False)):
        slack = [(row["slack"], at) for row, at in zip(rows, where, strict=True)]
        yield from _worst(f"predicted, {claim}", limit, at_most, slack)
