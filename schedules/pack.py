"""The weight layout that the unpack kernels read: codes in blocks (`stic.runtime.blocks`), split into one-bit planes.

In a block q neighbouring columns of a row lie together, as many as a lane of the dot instruction takes: planes,
and the panel that is unpacked from them, are read from front to back. Bit j (little-endian) of byte i of plane p is bit
(bits - 1 - p) of code 8 i + j, so the first b planes alone are the codes of the b-bit matrix (code >> (bits - b)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stic.runtime.blocks import blocked, unblocked
from stic.runtime.format import INTERLEAVES, TILE
from stic.runtime.layout import pad
from stic.targets.target import Target

GROUP = 64  # codes that an unpack kernel handles in one step
COLUMNS = 64  # of a matrix that share scales, where scales are by group


def interleave(target: Target) -> int:
    """Columns of a row that lie together on the target: 8 where smmla multiplies eight at once, else 4."""
    return 8 if "i8mm" in target.features else 4


def pad16(count: int) -> int:
    """Round up to a multiple of TILE."""
    return pad(count, TILE)


def pack_planes(codes: NDArray[np.uint8], bits: int, interleave: int) -> list[NDArray[np.uint8]]:
    """Split codes (N, K), each below 2**bits, into `bits` planes (N * K / 8,). N and K are multiples of TILE."""
    if not 1 <= bits <= 8:
        raise ValueError(f"a code has 1 to 8 bits, not {bits}")
    if codes.dtype != np.uint8:
        raise ValueError(f"codes must be uint8, not {codes.dtype}")
    _check(codes.shape, interleave)
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"code {int(codes.max())} does not fit in {bits} bits")
    flat = blocked(codes, interleave)
    return [np.packbits((flat >> (bits - 1 - p)) & 1, bitorder="little") for p in range(bits)]


def unpack_planes(planes: Sequence[NDArray[np.uint8]], shape: tuple[int, int], interleave: int) -> NDArray[np.uint8]:
    """Rebuild the codes (N, K) from the first len(planes) planes: the inverse of `pack_planes`."""
    if not 1 <= len(planes) <= 8:
        raise ValueError(f"a code has 1 to 8 planes, not {len(planes)}")
    _check(shape, interleave)
    codes: NDArray[np.uint8] = np.zeros(8 * planes[0].size, np.uint8)
    for plane in planes:
        codes = ((codes << 1) | np.unpackbits(plane, bitorder="little")).astype(np.uint8)
    return unblocked(codes, shape, interleave)


def _check(shape: tuple[int, ...], interleave: int) -> None:
    if len(shape) != 2 or shape[0] % TILE or shape[1] % TILE:
        raise ValueError(f"a matrix of shape {shape} is not made of whole blocks: pad it to multiples of {TILE}")
    if interleave not in INTERLEAVES:
        raise ValueError(f"interleave is {interleave}, not one of {INTERLEAVES}")
