"""Memory between stages: what a stage held for itself goes back to the system before the next one starts."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def release_memory() -> None:
    """Collect cycles, and let the C library return what is free; its heap would keep the peak of every stage.

    Where the C library has no such call, the second part is left out.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # glibc alone has it; Windows takes no name of None
        ctypes.CDLL(None).malloc_trim(0)
