"""The report of a result file: tables as Markdown and figures, made from that file alone."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.evaluation import run_tables, tables
from benchmarks.evaluation.acceptance import judge
from benchmarks.evaluation.agreement import agreement
from benchmarks.evaluation.comparisons import YARDSTICKS
from benchmarks.evaluation.figures import drawings
from benchmarks.evaluation.markdown import section
from benchmarks.evaluation.results import Results
from stic.runtime.errors import InputError
from stic.runtime.files import whole_file, write_text

NAME = "evaluation"
STUDY = "planner-study.json"  # beside the result
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"
LEGEND = (
    "Points are hundredths of the task's metric. – no plan meets the budget; empty: not measured; † the median run"
    " missed the deadline; ° more than 2 % of the runs did; * the bandwidth of the paper's ratio."
)


def write(result: Path, folder: Path, docs: Path | None = None) -> list[Path]:
    """Write FOLDER/evaluation.md and FOLDER/evaluation-*.png, remove older figures; returns what was written.

    `docs` is a page whose region between `BEGIN` and `END` is filled with the tables that sum up, and with the figures.
    The planner study's table is among them where its result is beside this one. Raises InputError where `result` is
    none of this version, or the page has no such region.
    """
    results = Results.read(result)
    page = None if docs is None else _split(docs)
    folder.mkdir(parents=True, exist_ok=True)
    figures = drawings(results)
    for name, draw in figures.items():
        with whole_file(folder / picture(name)) as partial:
            draw(partial)
    for older in {*folder.glob(picture("*"))} - {folder / picture(name) for name in figures}:
        older.unlink()  # names hold deadlines and bandwidths, so that another result has others
    shown = section("Figures", *(_shown(name) for name in figures))
    parts = ("# Evaluation", everything(results, result.with_name(STUDY)), shown)
    text = folder / f"{NAME}.md"
    write_text(text, "\n\n".join(filter(None, parts)) + "\n")
    if docs is not None and page is not None:
        filled = page[0] + BEGIN + region(results, os.path.relpath(folder, docs.parent)) + END + page[1]
        write_text(docs, filled)
    return [text, *(folder / picture(name) for name in figures)]


def picture(name: str) -> str:
    """The file that a figure is in."""
    return f"{NAME}-{name}.png"


def _shown(name: str, folder: str = ".") -> str:
    return f"![{name}]({os.path.normpath(f'{folder}/{picture(name)}')})"


def everything(results: Results, study: Path) -> str:
    """All tables."""
    parts = (
        section("What is claimed, and what was measured", tables.findings(judge(results))),
        section("Environment", tables.environment(results)),
        section("IO and compute", tables.ratios(results)),
        section("Accuracy", LEGEND, tables.accuracy(results)),
        *(
            part
            for name, words in YARDSTICKS.items()
            for part in (
                section(f"ILP and {words}", tables.against(results, name)),
                section(f"Cells in which the ILP is lower than {name}", tables.lower(results, name), level=3),
            )
        ),
        section("ILP and baselines of equal deadline and memory", tables.against_baselines(results)),
        _answers_kept(results),
        section("At the paper's ratio", tables.paper_ratio(results)),
        section("Predicted and measured time", run_tables.prediction(results)),
        section("Claimed and measured memory", run_tables.memory(results)),
        section("Other runtimes", run_tables.peers(results)),
        section("The nested store", run_tables.store(results)),
        section("Switching plans", run_tables.switch(results)),
        section("The planner on random instances", tables.study(study)),
        section("What did not run", run_tables.failures(results)),
    )
    return "\n\n".join(filter(None, parts))


def _answers_kept(results: Results, level: int = 2) -> str:
    """The comparisons of planners once more, by the share of the whole model's answers that are kept."""
    kept = agreement(results)
    parts = {f"ILP and {words}": tables.against(kept, name) for name, words in YARDSTICKS.items()}
    parts["ILP and baselines of equal deadline and memory"] = tables.against_baselines(kept)
    below = (section(title, part, level=level + 1) for title, part in parts.items())
    return section("The same, by the whole model's answers that are kept", *below, level=level)


def region(results: Results, folder: str) -> str:
    """What a page shows of the results that are in `folder`, relative to it: verdicts, sums, and the figures."""
    whole = f"{folder}/{NAME}.md"
    parts = (
        f"Every table, cell by cell: [{whole}]({whole}).",
        section("What is claimed, and what was measured", tables.findings(judge(results)), level=3),
        *(section(f"ILP and {words}", tables.against(results, name), level=3) for name, words in YARDSTICKS.items()),
        section("ILP and baselines of equal deadline and memory", tables.against_baselines(results), level=3),
        _answers_kept(results, level=3),
        section("At the paper's ratio", tables.paper_ratio(results), level=3),
        section("Predicted and measured time", run_tables.prediction(results), level=3),
        section("Claimed and measured memory", run_tables.memory(results), level=3),
        section("Other runtimes", run_tables.peers(results, brief=True), level=3),
        section("Figures", *(_shown(name, folder) for name in drawings(results)), level=3),
    )
    return "\n" + "\n\n".join(filter(None, parts)) + "\n\n"


def _split(docs: Path) -> tuple[str, str]:
    """The page before and after its region."""
    text = docs.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{docs} has no place for the tables: add the lines {BEGIN.strip()} and {END.strip()}")
    return before, after
