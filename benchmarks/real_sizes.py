"""Compile encoders of real sizes, of random weights, and record the time and the memory of every stage.

    python benchmarks/real_sizes.py [--only base|large|distil|minilm] [--planner NAME] [--jobs N] [--json FILE]

Models are written as Hugging Face directories of float32 into a temporary folder, with a tokenizer that knows every
token by its number, and are compiled by `stic.compiler` in a process of their own, with an empty cache. Two figures are
memory: the largest resident set of that process, and the largest sum, sampled four times a second, of what it and its
workers hold, shared pages counted once (Pss). Both are given in MiB and as multiples of the float32 weights. Of a stage
the set is the largest until its end, the sum the largest sample within it (0 where it was too short for one). Times are
wall and processor seconds; run it on an idle machine. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

SIZES = {  # layers, hidden, heads, FFN
    "minilm": (6, 384, 12, 1536),
    "distil": (6, 768, 12, 3072),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
VOCABULARY, POSITIONS = 30522, 512
SAMPLE_S = 0.25


def write_model(name: str, folder: Path) -> int:
    """Write a random BERT as BERT is initialised; return the bytes of its weights."""
    layers, hidden, heads, ffn = SIZES[name]
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)

    tensors = {
        "embeddings.word_embeddings.weight": normal(VOCABULARY, hidden),
        "embeddings.position_embeddings.weight": normal(POSITIONS, hidden),
        "embeddings.token_type_embeddings.weight": normal(2, hidden),
    }
    linears = {"pooler.dense": (hidden, hidden)}
    norms = ["embeddings.LayerNorm"]
    for number in range(layers):
        at = f"encoder.layer.{number}"
        linears |= {f"{at}.attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        linears |= {f"{at}.attention.output.dense": (hidden, hidden)}
        linears |= {f"{at}.intermediate.dense": (ffn, hidden), f"{at}.output.dense": (hidden, ffn)}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for at, shape in linears.items():
        tensors |= {f"{at}.weight": normal(*shape), f"{at}.bias": np.zeros(shape[0], np.float32)}
    for at in norms:
        tensors |= {f"{at}.weight": np.ones(hidden, np.float32), f"{at}.bias": np.zeros(hidden, np.float32)}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": layers, "hidden_size": hidden,
        "num_attention_heads": heads, "intermediate_size": ffn, "vocab_size": VOCABULARY, "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    words = sorted({word for line in _sentences() for word in line.split()})
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(("[UNK]", *words))}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return sum(array.nbytes for array in tensors.values())


def _sentences() -> list[str]:
    from stic.compiler.importance.examples import built_in_examples

    return [text for text, _ in built_in_examples().texts]


def compile_stages(model: Path, output: Path, planner: str, bits: int | None, jobs: int | None) -> dict[str, Any]:
    """Compile in this process; return what every stage took."""
    from stic.compiler.options import (
        BudgetOptions,
        CompileOptions,
        ImportanceOptions,
        ModelOptions,
        PlannerOptions,
        TargetOptions,
    )
    from stic.compiler.pipeline import compile_model
    from stic.compiler.plan import Budget

    stages: list[dict[str, Any]] = []

    def now() -> tuple[float, float, float]:
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.monotonic(), sum(u.ru_utime + u.ru_stime for u in usage), usage[0].ru_maxrss / 1024

    def progress(stage: str, done: int, total: int) -> None:
        if not stages or stages[-1]["stage"] != stage:
            stages.append({"stage": stage, "began": now()})

    options = CompileOptions(
        ModelOptions(model),
        TargetOptions("host", place="cpu"),
        BudgetOptions(Budget(latency_us=1_000_000)),
        output,
        importance=ImportanceOptions(jobs=jobs),
        planner=PlannerOptions(planner, bits),
    )
    compile_model(options, progress)
    ends = [stage["began"] for stage in stages[1:]] + [now()]
    return {
        "stages": [
            {
                "stage": stage["stage"],
                "began_s": stage["began"][0],
                "seconds": round(end[0] - stage["began"][0], 2),
                "cpu_seconds": round(end[1] - stage["began"][1], 2),
                "peak_rss_mib": round(end[2]),
            }
            for stage, end in zip(stages, ends, strict=True)
        ],
        "seconds": round(ends[-1][0] - stages[0]["began"][0], 1),
        "cpu_seconds": round(ends[-1][1] - stages[0]["began"][1], 1),
        "peak_rss_mib": round(ends[-1][2]),
    }


def tree_mib(pid: int) -> float:
    """Memory of a process and its descendants in MiB, a page of several counted once; 0 for one that has ended."""
    total = 0.0
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_mib(int(child)) for child in (thread / "children").read_text().split())
    except (OSError, StopIteration):
        pass
    return total


def measure(name: str, planner: str, bits: int | None, jobs: int | None) -> dict[str, Any]:
    """Compile one model in a fresh process; return times and memory."""
    with tempfile.TemporaryDirectory(prefix="stic-sizes-") as folder:
        model, result = Path(folder) / name, Path(folder) / "result.json"
        weights = write_model(name, model)
        command = [sys.executable, __file__, "--measured", str(model), "--planner", planner, "--json", str(result)]
        command += ["--bits", str(bits)] if bits is not None else []
        command += ["--jobs", str(jobs)] if jobs is not None else []
        process = subprocess.Popen(command, env=os.environ | {"STIC_CACHE": f"{folder}/cache"})
        samples: list[tuple[float, float]] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SAMPLE_S):
                samples.append((time.monotonic(), tree_mib(process.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            status = process.wait()
        finally:
            ended.set()
            watcher.join()
        if status:
            raise SystemExit(f"compiling {name} ended with status {status}")
        found = json.loads(result.read_text())
    mib, peak = weights / 2**20, max((size for _, size in samples), default=0.0)
    begins = [stage.pop("began_s") for stage in found["stages"]]  # of the clock that all processes share
    for stage, begin, end in zip(found["stages"], begins, [*begins[1:], float("inf")], strict=True):
        stage["peak_tree_mib"] = round(max((size for at, size in samples if begin <= at < end), default=0.0))
    return {
        "model": name, "planner": planner, "weights_mib": round(mib), **found, "peak_tree_mib": round(peak),
        "peak_rss_over_weights": round(found["peak_rss_mib"] / mib, 2), "peak_tree_over_weights": round(peak / mib, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SIZES), help="one size instead of all")
    parser.add_argument("--planner", default="ilp")
    parser.add_argument("--bits", type=int, help="for the planners that take a bitwidth")
    parser.add_argument("--jobs", type=int, help="processes or threads of importance; default: one a core")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--measured", type=Path, help=argparse.SUPPRESS)  # in the measured process: its model
    asked = parser.parse_args()
    if asked.measured is not None:
        output = asked.measured.parent / "package.stic"
        found = compile_stages(asked.measured, output, asked.planner, asked.bits, asked.jobs)
        asked.json.write_text(json.dumps(found))
        return
    rows = []
    for name in [asked.only] if asked.only else SIZES:
        row = measure(name, asked.planner, asked.bits, asked.jobs)
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
        if asked.json is not None:
            machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
            asked.json.write_text(json.dumps({"machine": machine, "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
