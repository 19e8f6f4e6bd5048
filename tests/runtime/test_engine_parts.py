"""Parts of the engine on their own, through ctypes: the checksum against zlib, scalar functions against libm."""

import ctypes
import math
import zlib
from pathlib import Path

import numpy as np
import pytest

from stic.targets.target import load
from stic.targets.toolchain import find_c_compiler

SOURCES = Path(__file__).resolve().parents[2] / "runtime" / "src"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("parts") / "parts.so"
    sources = [str(SOURCES / name) for name in ("crc.c", "scalar.c")]
    find_c_compiler(load("host")).run(["-std=c11", "-O2", "-shared", "-fPIC", "-o", str(library), *sources], "parts")
    loaded = ctypes.CDLL(str(library))
    loaded.stic_crc32.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    loaded.stic_crc32.restype = ctypes.c_uint32
    return loaded


def test_checksum_is_zlibs(parts: ctypes.CDLL) -> None:
    data = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    for start in (0, 1, 7, 16):
        for size in (*range(0, 300), 1000, 4096, 4999 - start):
            piece = data[start : start + size]
            assert parts.stic_crc32(0, data.ctypes.data + start, size) == zlib.crc32(piece.tobytes())
            begun = zlib.crc32(b"before")
            assert parts.stic_crc32(begun, data.ctypes.data + start, size) == zlib.crc32(piece.tobytes(), begun)


@pytest.mark.parametrize(
    ("name", "oracle", "values"),
    (
        ("exponential", math.exp, np.linspace(-600, 600, 4001)),
        ("square_root", math.sqrt, np.geomspace(1e-30, 1e30, 2001)),
        ("hyperbolic_tangent", math.tanh, np.concatenate([np.linspace(-25, 25, 4001), np.geomspace(1e-9, 0.1, 200)])),
        ("error_function", math.erf, np.linspace(-7, 7, 4001)),
    ),
)
def test_scalar_functions(parts: ctypes.CDLL, name: str, oracle: object, values: np.ndarray) -> None:
    function = getattr(parts, f"stic_{name}")
    function.argtypes, function.restype = (ctypes.c_double,), ctypes.c_double
    assert callable(oracle)
    for x in values:
        assert function(x) == pytest.approx(oracle(x), rel=1e-8, abs=1e-300)
