"""Weights are read once, and every change of them changes every key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.compiler.cache import digests
from stic.compiler.cache.digests import codes_digest, encoder_digest, follows
from stic.compiler.importance.examples import built_in_examples
from stic.compiler.importance.measure import Importance, measurement_key
from stic.compiler.inputs import read_model
from stic.compiler.quantization.quantize import quantize
from stic.compiler.sharding import shard
from stic.compiler.stages import Decided
from tests.compiler.planning import planned


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every array that a digest reads."""
    sizes: list[int] = []
    feed = digests._feed

    def counted(state: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            sizes.append(value.nbytes)
        feed(state, value)

    monkeypatch.setattr(digests, "_feed", counted)
    return sizes


def test_a_compilation_reads_the_weights_once(
    read: list[int], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, quantisation, importance and the plan on trial all have them in their keys."""
    monkeypatch.setenv("STIC_CACHE", str(tmp_path))
    model = read_model(tiny_dir)
    largest = model.embeddings.word.nbytes
    read.clear()
    first = planned(tiny_dir)
    assert read.count(largest) == 1
    again = planned(tiny_dir)
    assert (
        read.count(largest) == 2 and again[Decided].plans == first[Decided].plans
    )  # another process would do the same
    assert again[Importance].key == first[Importance].key


def test_an_object_is_read_once(read: list[int], tiny_dir: Path) -> None:
    model = read_model(tiny_dir)
    first, count = encoder_digest(model), len(read)
    assert encoder_digest(model) == first and len(read) == count > 0
    assert encoder_digest(read_model(tiny_dir)) == first  # another object of the same values


def test_every_weight_counts(tiny_dir: Path) -> None:
    model = read_model(tiny_dir)
    layer = model.layers[-1]
    biased = replace(layer, query=replace(layer.query, bias=layer.query.bias + 1))
    changed = [
        replace(model, embeddings=replace(model.embeddings, word=model.embeddings.word * 2)),
        replace(model, layers=(*model.layers[:-1], biased)),
        replace(model, layers=model.layers[:-1]),
        replace(model, activation="relu"),
        replace(model, attention_scale=model.attention_scale * 2),
    ]
    assert len({encoder_digest(each) for each in (model, *changed)}) == 1 + len(changed)


def test_codes_and_head_count_in_importance(tiny_dir: Path) -> None:
    sharded = shard(read_model(tiny_dir), 2)
    made = quantize(sharded, "nested")
    first = made.matrices[0][0]
    other = replace(first["up"], scale=first["up"].scale * np.float32(1.5))
    model = sharded.model
    head = replace(model.head, normalize=not model.head.normalize)
    changed = [
        replace(made, matrices=(({**first, "up": other}, *made.matrices[0][1:]), *made.matrices[1:])),
        replace(made, sharded=replace(sharded, model=replace(model, elastic=True))),
        replace(made, sharded=replace(sharded, model=replace(model, head=head))),
    ]
    keys = {measurement_key(each, built_in_examples(), (), "cosine") for each in (made, *changed)}
    assert len(keys) == 1 + len(changed)


def test_what_follows_from_other_origins_differs(read: list[int], tiny_dir: Path) -> None:
    models = [read_model(tiny_dir) for _ in range(2)]
    read.clear()
    follows(models[0], "code", "weights", 1)
    follows(models[1], "code", "weights", 2)
    assert encoder_digest(models[0]) != encoder_digest(models[1]) and not read
    made = [quantize(shard(model, 2), "gobo") for model in models]
    for number, each in enumerate(made):
        follows(each, "key", number)
    read.clear()
    assert codes_digest(made[0]) != codes_digest(made[1]) and not read
