"""The engine's functions for a device, called on this machine: what `stic.targets.connection` does on another one."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from stic.runtime.native import find_library
from stic.targets.connection import DeviceRefused

NAME = "this machine"


class HostFunctions:
    """The engine that is built for this machine, through TVM's FFI."""

    def call(self, name: str, *arguments: Any, seconds: float | None = None) -> Any:
        """As `stic.targets.connection.Functions`; nothing here is ever lost, so `seconds` has no meaning."""
        import tvm_ffi

        own = [tvm_ffi.from_dlpack(each) if isinstance(each, np.ndarray) else each for each in arguments]
        try:
            return _module()[name](*own)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise DeviceRefused(NAME, str(error)) from error


@cache
def _module() -> Any:
    import tvm_ffi

    return tvm_ffi.load_module(str(find_library()))
