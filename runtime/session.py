"""Run a package with the C engine.

>>> with Session("model.stic") as session:
...     output = session.run([101, 7592, 102])
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypedDict, Unpack, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stic.runtime import native
from stic.runtime.arguments import int32_of
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import EngineError, InputError, PackageError, SticError
from stic.runtime.gpu_format import GpuArithmetic
from stic.runtime.text_session import TextSession
from stic.runtime.trace import Event, Trace

# Kinds of stic_status in stic.h, by tens.
_INPUT, _PACKAGE = range(10, 20), range(30, 40)
_BUSY = 20

GpuUse = Literal["auto", "off", "required"]
# stic_gpu_use and stic_gpu_arithmetic of stic.h, by number.
GPU_USES: tuple[GpuUse, ...] = get_args(GpuUse)
GPU_ARITHMETICS: tuple[GpuArithmetic | None, ...] = (None, *get_args(GpuArithmetic))


@dataclass(frozen=True)
class Info:
    """What the package is; fields as stic_info of stic.h."""

    hidden: int
    layers: int
    slices: int
    vocabulary: int
    types: int
    max_length: int
    output_features: int
    output_per_token: bool
    threads: int
    lanes: int
    deadline_us: int
    predicted_us: int
    plans: int
    claimed_bytes: int
    decoder: bool  # extend and sample; else run
    chunk: int
    cache_bits: int
    cache_bytes: int


@dataclass(frozen=True)
class PlanInfo:
    """A plan of the package; fields as stic_plan of stic.h."""

    number: int
    deadline_us: int  # that it was made for; 0: none
    predicted_us: int
    claimed_bytes: int
    preload_bytes: int
    quality: float  # more is better; comparable within a package only


@dataclass(frozen=True)
class Stats:
    """What the session holds and what its last run cost; fields as stic_stats of stic.h."""

    direct: bool
    emulated: bool
    gpu_layers: int
    arena_bytes: int
    bookkeeping_bytes: int
    stack_bytes: int
    gpu_bytes: int
    peak_bytes: int
    claimed_bytes: int
    resident_bytes: int
    runs: int
    run_us: int
    stall_us: int
    io_bytes: int
    io_requests: int
    gpu_builds: int
    gpu_arithmetic: GpuArithmetic | None  # None: no layer runs on a GPU
    plan: int  # number of the active one


def error_of(status: int, message: str) -> SticError:
    """The exception of a stic_status and its sentence."""
    if status in _INPUT:
        return InputError(message)
    return PackageError(message) if status in _PACKAGE else EngineError(message, status)


def info_of(raw: native.Info) -> Info:
    """What a stic_info says."""
    facts = {name: getattr(raw, name) for name in Info.__dataclass_fields__}
    return Info(**facts | {"output_per_token": bool(raw.output_per_token), "decoder": bool(raw.decoder)})


def stats_of(raw: native.Stats) -> Stats:
    """What a stic_stats says."""
    facts = {name: getattr(raw, name) for name in Stats.__dataclass_fields__}
    arithmetic = GPU_ARITHMETICS[raw.gpu_arithmetic]
    return Stats(**facts | {"direct": bool(raw.direct), "emulated": bool(raw.emulated), "gpu_arithmetic": arithmetic})


def trace_of(events: Iterable[native.Event]) -> Trace:
    """The trace that stic_events make, by time of beginning."""
    names = Event.__dataclass_fields__
    found = (Event(**{name: getattr(event, name) for name in names}) for event in events)
    return Trace(tuple(sorted(found, key=lambda event: event.begin_ns)))


def check_options(**options: int | None) -> None:
    """Raise InputError for an option of a session that is below 1; None stands for the default."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


def io_limits(storage: EmulatedStorage | None) -> tuple[int, int]:
    """Bytes and requests a second as the engine takes them, 0 for no limit."""
    return (0, 0) if storage is None else (storage.bytes_per_s, storage.requests_per_s or 0)


def _budget(latency_us: int | None, memory_bytes: int | None) -> tuple[int, int]:
    """Deadline and memory as the engine takes them, 0 for no limit; what is beyond its numbers limits nothing."""
    check_options(latency_us=latency_us, memory_bytes=memory_bytes)
    return min(latency_us or 0, 2**32 - 1), min(memory_bytes or 0, 2**64 - 1)


def arrays_of(
    info: Info, ids: ArrayLike, types: ArrayLike | None
) -> tuple[NDArray[np.int32], NDArray[np.int32] | None, NDArray[np.float32]]:
    """Token ids (tokens,), types or None, and room for the output, as the engine takes them. Raises InputError."""
    tokens = int32_of(ids, "ids")
    kinds = None if types is None else int32_of(types, "types")
    if kinds is not None and len(kinds) != len(tokens):
        raise InputError(f"{len(tokens)} ids but {len(kinds)} types: each token has one type")
    shape = (len(tokens), info.output_features) if info.output_per_token else (info.output_features,)
    return tokens, kinds, np.empty(shape, np.float32)


class SessionOptions(TypedDict, total=False):
    """How a package is run; whatever is left out is as planned."""

    threads: int | None  # of compute, at most as many as the package was compiled for
    lanes: int | None  # threads of IO, at most likewise
    storage: EmulatedStorage | None  # what to emulate where it is slower than the one there is
    direct: bool  # read past the page cache where that works: the default
    gpu: GpuUse  # whether layers planned for a GPU run there if they can (auto), never (off), or must
    gpu_arithmetic: GpuArithmetic | None  # how it multiplies; None: as it has a product of int8
    latency_us: int | None  # of several plans, run the best that keeps this deadline
    memory_bytes: int | None  # and this memory; without both, the first


