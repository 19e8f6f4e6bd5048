"""A real decoder against itself elsewhere, against what it was made from, and against other runtimes.

    python -m benchmarks.decoders [--only PART] [--quick] [--folder build/decoders] [--out FILE.json]

Run it from the repository's root. Parts, each apart from the others:

    parity     the engine here, the engine for aarch64 under QEMU and the numpy reference give the same tokens;
               transformers gives the same text as 16 bits, and the same tokens of texts and chats
    quality    perplexity of packages by bytes, against the float32 model and llama.cpp at the same size of file; ARC-E,
               OBQA and PIQA against the float32 model
    speed      prefill and next token against llama.cpp, SmolLM2 and the shape of 1.1 billion weights; next token
               against a plain sum of the same bytes
    predicted  first and next token, and memory, against what plans claim

Prints Markdown tables; writes JSON. What is compiled, and every answer and score, is kept in the folder: a run that was
stopped goes on. Times are not kept: `speed` and `predicted` want a machine that does nothing else. The cases, and what
they are held to, are in cases.json. --only leaves the other parts of the file as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.decoders import acceptance, parity, predicted, quality, report, speed
from benchmarks.decoders.place import Place
from benchmarks.evaluation.resume import alone, write_json
from benchmarks.kernels.place import cpu_ticks, machine, stolen_share, versions
from stic.runtime.errors import SticError
from stic.targets import target as targets

PARTS: dict[str, Callable[[Place, dict[str, Any]], dict[str, Any]]] = {
    "parity": parity.measure,
    "quality": quality.measure,
    "speed": speed.measure,
    "predicted": predicted.measure,
}
TIMED = ("speed", "predicted")
BUSY = 0.5  # load average
RESULTS = Path(__file__).resolve().parent.parent / "results" / "decoders.json"
FOLDER = Path("build/decoders")


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a sample of each part, to see that all works")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where work is kept (default: {FOLDER})")
    parser.add_argument("--out", type=Path, help=f"JSON file (default: {RESULTS}; with --quick FOLDER/quick.json)")
    options = parser.parse_args()
    out = options.out or (options.folder / "quick.json" if options.quick else RESULTS)
    cases = json.loads(Path(__file__).with_name("cases.json").read_text(encoding="utf-8"))
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"parts": {}}
    names = options.only or list(PARTS)
    place = Place(options.folder)
    with alone(options.folder):
        for name in names:
            if name in TIMED and (load := os.getloadavg()[0]) > BUSY:
                place.say(f"this machine is busy (load average {load:.1f}): times will be noisy")
            found["parts"][name] = _measure(name, place, cases[name] | (cases["quick"][name] if options.quick else {}))
            verdicts = acceptance.judge(found["parts"], cases["accepted"])
            found["promises"] = [verdict.to_json() for verdict in verdicts]
            write_json(out, found, indent=1)
    print(report.tables({name: found["parts"][name] for name in names}, verdicts))
    print(f"\nwrote {out}", file=sys.stderr)


def _measure(name: str, place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """One part, with when, where and how it was measured."""
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.decoders", *sys.argv[1:]]),
        "machine": machine(targets.load("host")),
        "versions": versions(),
        "settings": settings,
    }
    before = cpu_ticks()
    measured = PARTS[name](place, settings)
    return facts | {"stolen_share": stolen_share(before, cpu_ticks())} | measured


if __name__ == "__main__":
    try:
        main()
    except SticError as error:
        raise SystemExit(f"benchmarks.decoders: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("benchmarks.decoders: stopped; the same command goes on") from None
