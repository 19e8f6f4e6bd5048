"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.kernels.acceptance import Verdict
from benchmarks.kernels.report import promises, table

Row = dict[str, Any]


def tables(parts: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    """All parts that were measured, then the promises."""
    makers = {"parity": _parity, "quality": _quality, "speed": _speed, "predicted": _predicted}
    found = [make(parts[name]) for name, make in makers.items() if name in parts]
    return "\n\n".join([*found, promises(verdicts)] if verdicts else found)


def _parity(part: Row) -> str:
    rows, tokens = part["rows"], part["settings"]["tokens"]
    lines: list[tuple[str, str]] = []
    for who, name in (("emulated", "aarch64 engine under QEMU"), ("reference", "numpy reference")):
        same = [row[f"{who}_same"] for row in rows if f"{who}_same" in row]
        lines.append((f"answers that the {name} gives as the engine here", f"{sum(same)} of {len(same)}"))
    differ, margin = sum(row["transformers_differ"] for row in rows), max(row["margin_nats"] for row in rows)
    lines.append(
        ("tokens at 16 bits that are transformers' likeliest", f"{len(rows) * tokens - differ} of {len(rows) * tokens}")
    )
    lines.append(("of the others, the most nats below it", f"{margin:.4f}"))
    text = part["text"]
    for kind, count in text["differ"].items():
        lines.append((f"{kind} whose tokens are transformers'", f"{text['prompts'] - count} of {text['prompts']}"))
        lines.append(
            (f"of the other {kind}, those whose tokens are llama.cpp's", f"{count - text['alone'][kind]} of {count}")
        )
    return table(f"Parity, {part['model']}, {len(rows)} prompts, {tokens} tokens each", ("what", "found"), lines)


def _quality(part: Row) -> str:
    reference = next(row["perplexity"] for row in part["rows"] if row["kind"] == "reference")
    lines = [
        (
            row["kind"],
            row["name"],
            f"{row['file_bytes'] / 1e6:.1f}" if "file_bytes" in row else "",
            f"{row['layer_bits']:.3f}" if "layer_bits" in row else "",
            f"{row['perplexity']:.2f}",
            f"{100 * (row['perplexity'] / reference - 1):+.1f} %",
        )
        for row in part["rows"]
    ]
    header = ("engine", "bits", "file, MB", "bits a weight of the layers", "perplexity", "over float32")
    title = f"WikiText-2 test, {part['rows'][0]['tokens']} tokens, {part['model']}"
    tasks = [
        (
            row["task"],
            row["items"],
            f"{row['model']:.1f}",
            f"{row['package']:.1f}",
            f"{row['points']:+.1f} +- {row['half_interval']:.1f}",
            f"{100 * row['same_picks']:.0f} %",
        )
        for row in part["tasks"]
    ]
    names = (
        "task",
        "items",
        "float32, %",
        f"package, {part['settings']['task_bits']} bits, %",
        "points",
        "same choice",
    )
    return table(title, header, lines) + "\n\n" + table("Multiple choice, length-normalised", names, tasks)


def _speed(part: Row) -> str:
    lines = []
    for row in part["rows"]:
        prefill, following = (f"{row[f'{what}_tokens_per_s']:.1f}" for what in ("prefill", "next"))
        lines.append((row["model"], row["threads"], row["contender"], prefill, following))
    shares = [
        (
            row["model"],
            row["threads"],
            f"{row['bytes_a_token'] / 1e6:.1f}",
            f"{row['sum_gb_s']:.1f}",
            f"{100 * row['share_of_sum']:.0f} %",
        )
        for row in part["rows"]
        if "share_of_sum" in row
    ]
    faster = [
        (
            row["model"],
            row["threads"],
            peer,
            *(f"{row['times_faster'][what][peer]:.2f}" for what in ("prefill", "next")),
        )
        for row in part["rows"]
        for peer in row.get("times_faster", {}).get("next", ())
    ]
    return "\n\n".join((
        table("Tokens a second", ("model", "threads", "engine", "prefill", "next token"), lines),
        table("stic, times as fast", ("model", "threads", "as", "prefill", "next token"), faster),
        table("Next token by a plain sum", ("model", "threads", "MB a token", "sum, GB/s", "share"), shares),
    ))  # fmt: skip


def _predicted(part: Row) -> str:
    lines = [
        (
            row["context"],
            row["plan"],
            f"{row['first_token_us'] / 1e3:.1f} ({100 * row['first_error']:+.0f} %)",
            f"{row['next_token_us'] / 1e3:.2f} ({100 * row['next_error']:+.0f} %)",
            f"{row['rss_bytes'] / 2**20:.1f}",
            f"{row['claimed_bytes'] / 2**20:.1f} ({100 * row['slack']:+.1f} %)",
        )
        for row in part["rows"]
    ]
    header = (
        "context",
        "plan",
        "first token, ms (predicted)",
        "next token, ms (predicted)",
        "held, MiB",
        "claimed, MiB",
    )
    return table("Predicted and measured", header, lines)
