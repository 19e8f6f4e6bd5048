"""Lists of numbers as the engine takes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stic.runtime.errors import InputError


def int32_of(values: ArrayLike, name: str) -> NDArray[np.int32]:
    """A flat int32 array. Raises InputError for anything that is not whole numbers of that size."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InputError(f"{name} must be a flat list of whole numbers, not {given.dtype} of shape {given.shape}")
    bounds = np.iinfo(np.int32)
    if given.size and (int(given.min()) < bounds.min or int(given.max()) > bounds.max):
        raise InputError(f"{name} must fit in 32 bits: {given.min()} to {given.max()} do not")
    return np.ascontiguousarray(given, np.int32)
