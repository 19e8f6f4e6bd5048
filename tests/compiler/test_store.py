"""Where records lie."""

from itertools import pairwise

import numpy as np
import pytest

from stic.compiler.store import lay_out
from stic.runtime.format import BLOCK, FULL, LEVELS, Shape, levels_of

SHAPE = Shape(32, 1, 16, 20)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("full_bits", [0, 16, 32])
def test_runs_are_aligned_contiguous_and_disjoint(nested, full_bits):
    rng = np.random.default_rng(0)
    store = lay_out(SHAPE, rng.integers(0, 50, (2, 3, 4)), nested, full_bits)
    records = []
    for layer in range(2):
        for level in range(LEVELS):
            if level == FULL and not full_bits:
                assert not store.bytes[layer, level].any()
                continue
            assert store.offset[layer, level, 0] % BLOCK == 0
            assert (np.diff(store.offset[layer, level]) == store.bytes[layer, level, :-1]).all()
            pairs = zip(store.offset[layer, level], store.bytes[layer, level], strict=True)
            records += [(int(o), int(o + b)) for o, b in pairs]
    records.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(records))
    assert records[-1][1] <= store.total_bytes


def test_full_precision_comes_last():
    outliers = np.zeros((2, 3, 4), np.int64)
    small, large = (lay_out(SHAPE, outliers, True, full) for full in (0, 16))
    assert (small.offset[:, :FULL] == large.offset[:, :FULL]).all()
    assert large.offset[:, FULL].min() >= small.total_bytes


def test_extent_covers_its_slices():
    store = lay_out(SHAPE, np.full((1, 5, 4), 3), True, 0)
    for first in range(5):
        for count in range(1, 6 - first):
            start, size = store.extent(0, 2, first, count)
            assert start % BLOCK == size % BLOCK == 0
            assert start <= store.offset[0, 2, first] < start + BLOCK
            end = store.offset[0, 2, first + count - 1] + store.bytes[0, 2, first + count - 1]
            assert start + size - BLOCK < end <= start + size


def test_shard_bytes_add_up_levels():
    store = lay_out(SHAPE, np.zeros((1, 1, 4), np.int64), True, 16)
    assert store.shard_bytes(0, 0, 4) == store.bytes[0, :3, 0].sum()
    assert store.shard_bytes(0, 0, 16) == store.bytes[0, FULL, 0]
    assert store.shard_bytes(0, 0, 0) == 0
    assert levels_of(4, False) == (2,)
