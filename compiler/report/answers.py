"""What a run's output says: classes, labels, scores, similarities, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from stic.compiler.frontend.reading import Reading, shares
from stic.compiler.frontend.similarity import crossed
from stic.compiler.quantities import format_time
from stic.compiler.report.report import similarity_table

SHOWN = 6  # numbers of a vector
LEAST_TEXT = 12  # columns of a text, below which a table is laid out otherwise
BLOCK = 256  # rows of similarities that are held at once

Output = NDArray[np.float32]


def said(reading: Reading, output: Output, tokens: Sequence[str] = ()) -> Any:
    """What an output (features,), or (tokens, features), says, as plain data; None for a vector.

    classes: {"label", "share"}; score: {"score"}; labels and values: a number for each name. Of tokens a list of these,
    each with its "token".
    """
    if reading.kind == "vector":
        return None
    if output.ndim == 2:
        return [{"token": token, **said(reading, row)} for token, row in zip(tokens, output, strict=True)]
    found = shares(reading.kind, output)
    if reading.kind == "classes":
        best = int(found.argmax())
        return {"label": reading.names[best], "share": float(found[best])}
    if reading.kind == "score":
        return {"score": float(found[0])}
    return dict(zip(reading.names, found.tolist(), strict=True))


def print_answers(
    console: Console,
    texts: Sequence[str],
    outputs: Sequence[Output],
    reading: Reading,
    tokens: Sequence[Sequence[str]] = (),
) -> None:
    """Print what outputs say; of vectors the similarity of several, or the first numbers of one.

    `tokens`: the tokens of each text, for outputs (tokens, features).
    """
    if reading.kind != "vector" and outputs[0].ndim == 2:
        for text, output, names in zip(texts, outputs, tokens, strict=True):
            console.print(text, soft_wrap=True)
            _print_read(console, names, output, reading, "token")
    elif reading.kind != "vector":
        _print_read(console, texts, np.stack(outputs), reading, "text")
    elif len(outputs) > 1 and all(output.ndim == 1 for output in outputs):
        _print_similarities(console, texts, np.stack(outputs), reading)
    else:
        for text, output in zip(texts, outputs, strict=True):
            numbers = ", ".join(f"{value:.4f}" for value in output.reshape(-1)[:SHOWN])
            more = ", ..." if output.size > SHOWN else ""
            shape = " x ".join(str(size) for size in output.shape)
            console.print(f"{text}: {shape} numbers: {numbers}{more}", soft_wrap=True)


def _print_read(console: Console, texts: Sequence[str], outputs: Output, reading: Reading, what: str) -> None:
    """A row a text; where the columns of numbers leave no room for it, a row a label under each text."""
    found = shares(reading.kind, outputs)
    rows: list[tuple[str, ...]]
    if reading.kind == "classes":
        titles, rows = ["label", "share"], [(reading.names[int(p.argmax())], f"{p.max():.3f}") for p in found]
    elif reading.kind == "score":
        titles, rows = ["score", "logit"], [(f"{p[0]:.3f}", f"{o[0]:.4f}") for p, o in zip(found, outputs, strict=True)]
    else:
        titles, digits = list(reading.names), 3 if reading.kind == "labels" else 4
        rows = [tuple(f"{value:.{digits}f}" for value in numbers) for numbers in found]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) + LEAST_TEXT > console.width and reading.kind in ("labels", "values"):
        for text, row in zip(texts, rows, strict=True):
            console.print(text, soft_wrap=True)
            _print_table(console, ("", "label"), list(zip(row, titles, strict=True)))
    else:
        _print_table(console, (*titles, what), [(*row, text) for row, text in zip(rows, texts, strict=True)])


def _print_table(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose texts, in the last column and under "label", give way to its numbers."""
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, no_wrap=number < len(titles) - 1 and title != "label", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_similarities(console: Console, texts: Sequence[str], vectors: Output, reading: Reading) -> None:
    """Every pair's similarity, where the columns suffice; else of each text the one that is most like it."""
    count, index = len(texts), len(str(len(texts) - 1))
    if index + LEAST_TEXT + count * 7 <= console.width:
        values = [[f"{value:.3f}" for value in row] for row in crossed(vectors, vectors, reading.similarity)]
        numbers = sum(max(index, *map(len, column)) + 2 for column in zip(*values, strict=True))
        room = console.width - index - 2 - numbers
        if room >= LEAST_TEXT:
            console.print(similarity_table(texts, values, room))
            return
    found: list[tuple[str, str, str]] = []
    for first in range(0, count, BLOCK):
        block = crossed(vectors[first : first + BLOCK], vectors, reading.similarity)
        rows = np.arange(len(block))
        block[rows, first + rows] = -np.inf  # not itself
        for row, nearest in enumerate(block.argmax(axis=1).tolist()):
            found.append((str(first + row), str(nearest), f"{block[row, nearest]:.3f}"))
    table, titles = Table(box=None, pad_edge=False), ("", "like", reading.similarity)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    numbers = sum(max(map(len, column)) + 2 for column in zip(titles, *found, strict=True))
    table.add_column("sentence", overflow="ellipsis", no_wrap=True, max_width=max(1, console.width - numbers))
    for cells, text in zip(found, texts, strict=True):
        table.add_row(*cells, text)
    console.print(table)
    console.print(
        f"every pair of {count} sentences needs more than {console.width} columns: these are the nearest of each;"
        " --json or -o FILE gives their vectors",
        soft_wrap=True,
    )


def run_sentence(number: int, run: Mapping[str, Any]) -> str:
    """One line about one run; the first one starts with an empty cache."""
    return (
        f"run {number}: {run['tokens']} tokens in {format_time(run['run_us'])},"
        f" of it {format_time(run['stall_us'])} waiting for storage"
    )


def total_sentence(runs: int, total: Mapping[str, int]) -> str:
    """One line about many runs together."""
    return (
        f"{runs} run{'s' * (runs != 1)}: {total['tokens']} tokens in {format_time(total['run_us'])},"
        f" of it {format_time(total['stall_us'])} waiting for storage"
    )
