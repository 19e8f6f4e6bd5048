"""A package at work on a leased device: the methods of `stic.runtime.session.Session`, over TVM's RPC."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stic.runtime import native
from stic.runtime.arguments import int32_of
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError, InputError
from stic.runtime.format import BLOCK
from stic.runtime.generator import Generated, generate
from stic.runtime.package import Package
from stic.runtime.sampling import Sampling
from stic.runtime.session import (
    GPU_ARITHMETICS,
    GPU_USES,
    SessionOptions,
    Stats,
    arrays_of,
    check_names,
    error_of,
    info_of,
    io_limits,
    stats_of,
    trace_of,
)
from stic.runtime.trace import Trace
from stic.targets.connection import DeviceRefused, Functions

SLOWER = 20  # a run may take so many times what was predicted before its device counts as frozen
COMPILING_S = 90.0  # a GPU's driver may take so long over kernels, when a package is opened or at its first run
DEVICE_BYTES = 1024  # room for the text of `device`
SLOWEST_BYTES_PER_S = 20e6  # of storage, where none is emulated: a package is read while it is opened


def emulated_reading_s(package: Package, storage: EmulatedStorage) -> float:
    """Seconds to read all that the plan keeps, as after an eviction, and the embedding rows of the longest input."""
    rows, extents = package.max_length, package.extents["bytes"]
    requests = int(np.ceil(extents / int(package.header["request_bytes"])).sum()) + rows
    return storage.reading_us(int(extents.sum()) + rows * BLOCK, requests) / 1e6


class RemoteSession:
    """A package being run on a device; methods and options as those of Session. Raises DeviceLost, too.

    functions: of an engine that was loaded on `device`, where `folder` holds `package`. step_s: how long a step may
    take beside what is known of it. It runs the first plan of the package.
    """

    def __init__(
        self,
        functions: Functions,
        device: str,
        package: Package,
        folder: str,
        step_s: float,
        **options: Unpack[SessionOptions],
    ) -> None:
        check_names(options)
        storage, gpu = options.get("storage"), options.get("gpu", "auto")
        self._functions, self._device, self._handle, self._position = functions, device, -1, 0
        opening_s = sum(int(row["bytes"]) for row in package.files.values()) / SLOWEST_BYTES_PER_S
        reading_s = 0.0 if storage is None else 2 * emulated_reading_s(package, storage)
        predicted_s = package.entry.predicted_us / 1e6
        compiling_s = COMPILING_S if package.gpu is not None and gpu != "off" else 0.0
        self._run_s = step_s + SLOWER * predicted_s + reading_s + compiling_s
        bytes_per_s, requests_per_s = io_limits(storage)
        plain = (options.get("threads") or 0, options.get("lanes") or 0, bytes_per_s, 0)
        chosen = (GPU_USES.index(gpu), GPU_ARITHMETICS.index(options.get("gpu_arithmetic")))
        first_plan = (0, 0)  # whatever its deadline and memory
        opening_s += step_s + reading_s + compiling_s
        self._handle = self._call("open", folder, *plain, *chosen, *first_plan, requests_per_s, seconds=opening_s)
        self.info = info_of(self._filled("info", native.Info))
        room = np.zeros(DEVICE_BYTES, np.uint8)
        length = self._call("session_device", self._handle, room)
        self.device = room[:length].tobytes().decode(errors="replace")  # as Session.device

    def run(self, ids: ArrayLike, types: ArrayLike | None = None) -> NDArray[np.float32]:
        """Run one input, as `Session.run`."""
        tokens, kinds, output = arrays_of(self.info, ids, types)
        if not len(tokens):
            raise InputError("the input has no tokens")
        self._call("run", self._open(), tokens, kinds, output, seconds=self._run_s)
        return output

    @property
    def position(self) -> int:
        """Tokens that the text of a decoder has."""
        return self._position

    def extend(self, ids: ArrayLike) -> None:
        """Extend the text by (tokens,) ids, as `Session.extend`; a device gets them by chunks, each with its time."""
        tokens, chunk = int32_of(ids, "ids"), max(1, int(self.info.chunk))
        for start in range(0, len(tokens), chunk):
            part = np.ascontiguousarray(tokens[start : start + chunk])
            self._position = self._call("extend", self._open(), part, seconds=self._run_s * len(part))

    def sample(self, sampling: Sampling | None = None, recent: ArrayLike = ()) -> int:
        """Choose the token that follows, as `Session.sample`."""
        given = np.frombuffer(bytes((sampling or Sampling()).raw()), np.uint8).copy()
        tokens = int32_of(recent, "recent")
        return self._call("sample", self._open(), given, tokens if len(tokens) else None)

    def rewind(self, position: int) -> None:
        """Go back to a position at or before the present one, as `Session.rewind`."""
        self._position = self._call("rewind", self._open(), position)

    def generate(
        self, ids: ArrayLike, max_tokens: int, sampling: Sampling | None = None, stops: Iterable[int] = ()
    ) -> Iterator[Generated]:
        """Extend the text by ids and go on from there, token by token, as `Session.generate`."""
        return generate(self, ids, max_tokens, sampling or Sampling(), stops)

    def stats(self) -> Stats:
        """What the session holds, and what the last run cost."""
        return stats_of(self._filled("stats", native.Stats))

    def trace(self) -> Trace:
        """The events of the last run."""
        size = ctypes.sizeof(native.Event)
        count = self._call("trace", self._open(), None)
        room = np.zeros(max(1, count) * size, np.uint8)
        self._call("trace", self._open(), room)
        return trace_of((native.Event * count).from_buffer_copy(room.tobytes()))

    def evict(self, size_bytes: int | None = None) -> None:
        """Give back at least so much of the preload buffer (default: all)."""
        self._call("evict", self._open(), 2**63 - 1 if size_bytes is None else size_bytes)

    def close(self) -> None:
        """End the session; a second call does nothing. The end of the lease ends it as well."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            self._call("close", handle)

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:  # else the lease is about to end, and the device may be gone
            self.close()

    def _open(self) -> int:
        if self._handle < 0:
            raise EngineError("the session is closed: open another one to run the package again")
        return self._handle

    def _filled(self, name: str, kind: type[Any]) -> Any:
        """A structure of stic.h that the engine fills."""
        room = np.zeros(ctypes.sizeof(kind), np.uint8)
        self._call(name, self._open(), room)
        return kind.from_buffer_copy(room)

    def _call(self, name: str, *arguments: Any, seconds: float | None = None) -> int:
        try:
            return int(self._functions.call(f"stic_{name}", *arguments, seconds=seconds))
        except DeviceRefused as error:
            status = int(self._functions.call("stic_last_status"))
            raise error_of(status, f"{self._device}: {error.message}") from error
