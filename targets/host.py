"""The engine's functions for a device, called on this machine: what `stic.targets.connection` does on another one."""

from __future__ import annotations

import importlib
import sys
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
        tvm_ffi = _ffi()
        own = [tvm_ffi.from_dlpack(each) if isinstance(each, np.ndarray) else each for each in arguments]
        try:
            return _module()[name](*own)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise DeviceRefused(NAME, str(error)) from error


@cache
def _module() -> Any:
    return _ffi().load_module(str(find_library()))


@cache
def _ffi() -> Any:
    """TVM's FFI, without torch unless that is there already: it would be imported too, 180 MB for nothing.

    torch can still be imported later.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it now raises ImportError
    try:
        return importlib.import_module("tvm_ffi")
    finally:
        if absent:
            del sys.modules["torch"]
