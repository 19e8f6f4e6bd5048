"""What tests of importance share: tiny models of random weights, settings, and labelled examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from stic.compiler.importance.examples import Examples
from stic.compiler.importance.jobs import Workers
from stic.compiler.importance.measure import ImportanceSettings
from stic.compiler.inputs import read_model
from stic.compiler.quantization.quantize import QuantizedModel, quantize
from stic.compiler.sharding import shard

SETTINGS = ImportanceSettings(bits=(2, 3, 4, 8, 16), tokens=60, plans=12)
ONE = Workers(jobs=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the compiler runs it: matrix products on one thread."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def encoder(tiny_dir: Path) -> QuantizedModel:
    """A sentence encoder."""
    return quantize(shard(read_model(tiny_dir), 4))


@pytest.fixture(scope="module")
def classifier(tiny_classifier_dir: Path) -> QuantizedModel:
    """A classifier."""
    return quantize(shard(read_model(tiny_classifier_dir), 2))


def labelled(count: int = 16) -> Examples:
    """Sentences of two classes, by turns."""
    words = "the cat sings here and a dog runs there very good movie is great".split()
    rng = np.random.default_rng(5)
    texts = tuple((" ".join(rng.choice(words, 4)), None) for _ in range(count))
    return Examples("classification", texts, (np.arange(count) % 2).astype(np.float64), "random words")
