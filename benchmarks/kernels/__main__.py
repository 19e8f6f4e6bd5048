"""Kernels against the machine's limits and against other runtimes.

    python -m benchmarks.kernels [--model MODEL.onnx] [--only PART] [--quick] [--out FILE.json]

Run it from the repository's root, on a machine that does nothing else. Five parts, each interleaved with what it is
compared to, round by round:

    limits    peak of the best int8 and float32 loops, read bandwidth of a plain sum
    encoder   packages of every bitwidth, everything resident: onnxruntime (fp32, int8), OpenVINO (its default, int8)
              and numpy, at several lengths; needs --model, an ONNX file with tokenizer.json beside it
    sizes     random encoders of BERT-base's and BERT-large's shape at 4 bits, 128 tokens, against the same peers
    gemm      matrices of BERT-base times 128 rows, against the peak
    gemv      4096 x 4096 matrices from memory times 1 to 8 rows, against the sum and against ggml (llama.cpp)

Prints Markdown tables; writes JSON and figures beside it. --only leaves the other parts of the file as they were.
The cases and the promises they are held to are in cases.json. All but `sizes` take about 10 minutes and 5 GB
of memory; BERT-large needs more of both. A peer that is not installed is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.kernels import encoder, gemm, gemv, limits, sizes
from benchmarks.kernels.acceptance import judge
from benchmarks.kernels.driver import build_driver
from benchmarks.kernels.figures import draw
from benchmarks.kernels.place import Place, cpu_ticks, machine, stolen_share, versions
from benchmarks.kernels.report import tables
from stic.compiler.package.kernels import generate
from stic.runtime.errors import SticError
from stic.schedules.shape import KernelShape
from stic.targets import target as targets

PARTS: dict[str, Callable[[Place, dict[str, Any]], dict[str, Any]]] = {
    "limits": limits.measure,
    "encoder": encoder.measure,
    "sizes": sizes.measure,
    "gemm": gemm.measure,
    "gemv": gemv.measure,
}
RESULTS = Path(__file__).resolve().parent.parent / "results" / "kernels.json"
QUICK_RESULTS = Path("build/kernels-quick.json")
BERT_BASE = KernelShape(hidden=768, head_dim=64, activation="gelu", embed_epsilon=1e-12, norm_epsilon=1e-12)
BUSY = 0.5  # load average
QUICK = {
    "encoder": {"bits": [2, 4, 8], "tokens": [128], "rounds": 3},
    "sizes": {"layers": 2, "threads": [1], "rounds": 3},
    "gemm": {"bits": [2, 4, 8], "rounds": 3, "joined": []},
    "gemv": {"bits": [2, 4, 8], "rows": [1], "outliers": [0.0025], "rounds": 3},
    "limits": {"rounds": 3},
}


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the encoder; without it that part is left out")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and cases, to see that all works")
    parser.add_argument("--out", type=Path, help=f"JSON file (default: {RESULTS}; with --quick {QUICK_RESULTS})")
    options = parser.parse_args()
    out = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    names = options.only or [name for name in PARTS if name != "encoder" or options.model]
    cases = json.loads(Path(__file__).with_name("cases.json").read_text(encoding="utf-8"))
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"parts": {}}
    with tempfile.TemporaryDirectory(prefix="stic-bench-") as folder:
        place = _place(Path(folder), options.model)
        if (load := os.getloadavg()[0]) > BUSY:
            place.console.print(f"this machine is busy (load average {load:.1f}): times will be noisy")
        for name in names:
            found["parts"][name] = _measure(name, place, cases[name] | (QUICK[name] if options.quick else {}))
            verdicts = judge(found["parts"], cases)
            found["promises"] = [verdict.to_json() for verdict in verdicts]
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(tables({name: found["parts"][name] for name in names}, verdicts))
    figures = draw(found["parts"], out.with_suffix(""))
    print("\nwrote " + ", ".join(str(path) for path in (out, *figures)), file=sys.stderr)


def _place(folder: Path, model: Path | None) -> Place:
    target = targets.load("host")
    generate(BERT_BASE, target, folder / "kernels.so")
    console = Console(stderr=True)
    return Place(target, build_driver(target, folder), folder / "kernels.so", folder, model, console)


def _measure(name: str, place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """One part, with when, where and how it was measured."""
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.kernels", *sys.argv[1:]]),
        "machine": machine(place.target),
        "versions": versions(),
        "settings": settings,
    }
    before = cpu_ticks()
    measured = PARTS[name](place, settings)
    for peer, reason in measured.get("absent", {}).items():
        place.console.print(f"left out: {peer} ({reason})")
    return facts | {"stolen_share": stolen_share(before, cpu_ticks())} | measured


if __name__ == "__main__":
    try:
        main()
    except SticError as error:
        raise SystemExit(f"benchmarks.kernels: {error}") from error
