"""Find the C engine, or build it, and declare its functions to ctypes.

`$STIC_LIBRARY` names a libstic.so to use. Without it the engine is compiled from the sources beside this file with
the machine's C compiler, or the command line in `$STIC_HOST_CC`, once: the result lies in the user's cache, keyed by
everything it was made from. Engines for other devices are built by the same `compile_engine`, with the compilers that
`stic.targets.toolchain` finds.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from stic.runtime.errors import EngineError, ToolchainError
from stic.runtime.files import whole_folder

# Every libstic.so and stic_run is compiled with these.
FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Werror")
_ROOT = Path(__file__).resolve().parent
_TIMEOUT_S = 120


class Options(ctypes.Structure):
    """stic_options of stic.h."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("lanes", ctypes.c_uint32),
        ("buffered", ctypes.c_uint32),
        ("io_bytes_per_s", ctypes.c_uint64),
        ("gpu", ctypes.c_uint32),
        ("gpu_arithmetic", ctypes.c_uint32),
        ("deadline_us", ctypes.c_uint32),
        ("memory_bytes", ctypes.c_uint64),
        ("io_requests_per_s", ctypes.c_uint64),
    )


_INFO_NUMBERS = (
    "struct_bytes hidden layers slices vocabulary types max_length output_features output_per_token threads lanes"
    " deadline_us predicted_us plans"
).split()
_STATS_NUMBERS = (
    "arena_bytes bookkeeping_bytes stack_bytes gpu_bytes peak_bytes claimed_bytes resident_bytes runs run_us stall_us"
    " io_bytes io_requests"
).split()


class Info(ctypes.Structure):
    """stic_info of stic.h."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in _INFO_NUMBERS),
        ("claimed_bytes", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("decoder", "chunk", "cache_bits", "reserved")),
        ("cache_bytes", ctypes.c_uint64),
    )


class Stats(ctypes.Structure):
    """stic_stats of stic.h."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("struct_bytes", "direct", "emulated", "gpu_layers")),
        *((name, ctypes.c_uint64) for name in _STATS_NUMBERS),
        *((name, ctypes.c_uint32) for name in ("gpu_builds", "gpu_arithmetic", "plan", "reserved")),
    )


class Sampling(ctypes.Structure):
    """stic_sampling of stic.h."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("top_k", ctypes.c_uint32),
        *((name, ctypes.c_float) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        ("seed", ctypes.c_uint64),
    )


class Plan(ctypes.Structure):
    """stic_plan of stic.h."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("struct_bytes", "deadline_us", "predicted_us", "reserved")),
        *((name, ctypes.c_uint64) for name in ("claimed_bytes", "preload_bytes")),
        ("quality", ctypes.c_double),
    )


