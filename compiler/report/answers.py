"""What a run's output says: classes, similarities, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from stic.compiler.quantities import format_time
from stic.compiler.report.report import similarity_table

SHOWN = 6  # numbers of a vector


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over classes; with one logit, (1 - p, p) of the sigmoid."""
    values = logits.astype(np.float64)
    if len(values) == 1:
        values = np.array([0.0, values[0]])
    powers = np.exp(values - values.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def print_answers(
    console: Console, texts: Sequence[str], outputs: Sequence[NDArray[np.float32]], labels: Sequence[str]
) -> None:
    """Labels for a classifier; else the similarity of several sentences, or the first numbers of one."""
    if labels:
        table = Table(box=None, pad_edge=False)
        for title in ("label", "share", "text"):
            table.add_column(title)
        for text, output in zip(texts, outputs, strict=True):
            shares = probabilities(output)
            best = int(shares.argmax())
            name = labels[best] if best < len(labels) else str(best)
            table.add_row(name, f"{shares[best]:.3f}", text)
        console.print(table)
    elif len(outputs) > 1 and all(output.ndim == 1 for output in outputs):
        vectors = np.stack([output.astype(np.float64) for output in outputs])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        units = vectors / np.where(norms > 0, norms, 1.0)
        console.print(similarity_table(texts, (units @ units.T).tolist()))
    else:
        for text, output in zip(texts, outputs, strict=True):
            numbers = ", ".join(f"{value:.4f}" for value in output.reshape(-1)[:SHOWN])
            more = ", ..." if output.size > SHOWN else ""
            shape = " x ".join(str(size) for size in output.shape)
            console.print(f"{text}: {shape} numbers: {numbers}{more}", soft_wrap=True)


def run_sentence(number: int, run: Mapping[str, Any]) -> str:
    """One line about one run; the first one starts with an empty cache."""
    return (
        f"run {number}: {run['tokens']} tokens in {format_time(run['run_us'])},"
        f" of it {format_time(run['stall_us'])} waiting for storage"
    )
