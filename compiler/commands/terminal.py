"""The terminal: results on stdout, progress on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stic.compiler.options import Progress as Report

console = Console(highlight=False)
QUIET_S = 2.0  # a stage shorter than this shows nothing


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A progress bar with time left, on stderr, that appears when a stage takes more than two seconds.

    Yields what stages call. When stderr is no terminal, one line a stage is printed instead.
    """
    error = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}" if error.is_terminal else ""),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=error,
        transient=True,
        disable=not error.is_terminal,
    )
    tasks: dict[str, TaskID] = {}
    begun: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in begun:
            begun[stage] = now
            if not error.is_terminal:
                print(f"stic: {stage}", file=error.file, flush=True)
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[stage] = bar.add_task(stage, total=total or None, start=True)
        bar.update(tasks[stage], completed=done, total=total or None)

    with bar:
        yield report
