"""The planner ilp against greedy on random instances.

    python -m benchmarks.planner_study [--count N] [--folder build/planner-study] [--out FILE.json]

Run it from the repository's root, on a machine that does nothing else: half an hour on two cores. Instances are drawn
from study.toml and from gains that were measured (gains.json). Each is solved by greedy, and by ilp with a record of
objective and bound over time; every plan is replayed. Finished instances are kept in the folder, so that a study that
was stopped goes on where it was; a change of the planner, of the settings or of the machine begins anew.

Prints Markdown tables, writes JSON with a row for every instance, and fails if a plan or a bound was wrong.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.kernels.place import machine
from benchmarks.planner_study.gains import measured
from benchmarks.planner_study.instances import instance, read
from benchmarks.planner_study.measure import measure
from benchmarks.planner_study.summary import summary, tables
from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest
from stic.compiler.commands.terminal import progress_bar
from stic.runtime.errors import SticError
from stic.runtime.files import write_text
from stic.targets import target as targets

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "planner-study.json"
MODULES = (measure.__module__, instance.__module__, measured.__module__)  # what makes and solves an instance
BUSY = 0.5  # load average


def main() -> int:
    """Run the study; the exit code is 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="only so many instances, from the first")
    parser.add_argument("--folder", type=Path, default=Path("build/planner-study"), help="keeps finished instances")
    parser.add_argument("--out", type=Path, help=f"JSON file (default: {RESULTS}; with --count one in the folder)")
    options = parser.parse_args()
    study = read(HERE / "study.toml")
    count = study["instances"] if options.count is None else options.count
    out = options.out or (RESULTS if options.count is None else options.folder / "planner-study.json")
    here = machine(targets.load("host"))
    if here["load_average"] > BUSY:
        print(f"this machine is busy (load average {here['load_average']:.1f}): plans come late", file=sys.stderr)
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in ("stic", "ortools", "numpy")}
    settings = {name: value for name, value in study.items() if name != "instances"}
    key = digest(settings, code_of(*MODULES), versions["ortools"], here["cpu"], here["cpus"])
    try:
        rows = _rows(count, study, options.folder / key[:12])
    except KeyboardInterrupt:
        print(f"stopped; finished instances are kept in {options.folder}; the next run goes on", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # solvers are in C++ and hear nothing until they end
    groups = summary(rows)
    print(tables(groups))
    facts = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.planner_study", *sys.argv[1:]]),
        "machine": here,
        "versions": versions,
        "settings": study,
        "summary": groups,
    }
    write_text(out, json.dumps(facts, indent=1)[:-2] + ',\n "rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n")
    print(f"\nwrote {out}", file=sys.stderr)
    wrong = [f"instance {row['instance']}: {what}" for row in rows for what in row["defects"]]
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return int(bool(wrong))


def _rows(count: int, study: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Rows of the first `count` instances: those in the folder, or measured and put there.

    Instances are solved in a thread of their own, so that Ctrl-C is heard meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gains, pool = measured(), ThreadPoolExecutor(1)
    rows = []

    def solve(number: int) -> dict[str, Any]:
        return measure(instance(number, study, gains), study["solver"])

    with progress_bar() as tick:
        for number in range(count):
            tick("solving instances", number, count)
            path = folder / f"{number:04}.json"
            row = _kept(path)
            if row is None:
                row = pool.submit(solve, number).result()
                write_text(path, json.dumps(row))
            rows.append(row)
        tick("solving instances", count, count)
    return rows


def _kept(path: Path) -> dict[str, Any] | None:
    """A row that was finished before."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (FileNotFoundError, ValueError):
        return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SticError, OSError) as error:
        raise SystemExit(f"benchmarks.planner_study: {error}") from error
