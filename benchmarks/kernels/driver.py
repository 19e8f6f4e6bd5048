"""Build driver.c with the target's toolchain, and call it."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
)
from ctypes import c_void_p as address
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stic.runtime
from stic.runtime.errors import EngineError
from stic.runtime.native import FLAGS
from stic.targets.target import Target
from stic.targets.toolchain import find_c_compiler

_HERE = Path(__file__).parent
_ENGINE = ("pool.c", "platform.c", "error.c")
_MESSAGE_BYTES = 512
# Best first: instruction set extension, loop of int8 dot products, loop of float32 multiply-adds, sum.
_LOOPS = (
    ("avx512_vnni", "int8_avx512_vnni", "f32_avx512", "sum_avx512"),
    ("avx_vnni", "int8_avx_vnni", "f32_avx2", "sum_avx2"),
    ("avx2", "int8_avx2", "f32_avx2", "sum_avx2"),
    ("i8mm", "int8_i8mm", "f32_asimd", "sum_asimd"),
    ("asimddp", "int8_asimddp", "f32_asimd", "sum_asimd"),
    ("asimd", "int8_asimd", "f32_asimd", "sum_asimd"),
)


class Slice(Structure):
    """bench_slice of driver.h."""

    _fields_ = (
        ("planes", POINTER(c_uint8) * 8),
        ("table", POINTER(c_int8)),
        ("entries", POINTER(c_uint16)),
        ("starts", POINTER(c_uint32)),
    )


class Rows(Structure):
    """bench_rows of driver.h."""

    _fields_ = (("scale", POINTER(c_float)), ("bias", POINTER(c_float)))


class Product(Structure):
    """bench_product of driver.h."""

    _fields_ = (
        *((name, c_uint32) for name in ("bits", "count", "slices", "n", "ks", "tokens", "interleave", "x_pitch")),
        ("parts", POINTER(Slice)),
        ("rows", POINTER(Rows)),
        ("x", POINTER(c_int8)),
        ("xsum", POINTER(c_int32)),
        ("xscale", POINTER(c_float)),
        ("y", POINTER(c_float)),
        ("extra", POINTER(c_float)),
        ("panels", POINTER(c_uint8)),
    )


_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bench_open": (address, (c_char_p, c_uint32, c_char_p)),
    "bench_close": (None, (address,)),
    "bench_map": (address, (c_uint64,)),
    "bench_unmap": (None, (address, c_uint64)),
    "bench_loop": (c_int64, (address, c_char_p, c_uint64, POINTER(c_uint64))),
    "bench_sum": (c_int64, (address, c_char_p, address, c_uint64, POINTER(c_uint64))),
    "bench_gemm": (c_int64, (address, POINTER(Product))),
    "bench_gemv": (c_int64, (address, POINTER(Product))),
}


def build_driver(target: Target, folder: Path) -> ctypes.CDLL:
    """Compile the driver with the engine's pool for this machine; raises ToolchainError."""
    engine = Path(next(iter(stic.runtime.__path__))) / "src"
    library = folder / "bench.so"
    sources = [_HERE / "driver.c", _HERE / f"loops_{target.arch}.S", *(engine / name for name in _ENGINE)]
    arguments = [*FLAGS, "-fvisibility=default", f"-I{engine}", "-shared"]
    find_c_compiler(target).run([*arguments, "-o", str(library), *map(str, sources), "-ldl"], "bench.so")
    driver = ctypes.CDLL(str(library))
    for name, (result, types) in _PROTOTYPES.items():
        function = getattr(driver, name)
        function.restype, function.argtypes = result, types
    return driver


def loops_for(target: Target) -> tuple[str, str, str]:
    """Names of the int8, float32 and sum loops for the best extension that the target has."""
    return next(loops for feature, *loops in _LOOPS if feature in target.features)  # type: ignore[return-value]


class Memory:
    """Bytes of the kind that the engine's arena is made of, handed out front to back."""

    def __init__(self, driver: ctypes.CDLL, size_bytes: int) -> None:
        self.size_bytes = -(-size_bytes // 4096) * 4096
        at = driver.bench_map(self.size_bytes)
        if not at:
            raise EngineError(f"no memory for {self.size_bytes:,} bytes of matrices: measure on a machine with more")
        self.address, self.used_bytes = at, 0
        self._bytes = np.ctypeslib.as_array((c_uint8 * self.size_bytes).from_address(at))
        weakref.finalize(self, driver.bench_unmap, at, self.size_bytes)

    @property
    def words(self) -> NDArray[np.uint64]:
        """What was put in, up to the next multiple of 512 bytes."""
        return self._bytes[: -(-self.used_bytes // 512) * 512].view(np.uint64)

    @cached_property
    def total(self) -> int:
        """Sum of the words modulo 2^64, once nothing more is put in."""
        return int(self.words.sum(dtype=np.uint64))

    def put(self, values: NDArray[Any]) -> NDArray[Any]:
        """Copy an array in, at the next multiple of 64; returns the copy."""
        start, size = self.used_bytes, values.nbytes
        self.used_bytes += -(-size // 64) * 64
        if self.used_bytes > self.size_bytes:
            raise ValueError(f"{self.used_bytes} bytes do not fit in {self.size_bytes}")
        copy = self._bytes[start : start + size].view(values.dtype).reshape(values.shape)
        copy[...] = values
        return copy


class Driver:
    """A thread pool with the kernels of one library; calls return microseconds."""

    def __init__(self, library: ctypes.CDLL, threads: int, kernels: Path | None = None) -> None:
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self.library, self.threads = library, threads
        self._bench = library.bench_open(None if kernels is None else str(kernels).encode(), threads, message)
        if not self._bench:
            raise EngineError(message.value.decode(errors="replace"))
        weakref.finalize(self, library.bench_close, self._bench)

    def loop(self, name: str, rounds: int) -> tuple[float, int]:
        """Run a loop on every thread; returns its multiply-adds as well."""
        macs = c_uint64()
        return self._us(self.library.bench_loop(self._bench, name.encode(), rounds, macs), name), macs.value

    def sum(self, name: str, memory: Memory) -> float:
        """Add up all that was put into the memory. Raises ArithmeticError if the sum is wrong."""
        total = c_uint64()
        size = memory.words.nbytes
        time = self._us(self.library.bench_sum(self._bench, name.encode(), memory.address, size, total), name)
        if total.value != memory.total:
            raise ArithmeticError(f"{name} adds up {size:,} bytes to {total.value}, not {memory.total}")
        return time

    def gemm(self, product: Product) -> float:
        """Multiply by unpack and dot."""
        return self.library.bench_gemm(self._bench, product) / 1000

    def gemv(self, product: Product) -> float:
        """Multiply by the kernels for few rows."""
        return self.library.bench_gemv(self._bench, product) / 1000

    @staticmethod
    def _us(ns: int, name: str) -> float:
        if ns < 0:
            raise EngineError(f"the driver was built without {name}")
        return ns / 1000
