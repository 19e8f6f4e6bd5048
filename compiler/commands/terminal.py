"""The terminal: results on stdout, progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stic.compiler.progress import Progress as Report


class _Console(Console):
    """A console that leaves a reader who went away to `stic.compiler.cli.main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


# Texts of users may hold brackets, so no markup. Where no terminal gives a width, tables get enough.
console = _Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 110)


def print_notes(notes: Iterable[str]) -> None:
    """Print what went wrong without harm, on stderr."""
    for note in notes:
        print(f"stic: note: {note}", file=sys.stderr)


@contextmanager
def progress_bar() -> Iterator[Report]:
    """Yield what stages call; shows a bar for each stage with time left, on stderr, while it runs.

    Where stderr is no terminal, one line is printed when a stage begins.
    """
    error = Console(stderr=True, highlight=False, markup=False)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=error,
        transient=True,
        disable=not error.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[stage] = bar.add_task(stage, total=total or None)
            if not error.is_terminal:
                print(f"stic: {stage}", file=sys.stderr, flush=True)
        bar.update(tasks[stage], completed=done, total=total or None)

    with bar:
        yield report
