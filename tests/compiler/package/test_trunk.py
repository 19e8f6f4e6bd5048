"""embeddings.bin: every row by itself, whatever rows are quantised with it, and without copies of the table."""

import tracemalloc

import numpy as np
import pytest

from stic.compiler.package.trunk import build_embeddings
from stic.runtime.format import BLOCK
from stic.runtime.layout import row_stride


@pytest.mark.parametrize("hidden", [5, 16, 33])
@pytest.mark.parametrize("vocabulary", [1, 1023, 1024, 1025, 2100])
def test_a_row_does_not_depend_on_the_others(vocabulary: int, hidden: int) -> None:
    word = np.random.default_rng(vocabulary).standard_normal((vocabulary, hidden)).astype(np.float32)
    word[vocabulary // 2] = 0
    whole, stride = build_embeddings(word), row_stride(hidden)
    assert len(whole) % BLOCK == 0 and len(whole) - vocabulary * stride < BLOCK
    assert not any(whole[vocabulary * stride :])
    for row in {0, vocabulary // 2, vocabulary - 1, min(1024, vocabulary - 1)}:
        assert build_embeddings(word[row : row + 1])[:stride] == whole[row * stride : (row + 1) * stride]


def test_a_large_table_is_not_copied() -> None:
    word = np.ones((20_000, 128), np.float32)
    tracemalloc.start()
    rows = build_embeddings(word)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(rows) + word.nbytes / 4
