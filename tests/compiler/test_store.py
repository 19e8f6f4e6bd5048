"""Where records lie."""

from itertools import pairwise

import numpy as np
import pytest

from stic.compiler.store import lay_out
from stic.runtime.format import BLOCK, FULL, LEVELS
from stic.runtime.layout import Shape, levels_of


def shapes(blocks: int, slices: int) -> tuple[Shape, ...]:
    return (Shape.layer(32, slices, 1, 16, 20),) * blocks


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("full_bits", [0, 16, 32])
def test_runs_are_aligned_contiguous_and_disjoint(nested, full_bits):
    rng = np.random.default_rng(0)
    store = lay_out(shapes(2, 3), rng.integers(0, 50, (2, 3, 4)), nested, full_bits)
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
    small, large = (lay_out(shapes(2, 3), outliers, True, full) for full in (0, 16))
    assert (small.offset[:, :FULL] == large.offset[:, :FULL]).all()
    assert large.offset[:, FULL].min() >= small.total_bytes


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_part_of_a_store_is_read_alike(nested: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store = lay_out(shapes(3, 5), rng.integers(0, 50, (3, 5, 4)), nested, 16)
    wanted = rng.random(store.bytes.shape) < rng.random()
    part = store.only(wanted)
    assert not np.any(wanted & (part.bytes == 0))
    blocks: list[int] = []
    for layer, level in np.argwhere(wanted.any(axis=2)):
        slices = np.flatnonzero(part.bytes[layer, level])
        asked = np.flatnonzero(wanted[layer, level])
        assert list(slices) == list(range(asked[0], asked[-1] + 1))
        for first in slices:
            for last in range(first, slices[-1] + 1):
                run = (int(layer), int(level), int(first), int(last - first + 1))
                assert part.extent(*run)[1] == store.extent(*run)[1]
        start, size = part.extent(int(layer), int(level), int(slices[0]), len(slices))
        blocks += range(start // BLOCK, (start + size) // BLOCK)
    assert sorted(blocks) == list(range(part.total_bytes // BLOCK))
    assert part.full_bits == (16 if wanted[:, FULL].any() else 0)


def test_a_whole_store_stays_as_it_is() -> None:
    store = lay_out(shapes(2, 3), np.full((2, 3, 4), 9), True, 32)
    same = store.only(np.ones(store.bytes.shape, bool))
    assert (same.bytes == store.bytes).all() and (same.offset == store.offset).all()
    assert (same.full_bits, same.total_bytes) == (store.full_bits, store.total_bytes)


def test_a_store_lacks_what_is_wanted() -> None:
    store = lay_out(shapes(1, 1), np.zeros((1, 1, 4), np.int64), True, 0)
    with pytest.raises(ValueError, match="lacks records"):
        store.only(np.ones(store.bytes.shape, bool))


def test_extent_covers_its_slices():
    store = lay_out(shapes(1, 5), np.full((1, 5, 4), 3), True, 0)
    for first in range(5):
        for count in range(1, 6 - first):
            start, size = store.extent(0, 2, first, count)
            assert start % BLOCK == size % BLOCK == 0
            assert start <= store.offset[0, 2, first] < start + BLOCK
            end = store.offset[0, 2, first + count - 1] + store.bytes[0, 2, first + count - 1]
            assert start + size - BLOCK < end <= start + size


def test_shard_bytes_add_up_levels():
    store = lay_out(shapes(1, 1), np.zeros((1, 1, 4), np.int64), True, 16)
    assert store.shard_bytes(0, 0, 4) == store.bytes[0, :3, 0].sum()
    assert store.shard_bytes(0, 0, 16) == store.bytes[0, FULL, 0]
    assert store.shard_bytes(0, 0, 0) == 0
    assert levels_of(4, False) == (2,)
