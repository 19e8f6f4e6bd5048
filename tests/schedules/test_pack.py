"""Bit planes: packing and its inverse, prefixes, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stic.schedules.pack import pack_planes, pad16, unpack_planes


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_planes_are_nested(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (16 * rows, 16 * columns)).astype(np.uint8)
    planes = pack_planes(codes, bits)
    assert [plane.shape for plane in planes] == [(codes.size // 8,)] * bits
    for count in range(1, bits + 1):
        assert (unpack_planes(planes[:count]) == codes.reshape(-1) >> (bits - count)).all()


def test_bit_order() -> None:
    codes = np.zeros((1, 16), np.uint8)
    codes[0, 9] = 0b10
    assert [plane.tolist() for plane in pack_planes(codes, 2)] == [[0, 2], [0, 0]]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="does not fit in 2 bits"):
        pack_planes(np.full((2, 8), 4, np.uint8), 2)
    with pytest.raises(ValueError, match="whole bytes"):
        pack_planes(np.zeros((1, 4), np.uint8), 2)
    with pytest.raises(ValueError, match="1 to 8 bits"):
        pack_planes(np.zeros((1, 8), np.uint8), 9)
    with pytest.raises(ValueError, match="1 to 8 planes"):
        unpack_planes([])


def test_pad16() -> None:
    assert [pad16(count) for count in (0, 1, 16, 17)] == [0, 16, 16, 32]
