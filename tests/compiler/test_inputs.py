"""What is calibrated, on what, and what is not."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler import pipeline
from stic.compiler.importance.examples import encode
from stic.compiler.importance.file import save as save_importance
from stic.compiler.importance.measure import Importance
from stic.compiler.importance.random_text import random_examples
from stic.compiler.inputs import decodes, read_decoder_model, read_model
from stic.compiler.stages import Decided, Replays, Solver
from stic.runtime.errors import InputError
from tests.compiler.planning import planned

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


@pytest.mark.parametrize("planner", ["preload", "pipeline", "load-and-exec"])
def test_planners_at_a_fixed_bitwidth_measure_no_importance(
    planner: str, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"name": planner, "bits": 4, "trial_tokens": 60}
    plain = planned(tiny_dir, planner=chosen)
    assert plain[Importance].evaluations == 0 and not plain[Importance].gain.any() and plain[Solver].trial is None
    monkeypatch.setattr(pipeline, "measures_importance", lambda *_: True)
    measured = planned(tiny_dir, planner=chosen)
    assert measured[Importance].evaluations > 0
    assert measured[Decided].default.layers == plain[Decided].default.layers
    assert measured[Replays].timelines[0].latency_us == plain[Replays].timelines[0].latency_us


def test_an_elastic_model_is_measured_for_its_submodels(tiny_dir: Path, tmp_path: Path) -> None:
    folder = elastic(shutil.copytree(tiny_dir, tmp_path / "elastic"))
    assert planned(folder, planner={"name": "preload", "bits": 4})[Importance].evaluations > 0


def test_a_file_of_importance_is_read_by_every_planner(tiny_dir: Path, tmp_path: Path) -> None:
    made = planned(tiny_dir, stages={"until": "importance"})[Importance]
    save_importance(made, tmp_path / "made.json")
    fixed = {"name": "preload", "bits": 4}
    assert planned(tiny_dir, planner=fixed, importance={"file": tmp_path / "made.json"})[Importance].key == made.key


def test_stic_importance_measures_whatever_the_planner(tiny_dir: Path) -> None:
    made = planned(tiny_dir, planner={"name": "preload", "bits": 4}, stages={"until": "importance"})
    assert made[Importance].evaluations > 0


@pytest.mark.parametrize("planner", [{"name": "ilp"}, {"name": "greedy"}, {"name": "preload", "bits": 4}])
@pytest.mark.parametrize("quantizer", ["nested", "gobo"])
def test_without_a_tokenizer_tokens_are_random_and_a_note_says_so(
    planner: dict[str, Any], quantizer: Any, bare: Path
) -> None:
    made = planned(bare, shards={"quantizer": quantizer}, planner={"trial_tokens": 60, **planner})
    assert sum(NOTE in note for note in made.notes) == 1
    assert planner["name"] == "preload" or made[Importance].calibration.startswith("random tokens: ")


def test_where_nothing_is_calibrated_nothing_is_said(bare: Path, tiny_dir: Path, tmp_path: Path) -> None:
    save_importance(planned(tiny_dir, stages={"until": "importance"})[Importance], tmp_path / "made.json")
    made = planned(
        elastic(bare),
        planner={"name": "preload", "bits": 4},
        shards={"quantizer": "gobo"},
        importance={"file": tmp_path / "made.json"},
    )
    assert not any(NOTE in note for note in made.notes)


def test_a_calibration_file_needs_a_tokenizer(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.tsv").write_text("the cat sings\n")
    with pytest.raises(InputError, match=r"texts\.tsv cannot be used: .* or leave out --calibration"):
        planned(bare, importance={"calibration": tmp_path / "texts.tsv"})


def test_random_texts_are_token_numbers(tiny_dir: Path) -> None:
    model = read_model(tiny_dir)
    examples, tokenizer = random_examples(model)
    batches = encode(examples, tokenizer, model.max_length)
    ids = np.concatenate([batch.ids[batch.mask] for batch in batches])
    assert ids.min() >= 0 and len(np.unique(ids)) == len(model.embeddings.word)
    assert sum(batch.tokens for batch in batches) == len(ids) == len(examples) * min(32, model.max_length)
    assert examples.texts == random_examples(model)[0].texts


def test_graphs_of_decoders_are_known_without_their_weights(tiny_dir: Path, tmp_path: Path) -> None:
    from tests.compiler.frontend.builder_graph import built

    model = built(tmp_path, external=True)
    assert decodes(model) and decodes(tmp_path)
    assert read_decoder_model(tmp_path).architecture == read_decoder_model(model).architecture
    for path in tmp_path.iterdir():
        if path.suffix in (".data", ".bin"):
            path.unlink()
    assert decodes(model)
    assert not decodes(tiny_dir)
    assert not any(decodes(path) for path in tiny_dir.glob("*.onnx"))
