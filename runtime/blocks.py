"""Where the code of each weight lies: blocks of 16 rows, in which q neighbouring columns of a row lie together.

    block of 16 rows, K columns:   (K / q, 16 rows, q columns)

         row 0          row 1                row 15         row 0
      [ k0 .. kq-1 ] [ k0 .. kq-1 ]  ...  [ k0 .. kq-1 ] [ kq .. k2q-1 ]  ...

N is a multiple of 16 and K one of q; `stic.runtime.format` says what is stored in this order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stic.runtime.format import TILE

T = TypeVar("T", bound=np.generic)


def blocked(matrix: NDArray[T], interleave: int) -> NDArray[T]:
    """Flatten an (N, K) matrix in the order of its codes: block by block, each (K / q, TILE, q)."""
    n, k = matrix.shape
    return matrix.reshape(n // TILE, TILE, k // interleave, interleave).transpose(0, 2, 1, 3).reshape(-1)


def unblocked(flat: NDArray[T], shape: tuple[int, int], interleave: int) -> NDArray[T]:
    """Return the (N, K) matrix that `blocked` flattened."""
    n, k = shape
    return flat.reshape(n // TILE, k // interleave, TILE, interleave).transpose(0, 2, 1, 3).reshape(n, k)


def positions(rows: NDArray[Any], columns: NDArray[Any], interleave: int) -> NDArray[np.int64]:
    """Positions, in their blocks, of the codes at `rows` and `columns` of a matrix."""
    group, lane = np.divmod(columns.astype(np.int64), interleave)
    places: NDArray[np.int64] = (group * TILE + rows % TILE) * interleave + lane
    return places


def places(positions: NDArray[Any], interleave: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row in the block, column) at each position: the inverse of `positions`."""
    rest, lane = np.divmod(positions.astype(np.int64), interleave)
    group, row = np.divmod(rest, TILE)
    return row, group * interleave + lane
