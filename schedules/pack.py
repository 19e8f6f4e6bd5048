"""The weight layout that the unpack kernels read: one-bit planes, most significant first.

Codes of a matrix are flattened row-major. Bit j (little-endian) of byte i of plane p is bit (bits - 1 - p) of
code 8 i + j, so the first b planes alone are the codes of the b-bit matrix (code >> (bits - b)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TILE = 16  # tokens in a tile and rows in a block of weights
GROUP = 64  # codes that an unpack kernel handles in one step


def pad16(count: int) -> int:
    """Round up to a multiple of TILE."""
    return -(-count // TILE) * TILE


def pack_planes(codes: NDArray[np.uint8], bits: int) -> list[NDArray[np.uint8]]:
    """Split codes (rows, columns), each below 2**bits, into `bits` planes (rows * columns / 8,)."""
    if not 1 <= bits <= 8:
        raise ValueError(f"a code has 1 to 8 bits, not {bits}")
    if codes.dtype != np.uint8:
        raise ValueError(f"codes must be uint8, not {codes.dtype}")
    if codes.size % 8:
        raise ValueError(f"{codes.size} codes do not fill whole bytes; pad the matrix to multiples of {TILE}")
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"code {int(codes.max())} does not fit in {bits} bits")
    flat = codes.reshape(-1)
    return [np.packbits((flat >> (bits - 1 - p)) & 1, bitorder="little") for p in range(bits)]


def unpack_planes(planes: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rebuild the flat codes (8 * bytes,) from the first len(planes) planes: the inverse of `pack_planes`."""
    if not 1 <= len(planes) <= 8:
        raise ValueError(f"a code has 1 to 8 planes, not {len(planes)}")
    codes: NDArray[np.uint8] = np.zeros(8 * planes[0].size, np.uint8)
    for plane in planes:
        codes = ((codes << 1) | np.unpackbits(plane, bitorder="little")).astype(np.uint8)
    return codes
