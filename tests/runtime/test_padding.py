"""Positions that skip padding, wherever a text holds it: engine, GPU and reference agree, and count as defined."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session

PADDING = 1
BITS = ((16, 4, 4, 2), (4, 4, 2))
TEXTS: dict[str, list[int]] = {
    "none": [5, 6, 7],
    "inside": [5, PADDING, 6, 7],
    "first": [PADDING, 5, 6],
    "last": [5, 6, PADDING],
    "alone": [PADDING],
    "nothing else": [PADDING] * 20,
    "many tiles": [PADDING if i % 7 == 3 else 5 + i for i in range(40)],
}


@pytest.fixture(scope="module", params=[False, True], ids=["streamed", "resident"])
def path(make_package: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    return make_package(BITS, table_resident=request.param, padding=PADDING)


@pytest.mark.parametrize("text", TEXTS)
def test_engine_gives_the_references_answer(path: Path, text: str) -> None:
    reference = Reference(Package.open(path))
    with Session(path) as session:
        for ids in (TEXTS[text], TEXTS["none"], TEXTS[text]):  # nothing stays behind
            np.testing.assert_allclose(session.run(ids), reference.run(ids), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("text", TEXTS)
def test_other_tokens_are_counted_as_if_padding_were_not_there(path: Path, text: str) -> None:
    ids = np.array(TEXTS[text])
    layers = Reference(Package.open(path)).cpu
    embedded, others = layers.embed(ids, 0 * ids), ids[ids != PADDING]
    assert np.array_equal(embedded[:, ids != PADDING], layers.embed(others, 0 * others))
    assert (embedded[:, ids == PADDING] == embedded[:, ids == PADDING][:, :1]).all()


def test_a_package_without_padding_counts_every_token(make_package: Callable[..., Path]) -> None:
    package = Package.open(make_package(BITS, compiled=False))
    assert int(package.model["padding"]) == 0
    layers = Reference(package).cpu
    ids = np.array([5, PADDING, 6])
    assert not np.array_equal(layers.embed(ids, 0 * ids)[:, 2], layers.embed(ids[::2], 0 * ids[::2])[:, 1])


@pytest.mark.usefixtures("opencl")
@pytest.mark.parametrize("places", [("gpu",) * 2 + ("cpu", "gpu"), ("cpu", "gpu", "cpu", "gpu")])
def test_layers_on_a_gpu(make_gpu_package: Callable[..., Path], places: tuple[str, ...]) -> None:
    options: dict[str, Any] = {"padding": PADDING, "places": places}
    path = make_gpu_package(**options)
    reference = Reference(Package.open(path), gpu_arithmetic="float")
    with Session(path, gpu="required", gpu_arithmetic="float") as session:
        for ids in TEXTS.values():
            np.testing.assert_allclose(session.run(ids), reference.run(ids), rtol=0, atol=3e-2)
