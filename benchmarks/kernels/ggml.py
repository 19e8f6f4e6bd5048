"""Matrix times vector by ggml, llama.cpp's tensor library, as the Python package llama-cpp-python carries it.

Only functions of ggml's C API (ggml.h, ggml-backend.h, ggml-cpu.h) are called, so that no layout of theirs is assumed
but ggml_init_params. Weights lie in the buffer types that llama.cpp itself tries: the plain one, and the "extra" ones
of the CPU, which repack a format for its vector instructions when they are filled.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {"f32": 0, "q4_0": 2, "q8_0": 8, "q2_K": 10, "tq2_0": 35}  # enum ggml_type, part of the GGUF format
_PARAMETER_BYTES = 8192  # more than a ggml_threadpool_params
_CONTEXT_BYTES = 1 << 22  # tensors and graphs, without their data
_UNRELATED = 0.95  # relative error; ternary weights have 0.8 here, unrelated vectors 1.4


class _InitParams(Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


_BASE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_init": (c_void_p, (_InitParams,)),
    "ggml_type_name": (c_char_p, (c_int,)),
    "ggml_row_size": (c_size_t, (c_int, c_int64)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph_custom": (c_void_p, (c_void_p, c_size_t, c_bool)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "ggml_log_set": (None, (c_void_p, c_void_p)),
    "ggml_threadpool_params_init": (None, (c_void_p, c_int)),
    "ggml_backend_cpu_buffer_type": (c_void_p, ()),
    "ggml_backend_buft_name": (c_char_p, (c_void_p,)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_tensor_get": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
    "ggml_backend_reg_dev_get": (c_void_p, (c_void_p, c_size_t)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_dev_supports_op": (c_bool, (c_void_p, c_void_p)),
}
_CPU: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_cpu_reg": (c_void_p, ()),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
    "ggml_backend_cpu_set_threadpool": (None, (c_void_p, c_void_p)),
    "ggml_threadpool_new": (c_void_p, (c_void_p,)),
}


def _bind(path: Path, prototypes: dict[str, tuple[Any, tuple[Any, ...]]]) -> dict[str, Any]:
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    functions = {}
    for name, (result, arguments) in prototypes.items():
        functions[name] = getattr(library, name)
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


class Ggml:
    """Cases are "format/buffer type"; one call multiplies one vector by every matrix of the set.

    (n, k) matrices of each of `formats`, as many as hold `least_bytes`; contents repeat, addresses do not. All
    matrices are nodes of one graph, and the threads live as long as the object, so that a call starts none.
    """

    def __init__(self, threads: int, formats: list[str], n: int, k: int, least_bytes: int) -> None:
        spec = find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise ImportError("llama-cpp-python is not installed")
        folder = Path(spec.origin).parent / "lib"
        self.c = _bind(folder / "libggml-base.so", _BASE) | _bind(folder / "libggml-cpu.so", _CPU)
        self._silence = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, data: None)
        self.c["ggml_log_set"](self._silence, None)
        self._backend = self.c["ggml_backend_cpu_init"]()
        self.c["ggml_backend_cpu_set_n_threads"](self._backend, threads)
        parameters = ctypes.create_string_buffer(_PARAMETER_BYTES)
        self.c["ggml_threadpool_params_init"](parameters, threads)
        self.c["ggml_backend_cpu_set_threadpool"](self._backend, self.c["ggml_threadpool_new"](parameters))
        self.n, self.k, self.least_bytes = n, k, least_bytes
        rng = np.random.default_rng(0)
        self.weights = rng.normal(size=(n, k)).astype(np.float32)
        self.x = rng.normal(size=k).astype(np.float32)
        self._calls: dict[str, Callable[[], object]] = {}
        self._facts: dict[str, Any] = {}
        for label in formats:
            for buffer_type in self._buffer_types():
                self._prepare(label, buffer_type)

    def facts(self) -> dict[str, Any]:
        """For each case: matrices, bytes of weights read by a call, relative error against float32 weights."""
        return self._facts

    def call(self, case: str) -> Callable[[], object]:
        """What runs a case."""
        return self._calls[case]

    def _buffer_types(self) -> list[Any]:
        """The plain buffer type of the CPU, then its extra ones."""
        found = [self.c["ggml_backend_cpu_buffer_type"]()]
        registry = self.c["ggml_backend_cpu_reg"]()
        self._device = self.c["ggml_backend_reg_dev_get"](registry, 0)
        address = self.c["ggml_backend_reg_get_proc_address"](registry, b"ggml_backend_dev_get_extra_bufts")
        extra = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self._device) if address else None
        while extra and extra[len(found) - 1]:
            found.append(extra[len(found) - 1])
        return found

    def _context(self) -> Any:
        return self.c["ggml_init"](_InitParams(_CONTEXT_BYTES, None, True))

    def _prepare(self, label: str, buffer_type: Any) -> None:
        """Make the case of one format in one buffer type; leaves it out where ggml has no kernel for it."""
        kind, c = _TYPES[label], self.c
        if c["ggml_type_name"](kind) != label.encode():
            raise RuntimeError(f"this ggml numbers its formats differently: {kind} is not {label}")
        plain = c["ggml_backend_cpu_buffer_type"]()
        each = c["ggml_row_size"](kind, self.k) * self.n
        count = -(-self.least_bytes // each)
        weights, ends = self._context(), self._context()
        matrices = [c["ggml_new_tensor_2d"](weights, kind, self.k, self.n) for _ in range(count)]
        x = c["ggml_new_tensor_2d"](ends, _TYPES["f32"], self.k, 1)
        products = [c["ggml_mul_mat"](ends, matrix, x) for matrix in matrices]
        if not c["ggml_backend_alloc_ctx_tensors_from_buft"](weights, buffer_type):
            return
        if buffer_type != plain and not c["ggml_backend_dev_supports_op"](self._device, products[0]):
            return
        graph = c["ggml_new_graph_custom"](ends, count + 8, False)
        for product in products:
            c["ggml_build_forward_expand"](graph, product)
        c["ggml_backend_alloc_ctx_tensors_from_buft"](ends, plain)
        quantized = ctypes.create_string_buffer(each)
        c["ggml_quantize_chunk"](kind, self.weights.ctypes.data, quantized, 0, self.n, self.k, None)
        for matrix in matrices:
            c["ggml_backend_tensor_set"](matrix, quantized, 0, each)
        c["ggml_backend_tensor_set"](x, self.x.ctypes.data, 0, self.x.nbytes)
        case = f"{label}/{c['ggml_backend_buft_name'](buffer_type).decode()}"
        self._calls[case] = lambda: self._compute(graph)
        self._compute(graph)
        found, exact = np.empty(self.n, np.float32), self.weights @ self.x
        c["ggml_backend_tensor_get"](products[-1], found.ctypes.data, 0, found.nbytes)
        error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
        if error > _UNRELATED:
            raise RuntimeError(f"ggml's product in {case} has a relative error of {error:.2f}: it did not multiply")
        self._facts[case] = {"matrices": count, "bytes": count * each, "relative_error": error}

    def _compute(self, graph: Any) -> None:
        if self.c["ggml_backend_graph_compute"](self._backend, graph):
            raise RuntimeError("ggml could not compute its graph")