def check_names(options: SessionOptions) -> None:
    """Raise TypeError for an option that there is not, and InputError for a count below 1."""
    if unknown := options.keys() - SessionOptions.__annotations__.keys():
        raise TypeError(f"a session has no option {', '.join(sorted(unknown))}")
    check_options(threads=options.get("threads"), lanes=options.get("lanes"))


class Session(TextSession):
    """A package being run, as SessionOptions say. Use it as a context manager, or call `close`.

    Raises PackageError, EngineError, ToolchainError; InputError for options that the package cannot meet.
    """

    def __init__(self, path: str | Path, **options: Unpack[SessionOptions]) -> None:
        self._session: ctypes.c_void_p | None = None
        check_names(options)
        budget = _budget(options.get("latency_us"), options.get("memory_bytes"))
        self._engine = native.load()
        size = ctypes.sizeof(native.Options)
        use, arithmetic = options.get("gpu", "auto"), options.get("gpu_arithmetic")
        chosen = (GPU_USES.index(use), GPU_ARITHMETICS.index(arithmetic))
        bytes_per_s, requests_per_s = io_limits(options.get("storage"))
        plain = (options.get("threads") or 0, options.get("lanes") or 0, not options.get("direct", True))
        given = native.Options(size, *plain, bytes_per_s, *chosen, *budget, requests_per_s)
        session = ctypes.c_void_p()
        status = self._engine.stic_session_open(os.fsencode(path), ctypes.byref(given), ctypes.byref(session))
        if status:
            raise error_of(status, self._engine.stic_error_message(None).decode(errors="replace"))
        self._session = session
        self.info = self._info()
        self.plans = tuple(self._plan(number) for number in range(self.info.plans))

    def _info(self) -> Info:
        info = native.Info(struct_bytes=ctypes.sizeof(native.Info))
        self._check(self._engine.stic_session_info(self._handle(), ctypes.byref(info)))
        return info_of(info)

    def _plan(self, number: int) -> PlanInfo:
        plan = native.Plan(struct_bytes=ctypes.sizeof(native.Plan))
        self._check(self._engine.stic_session_plan(self._handle(), number, ctypes.byref(plan)))
        names = [name for name in PlanInfo.__dataclass_fields__ if name != "number"]
        return PlanInfo(number, **{name: getattr(plan, name) for name in names})

    def _handle(self) -> ctypes.c_void_p:
        if self._session is None:
            raise EngineError("the session is closed: open another one to run the package again")
        return self._session

    def _check(self, status: int) -> None:
        if status == _BUSY:
            raise EngineError("the session is running in another thread: open a session for each thread", status)
        if status:
            raise error_of(status, self._engine.stic_error_message(self._handle()).decode(errors="replace"))

    def run(self, ids: ArrayLike, types: ArrayLike | None = None) -> NDArray[np.float32]:
        """Run one input.

        ids: (tokens,) token ids; types: (tokens,) token types, default zeros. Returns (tokens, features) if the
        package pools nothing, else (features,). Raises InputError for an input that the package cannot take,
        PackageError where a part of it turns out to be corrupt, EngineError; the session stays usable.
        """
        session = self._handle()
        tokens, kinds, output = arrays_of(self.info, ids, types)
        pointer = ctypes.POINTER(ctypes.c_int32)
        status = self._engine.stic_session_run(
            session,
            tokens.ctypes.data_as(pointer),
            None if kinds is None else kinds.ctypes.data_as(pointer),
            len(tokens),
            output.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            output.size,
        )
        self._check(status)
        return output

    @property
    def plan(self) -> PlanInfo:
        """The active plan, one of `plans`."""
        return self.plans[self.stats().plan]

    def set_budget(self, latency_us: int | None = None, memory_bytes: int | None = None) -> PlanInfo:
        """Change to the best plan that keeps a deadline and fits into memory; None stands for no limit.

        What both plans keep in memory stays there, and the next run reads the rest. Raises InputError where the package
        has no such plan, EngineError where there is no memory for it; the active plan then stays.
        """
        number = ctypes.c_uint32()
        budget = _budget(latency_us, memory_bytes)
        self._check(self._engine.stic_session_set_budget(self._handle(), *budget, ctypes.byref(number)))
        self.info = self._info()
        return self.plans[number.value]

    def stats(self) -> Stats:
        """What the session holds, and what the last run cost."""
        stats = native.Stats(struct_bytes=ctypes.sizeof(native.Stats))
        self._check(self._engine.stic_session_stats(self._handle(), ctypes.byref(stats)))
        return stats_of(stats)

    @property
    def device(self) -> str:
        """The GPU that layers run on and its driver; or why those planned for one do not; or "" where none is."""
        return str(self._engine.stic_session_device(self._handle()).decode(errors="replace"))

    def trace(self) -> Trace:
        """The events of the last run."""
        count = ctypes.c_size_t()
        session = self._handle()
        self._check(self._engine.stic_session_trace(session, None, 0, ctypes.byref(count)))
        events = (native.Event * count.value)()
        self._check(self._engine.stic_session_trace(session, events, count.value, ctypes.byref(count)))
        return trace_of(events)

    def write_trace(self, path: str | Path) -> None:
        """Write the trace of the last run as JSON that ui.perfetto.dev opens."""
        self.trace().save(path)

    def evict(self, size_bytes: int | None = None) -> None:
        """Give back at least so much of the preload buffer (default: all), top layers first; the next run reads it."""
        most = 2**64 - 1
        self._check(self._engine.stic_session_evict(self._handle(), most if size_bytes is None else size_bytes))

    def close(self) -> None:
        """End the session and free its memory; a second call does nothing."""
        if self._session is not None:
            self._check(self._engine.stic_session_close(self._session))
            self._session = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_session", None) is not None:
            self._engine.stic_session_close(self._session)
