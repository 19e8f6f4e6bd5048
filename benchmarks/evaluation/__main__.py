"""Measure planners, baselines and other runtimes on real tasks, with storage and memory held to a limit.

    python -m benchmarks.evaluation CASES.toml [--folder build/evaluation] [--only GLOB ...] [--report-only]

Run it from the repository's root, on a machine that does nothing else; root lets the kernel limit reads and memory.
What is finished is kept in the folder as it comes: stopped with Ctrl-C, the same command goes on. In the end all cases
of the file are joined into one result, and the report is made from that file alone.

--only measures cases whose GRID/TASK/PLANNER, peers/TASK/NAME/MODE or switch/TASK matches a pattern; the others are
reported where they were measured before.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.evaluation.case_file import read_cases
from benchmarks.evaluation.cases import Cases
from benchmarks.evaluation.resume import alone, write_json
from benchmarks.evaluation.tasks import ROOT
from stic.runtime.errors import SticError

FOLDER = Path("build/evaluation")
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
RECORDED = {  # case files whose results are kept in the repository: where, and the page that shows them
    "full": (RESULTS, DOCS / "evaluation.md"),
    "tight": (RESULTS / "tight", DOCS / "evaluation-tight.md"),
}


def main() -> int:
    """Measure what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, metavar="CASES.toml")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where finished work is kept (default: {FOLDER})")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="measure these; may be repeated")
    parser.add_argument("--plan-only", action="store_true", help="plan every case and print what comes of it")
    parser.add_argument("--report-only", action="store_true", help="make the report of what was measured before")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: control groups are removed
    try:
        cases = read_cases(options.cases)
        kept, page = RECORDED.get(cases.name, (options.folder / cases.name, None))
        result = kept / "evaluation.json"
        if not options.report_only:
            with alone(options.folder):
                if not _measure(cases, options.folder, tuple(options.only), result, options.plan_only):
                    return 0
        from benchmarks.evaluation import report

        for path in report.write(result, kept, docs=page):
            print(f"wrote {path}")
    except SticError as error:
        print(f"benchmarks.evaluation: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"stopped; what is finished is kept in {options.folder}, and the same command goes on", file=sys.stderr)
        return 130
    return 0


def _measure(cases: Cases, folder: Path, only: tuple[str, ...], result: Path, plan_only: bool) -> bool:
    """Run every phase, then join what is finished into `result`; whether it was written."""
    from benchmarks.evaluation import overview
    from benchmarks.evaluation.phases import Evaluation
    from benchmarks.evaluation.rows import result as joined
    from stic.compiler.commands.terminal import print_notes, progress_bar

    with progress_bar() as progress, Evaluation(cases, folder, only, progress, lambda text: print_notes([text])) as run:
        for reason in run.place.reasons:
            print_notes([reason])
        run.prepare()
        run.plan()
        if plan_only:
            print(overview.table(run))
            return False
        print(overview.left(run), file=sys.stderr)
        run.score()
        run.time()
        run.time_peers()
        run.switch()
        write_json(result, joined(run))
    print(f"wrote {result}")
    return True


if __name__ == "__main__":
    sys.exit(main())