class Event(ctypes.Structure):
    """stic_event of stic.h."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("layer", ctypes.c_int32),
        ("track", ctypes.c_int32),
        *((name, ctypes.c_uint16) for name in ("level", "first", "count", "reserved")),
        ("bytes", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("submit_ns", "begin_ns", "end_ns")),
    )


_SESSION = ctypes.c_void_p
_IDS = ctypes.POINTER(ctypes.c_int32)
_PROTOTYPES: dict[str, tuple[object, tuple[object, ...]]] = {
    "stic_session_open": (
        ctypes.c_int,
        (ctypes.c_char_p, ctypes.POINTER(Options), ctypes.POINTER(_SESSION)),
    ),
    "stic_session_run": (
        ctypes.c_int,
        (_SESSION, _IDS, _IDS, ctypes.c_int32, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t),
    ),
    "stic_session_extend": (
        ctypes.c_int,
        (_SESSION, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t),
    ),
    "stic_session_extend_ids": (ctypes.c_int, (_SESSION, _IDS, ctypes.c_size_t)),
    "stic_session_logits": (ctypes.c_int, (_SESSION, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t)),
    "stic_session_sample": (
        ctypes.c_int,
        (_SESSION, ctypes.POINTER(Sampling), _IDS, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int32)),
    ),
    "stic_session_position": (ctypes.c_uint32, (_SESSION,)),
    "stic_session_rewind": (ctypes.c_int, (_SESSION, ctypes.c_uint32)),
    "stic_session_save": (ctypes.c_int, (_SESSION, ctypes.c_char_p)),
    "stic_session_load": (ctypes.c_int, (_SESSION, ctypes.c_char_p)),
    "stic_session_cancel": (None, (_SESSION,)),
    "stic_session_output_size": (ctypes.c_size_t, (_SESSION, ctypes.c_int32)),
    "stic_session_evict": (ctypes.c_int, (_SESSION, ctypes.c_uint64)),
    "stic_session_plan": (ctypes.c_int, (_SESSION, ctypes.c_uint32, ctypes.POINTER(Plan))),
    "stic_session_set_budget": (
        ctypes.c_int,
        (_SESSION, ctypes.c_uint32, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint32)),
    ),
    "stic_session_device": (ctypes.c_char_p, (_SESSION,)),
    "stic_session_info": (ctypes.c_int, (_SESSION, ctypes.POINTER(Info))),
    "stic_session_stats": (ctypes.c_int, (_SESSION, ctypes.POINTER(Stats))),
    "stic_session_trace": (
        ctypes.c_int,
        (_SESSION, ctypes.POINTER(Event), ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t)),
    ),
    "stic_session_close": (ctypes.c_int, (_SESSION,)),
    "stic_error_message": (ctypes.c_char_p, (_SESSION,)),
    "stic_version": (ctypes.c_uint32, ()),
}


def cache_dir() -> Path:
    """Folder of built files: $STIC_CACHE, else stic/ under $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("STIC_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stic"


def header_version() -> tuple[int, int]:
    """(major, minor) that stic.h declares."""
    text = (_ROOT / "include" / "stic.h").read_text(encoding="utf-8").split()
    major, minor = (int(text[text.index(f"STIC_VERSION_{part}") + 1]) for part in ("MAJOR", "MINOR"))
    return major, minor


def find_library() -> Path:
    """Path of libstic.so, built if need be. Raises ToolchainError if it can be neither found nor built."""
    if chosen := os.environ.get("STIC_LIBRARY"):
        if not Path(chosen).is_file():
            raise ToolchainError(f"$STIC_LIBRARY names {chosen}, which is not a file: unset it, or correct it")
        return Path(chosen)
    command, sources = _compiler(), engine_sources(_ROOT)
    library = cache_dir() / "native" / sources.key(command, platform.machine()) / "libstic.so"
    if not library.is_file():
        compile_engine(partial(_run, command), sources, library.parent, program=False)
    return library


@dataclass(frozen=True)
class EngineSources:
    """The C files of an engine, in order."""

    root: Path  # holds include/ and src/
    library: tuple[Path, ...]
    program: tuple[Path, ...]  # of stic_run, beside the library's
    headers: tuple[Path, ...]

    def key(self, *facts: object) -> str:
        """Digest of the sources, the flags and whatever else decides what is built."""
        state = hashlib.sha256(repr((facts, FLAGS)).encode())
        for path in (*self.library, *self.program, *self.headers):
            content = path.read_bytes()
            state.update(f"{path.name}:{len(content)}:".encode() + content)
        return state.hexdigest()[:32]


def engine_sources(root: Path) -> EngineSources:
    """The sources below `root`. Raises ToolchainError if there are none."""
    sources = sorted((root / "src").glob("*.c"))
    if not sources:
        raise ToolchainError(f"the engine's sources are missing at {root / 'src'}: install stic again")
    library = tuple(path for path in sources if not path.name.startswith("stic_run"))
    headers = (*sorted((root / "src").glob("*.h")), *sorted((root / "include").glob("*.h")))
    return EngineSources(root, library, tuple(path for path in sources if path not in library), headers)


def compile_engine(
    run: Callable[[Sequence[str], str], None], sources: EngineSources, folder: Path, program: bool = True
) -> None:
    """Compile libstic.so, and with `program` stic_run beside it, into `folder`: it is there whole or not at all.

    `run` starts a C compiler with arguments and a word for what they make, and raises ToolchainError if it fails.
    """
    includes = [f"-I{sources.root / name}" for name in ("include", "src")]
    try:
        with whole_folder(folder, once=True) as made:
            wanted = [("libstic.so", sources.library, ["-shared"])]
            if program:
                wanted.append(("stic_run", (*sources.library, *sources.program), []))
            for name, files, kind in wanted:
                run([*FLAGS, *includes, *kind, "-o", str(made / name), *map(str, files), "-ldl"], name)
    except OSError as error:
        raise ToolchainError(
            f"the engine cannot be written to {folder}: {error.strerror or error}; free some space, or name another"
            " folder in $STIC_CACHE"
        ) from error


def _compiler() -> tuple[str, ...]:
    if command := os.environ.get("STIC_HOST_CC"):
        return tuple(shlex.split(command))
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return (path,)
    raise ToolchainError(
        "the engine has to be built once and no C compiler was found (cc, gcc, clang): install one (Debian: apt-get"
        " install gcc), or set STIC_LIBRARY to a libstic.so"
    )


def _run(command: tuple[str, ...], arguments: Sequence[str], what: str) -> None:
    line = [*command, *arguments]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"the engine could not be built with {shlex.join(command)}: {error}") from error
    if done.returncode:
        raise ToolchainError(f"the engine could not be built with {shlex.join(command)}: {done.stderr.strip()}")


@cache
def load() -> ctypes.CDLL:
    """The engine, loaded. Raises ToolchainError, or EngineError if the library is not this stic's."""
    path = find_library()
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} is not the stic engine: {error}") from error
    version = divmod(int(library.stic_version()), 65536)
    if version != header_version():
        raise EngineError(
            f"{path} is engine {version[0]}.{version[1]}; this stic needs {'.'.join(map(str, header_version()))}:"
            " unset STIC_LIBRARY, or build it again"
        )
    return library
