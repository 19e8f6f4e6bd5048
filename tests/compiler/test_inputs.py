"""What is calibrated, on what, and what is not."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler import pipeline
from stic.compiler.importance.examples import encode
from stic.compiler.importance.file import save as save_importance
from stic.compiler.importance.random_text import random_examples
from stic.compiler.inputs import read_model
from stic.compiler.options import CompileOptions
from stic.compiler.pipeline import plan_model
from stic.compiler.plan import Budget
from stic.runtime.errors import InputError

TARGET = "odroid-n2plus"
NOTE = "calibration rests on tokens drawn at random"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bare(tiny_dir: Path, tmp_path: Path) -> Path:
    """A model without a tokenizer."""
    folder = shutil.copytree(tiny_dir, tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    return folder


def elastic(folder: Path) -> Path:
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"elastic": true,', 1))
    return folder


def options(folder: Path, **changes: Any) -> CompileOptions:
    return CompileOptions(folder, TARGET, Budget(), **{"max_length": 16, "calibration_tokens": 40, "jobs": 1} | changes)


@pytest.mark.parametrize("planner", ["preload", "pipeline", "load-and-exec"])
def test_planners_at_a_fixed_bitwidth_measure_no_importance(
    planner: str, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(tiny_dir, planner=planner, bits=4, trial_tokens=60)
    plain = plan_model(asked)
    assert plain.plan is not None and plain.importance is None and plain.trial is None
    monkeypatch.setattr(pipeline, "measures_importance", lambda *_: True)
    measured = plan_model(asked)
    assert measured.importance is not None and measured.plan is not None and measured.plan.layers == plain.plan.layers
    assert measured.timeline is not None and plain.timeline is not None
    assert measured.timeline.latency_us == plain.timeline.latency_us


def test_an_elastic_model_is_measured_for_its_submodels(tiny_dir: Path, tmp_path: Path) -> None:
    folder = elastic(shutil.copytree(tiny_dir, tmp_path / "elastic"))
    assert plan_model(options(folder, planner="preload", bits=4)).importance is not None


def test_a_file_of_importance_is_read_by_every_planner(tiny_dir: Path, tmp_path: Path) -> None:
    made = plan_model(options(tiny_dir, until="profile")).importance
    assert made is not None
    save_importance(made, tmp_path / "made.json")
    again = plan_model(options(tiny_dir, planner="preload", bits=4, importance=tmp_path / "made.json"))
    assert again.importance is not None and again.importance.key == made.key


def test_profiling_measures_whatever_the_planner(tiny_dir: Path) -> None:
    assert plan_model(options(tiny_dir, planner="preload", bits=4, until="profile")).importance is not None


@pytest.mark.parametrize("planner", [{"planner": "ilp"}, {"planner": "greedy"}, {"planner": "preload", "bits": 4}])
@pytest.mark.parametrize("quantizer", ["nested", "gobo"])
def test_without_a_tokenizer_tokens_are_random_and_a_note_says_so(
    planner: dict[str, Any], quantizer: Any, bare: Path
) -> None:
    made = plan_model(options(bare, quantizer=quantizer, trial_tokens=60, **planner))
    assert made.plan is not None and sum(NOTE in note for note in made.notes) == 1
    assert made.importance is None or made.importance.calibration.startswith("random tokens: ")


def test_where_nothing_is_calibrated_nothing_is_said(bare: Path, tiny_dir: Path, tmp_path: Path) -> None:
    made = plan_model(options(tiny_dir, until="profile")).importance
    assert made is not None
    save_importance(made, tmp_path / "made.json")
    asked = options(elastic(bare), planner="preload", bits=4, quantizer="gobo", importance=tmp_path / "made.json")
    assert not any(NOTE in note for note in plan_model(asked).notes)


def test_a_calibration_file_needs_a_tokenizer(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.tsv").write_text("the cat sings\n")
    with pytest.raises(InputError, match=r"texts\.tsv cannot be used: .* or leave out --calibration"):
        plan_model(options(bare, calibration=tmp_path / "texts.tsv"))


def test_random_texts_are_token_numbers(tiny_dir: Path) -> None:
    model = read_model(tiny_dir)
    examples, tokenizer = random_examples(model)
    batches = encode(examples, tokenizer, model.max_length)
    ids = np.concatenate([batch.ids[batch.mask] for batch in batches])
    assert ids.min() >= 0 and len(np.unique(ids)) == len(model.embeddings.word)
    assert sum(batch.tokens for batch in batches) == len(ids) == len(examples) * min(32, model.max_length)
    assert examples.texts == random_examples(model)[0].texts
