"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.kernels.acceptance import Verdict

Row = dict[str, Any]


def tables(parts: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    """All parts that were measured, then the promises."""
    makers = {"limits": _limits, "encoder": _encoder, "sizes": _sizes, "gemm": _gemm, "gemv": _gemv}
    found = [make(parts[name]) for name, make in makers.items() if name in parts]
    if verdicts:
        found.append(promises(verdicts))
    return "\n\n".join(found)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table under a heading; all columns but the first are to the right."""
    lines = [f"### {title}", "", " | ".join(["", *header, ""]).strip()]
    lines.append("|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|")
    lines += [" | ".join(["", *map(str, row), ""]).strip() for row in rows]
    return "\n".join(lines)


def _ms(us: Row) -> str:
    return f"{us['median'] / 1e3:.2f} ({us['q1'] / 1e3:.2f}..{us['q3'] / 1e3:.2f})"


def _limits(part: Row) -> str:
    rows = []
    for row in part["rows"]:
        value = f"{row['gb_s']:.1f} GB/s" if "gb_s" in row else f"{row['gmac_s']:.0f} GMAC/s"
        rows.append((f"{row['limit']} ({part['loops'][row['limit']]})", row["threads"], value))
    return table("Limits of this machine", ("limit", "threads", "median"), rows)


def _encoder(part: Row) -> str:
    tokens = sorted({row["tokens"] for row in part["rows"]})
    found = {(row["contender"], row["threads"], row["tokens"]): row for row in part["rows"]}
    names = list(dict.fromkeys(row["contender"] for row in part["rows"]))
    sections = []
    for threads in sorted({row["threads"] for row in part["rows"]}):
        rows = []
        for name in names:
            cells = [found.get((name, threads, count)) for count in tokens]
            last = next(cell for cell in reversed(cells) if cell)
            rows.append((name, *(_ms(cell["us"]) if cell else "" for cell in cells), f"{last['cosine']:.4f}"))
        header = ("contender", *(f"{count} tokens" for count in tokens), "cosine to fp32")
        sections.append(table(f"{part['model']}, ms (quartiles), threads: {threads}", header, rows))
    return "\n\n".join(sections)


def _sizes(part: Row) -> str:
    rows = [
        (one["model"], row["threads"], row["contender"], name, f"{ratio:.2f}")
        for one in part["models"]
        for row in one["rows"]
        for name, ratio in row.get("over", {}).items()
    ]
    header = ("model", "threads", "package", "by the time of", "ratio")
    return "\n\n".join((*map(_encoder, part["models"]), table("Larger models, time by that of others", header, rows)))


def _gemm(part: Row) -> str:
    rows = [
        (
            row["shape"],
            row["bits"],
            row["threads"],
            _ms(row["us"]),
            f"{row['gmac_s']:.0f}",
            f"{100 * row['share_of_peak']:.1f} %",
            f"{row['times_one_thread']:.2f}",
        )
        for row in part["rows"]
    ]
    header = ("W (rows x columns)", "bits", "threads", "ms (quartiles)", "GMAC/s", "of peak", "times one thread")
    return table(f"GEMM, {part['tokens']} tokens", header, rows)


def _gemv(part: Row) -> str:
    rows = [
        (
            row["bits"],
            f"{100 * row['outliers']:.2f} %",
            row["rows"],
            row["threads"],
            f"{row['us_each']:.1f}",
            f"{row['gb_s']:.1f}",
            f"{100 * row['share_of_sum']:.1f} %",
            f"{row['over_4_bits']:.3f}" if "over_4_bits" in row else "",
        )
        for row in part["rows"]
    ]
    header = ("bits", "outliers", "tokens", "threads", "us a matrix", "GB/s", "of a plain sum", "by 4 bits")
    own = table(f"GEMV, {part['shape']}", header, rows)
    peers = [
        (row["format"], row["layout"], row["threads"], f"{row['us_each']:.1f}", f"{row['gb_s']:.1f}")
        for row in part["ggml"]
    ]
    if not peers:
        return own
    columns = ("ggml format", "layout", "threads", "us a matrix", "GB/s")
    return own + "\n\n" + table(f"ggml, {part['shape']}, one token", columns, peers)


def promises(verdicts: Sequence[Verdict]) -> str:
    """The table of what was promised."""
    rows = [
        (v.claim, f"{v.measured:.3f}", f"{'<=' if v.at_most else '>='} {v.limit}", v.worst, "yes" if v.passed else "NO")
        for v in verdicts
    ]
    return table("Promises, the worst case of each", ("promise", "measured", "limit", "at", "kept"), rows)
