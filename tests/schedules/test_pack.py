"""Bit planes: packing and its inverse, prefixes, the order inside a block, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stic.runtime.blocks import blocked, places, positions
from stic.runtime.format import INTERLEAVES, TILE
from stic.schedules.pack import interleave, pack_planes, pad16, unpack_planes
from stic.targets.target import load

SIZES = st.integers(1, 4).map(lambda n: n * TILE)


@given(st.integers(1, 8), SIZES, SIZES, st.sampled_from(INTERLEAVES), st.integers(0, 2**32 - 1))
def test_planes_are_nested(bits: int, rows: int, columns: int, q: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    planes = pack_planes(codes, bits, q)
    assert [plane.shape for plane in planes] == [(codes.size // 8,)] * bits
    for count in range(1, bits + 1):
        assert (unpack_planes(planes[:count], codes.shape, q) == codes >> (bits - count)).all()


@given(SIZES, SIZES, st.sampled_from(INTERLEAVES))
def test_every_code_is_at_its_position(n: int, k: int, q: int) -> None:
    rows, columns = np.divmod(np.arange(n * k), k)
    at = positions(rows, columns, q)
    by_hand = [(c // q) * 16 * q + r % 16 * q + c % q for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]
    assert at.tolist() == by_hand
    numbers = np.arange(n * k).reshape(n, k)
    assert (blocked(numbers, q)[rows // TILE * (TILE * k) + at] == numbers.reshape(-1)).all()
    row, column = places(at, q)
    assert (row == rows % TILE).all() and (column == columns).all()


@pytest.mark.parametrize(("q", "at"), [(4, 64), (8, 4)])
def test_bit_order(q: int, at: int) -> None:
    codes = np.zeros((16, 16), np.uint8)
    codes[0, 4] = 0b10  # with q = 4 the first of the second group of columns, with q = 8 inside the first
    high, low = pack_planes(codes, 2, q)
    assert not low.any() and high[at // 8] == 1 << at % 8 and np.count_nonzero(high) == 1


def test_blocks_take_two_bytes_a_column_of_each_plane() -> None:
    codes = np.random.default_rng(0).integers(0, 4, (48, 32)).astype(np.uint8)
    for q in INTERLEAVES:
        whole = pack_planes(codes, 2, q)
        parts = [pack_planes(codes[first : first + 16], 2, q) for first in (0, 16, 32)]
        for p in range(2):
            assert whole[p].tolist() == np.concatenate([part[p] for part in parts]).tolist()
            assert len(parts[0][p]) == 2 * 32


def test_the_interleave_is_the_targets() -> None:
    assert {name: interleave(load(name)) for name in ("x86-64-v3", "aarch64-dotprod", "aarch64-i8mm")} == {
        "x86-64-v3": 4,
        "aarch64-dotprod": 4,
        "aarch64-i8mm": 8,
    }


def test_refusals() -> None:
    codes = np.zeros((16, 16), np.uint8)
    with pytest.raises(ValueError, match="does not fit in 2 bits"):
        pack_planes(codes + np.uint8(4), 2, 4)
    with pytest.raises(ValueError, match=r"\(16, 8\) is not made of whole blocks"):
        pack_planes(codes[:, :8], 2, 4)
    with pytest.raises(ValueError, match="1 to 8 bits"):
        pack_planes(codes, 9, 4)
    with pytest.raises(ValueError, match="must be uint8"):
        pack_planes(codes.astype(np.int8), 2, 4)
    with pytest.raises(ValueError, match="1 to 8 planes"):
        unpack_planes([], (16, 16), 4)
    with pytest.raises(ValueError, match="interleave is 16"):
        pack_planes(codes, 2, 16)
    with pytest.raises(ValueError, match="interleave is 3"):
        unpack_planes(pack_planes(codes, 2, 4), codes.shape, 3)


def test_pad16() -> None:
    assert [pad16(count) for count in (0, 1, 16, 17)] == [0, 16, 16, 32]
