"""libstic.so is a TVM-FFI module as it stands. Needs tvm_ffi (and tvm for one test)."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.device.synthetic import VOCABULARY
from stic.runtime import native
from stic.runtime.session import Session
from stic.targets.target import load
from stic.targets.toolchain import build_engine, find_c_compiler

tvm_ffi = pytest.importorskip("tvm_ffi")
ROOT = Path(__file__).resolve().parents[2]

ASSERTS = """
#include <stddef.h>
#include <tvm/ffi/c_api.h>
#include "tvm_ffi.h"
#define SAME(a, b) _Static_assert((a) == (b), #a " is not " #b)
#define FIELD(mine, field, theirs, other) SAME(offsetof(mine, field), offsetof(theirs, other))
SAME(sizeof(stic_ffi_any), sizeof(TVMFFIAny));
FIELD(stic_ffi_any, type_index, TVMFFIAny, type_index);
FIELD(stic_ffi_any, small_string_size, TVMFFIAny, small_str_len);
FIELD(stic_ffi_any, v_int64, TVMFFIAny, v_int64);
SAME(sizeof(stic_ffi_object), sizeof(TVMFFIObject));
SAME(sizeof(stic_ffi_bytes), sizeof(TVMFFIByteArray));
FIELD(stic_ffi_bytes, size, TVMFFIByteArray, size);
SAME(sizeof(stic_ffi_tensor), sizeof(DLTensor));
FIELD(stic_ffi_tensor, device_type, DLTensor, device);
FIELD(stic_ffi_tensor, ndim, DLTensor, ndim);
FIELD(stic_ffi_tensor, code, DLTensor, dtype);
FIELD(stic_ffi_tensor, shape, DLTensor, shape);
FIELD(stic_ffi_tensor, strides, DLTensor, strides);
FIELD(stic_ffi_tensor, byte_offset, DLTensor, byte_offset);
SAME(STIC_FFI_NONE, kTVMFFINone);
SAME(STIC_FFI_INT, kTVMFFIInt);
SAME(STIC_FFI_TENSOR_POINTER, kTVMFFIDLTensorPtr);
SAME(STIC_FFI_RAW_STRING, kTVMFFIRawStr);
SAME(STIC_FFI_SMALL_STRING, kTVMFFISmallStr);
SAME(STIC_FFI_STRING, kTVMFFIStr);
SAME(STIC_FFI_BYTES_POINTER, kTVMFFIByteArrayPtr);
SAME(STIC_FFI_SMALL_BYTES, kTVMFFISmallBytes);
SAME(STIC_FFI_BYTES, kTVMFFIBytes);
SAME(STIC_FFI_TENSOR, kTVMFFITensor);
SAME(STIC_FFI_CPU, kDLCPU);
SAME(STIC_FFI_CODE_INT, kDLInt);
SAME(STIC_FFI_CODE_UINT, kDLUInt);
SAME(STIC_FFI_CODE_FLOAT, kDLFloat);
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_engine(load("host"), tmp_path_factory.mktemp("engine")).library


def test_structures_are_those_of_tvm(tmp_path: Path) -> None:
    source = tmp_path / "asserts.c"
    source.write_text(ASSERTS)
    includes = [tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()]
    includes.append(str(ROOT / "runtime" / "src"))
    line = ["-std=c11", *(f"-I{folder}" for folder in includes), "-c", str(source), "-o", str(tmp_path / "asserts.o")]
    find_c_compiler(load("host")).run(line, "asserts.c")


@pytest.mark.parametrize("loader", ("tvm_ffi", "tvm"))
def test_runs_as_a_module(loader: str, library: Path, package: Path) -> None:
    if loader == "tvm":
        tvm = pytest.importorskip("tvm")
        module, tensor = tvm.runtime.load_module(str(library)), tvm.runtime.tensor
    else:
        module, tensor = tvm_ffi.load_module(str(library)), tvm_ffi.from_dlpack
    ids = np.arange(9, dtype=np.int32)
    with Session(package) as session:
        expected = session.run(ids)
    handle = module["stic_open"](str(package), 1, 2)
    output = np.zeros(module["stic_output_size"](handle, 9), np.float32)
    target = tensor(output)
    count = module["stic_run"](handle, tensor(ids), None, target)
    result = target.numpy() if loader == "tvm" else output
    assert count == len(expected) and np.array_equal(result, expected)
    assert module["stic_run"](handle, tensor(ids), tensor(np.zeros_like(ids)), target) == count
    assert module["stic_stat"](handle, "runs") == 2
    for name, kind in (("info", native.Info), ("stats", native.Stats)):
        room = tensor(np.zeros(ctypes.sizeof(kind), np.uint8))
        assert module[f"stic_{name}"](handle, room) == 0
        found = kind.from_buffer_copy(np.from_dlpack(room))
        assert found.struct_bytes == ctypes.sizeof(kind) and found.claimed_bytes > 0
        with pytest.raises(TypeError, match=f"stic_{name}"):
            module[f"stic_{name}"](handle, tensor(np.zeros(8, np.uint8)))
    assert module["stic_session_device"](handle, tensor(np.zeros(64, np.uint8))) == 0  # no layer is planned for a GPU
    count = module["stic_trace"](handle, None)
    events = tensor(np.zeros(count * ctypes.sizeof(native.Event), np.uint8))
    assert module["stic_trace"](handle, events) == count > 0
    assert native.Event.from_buffer_copy(np.from_dlpack(events)).end_ns > 0
    assert module["stic_evict"](handle, 1 << 30) == 0
    with pytest.raises(ValueError, match="vocabulary"):
        module["stic_run"](handle, tensor(ids + VOCABULARY), None, target)
    assert module["stic_last_status"]() == 12
    with pytest.raises(TypeError, match="int32 tensor"):
        module["stic_run"](handle, target, None, target)
    assert module["stic_close"](handle) == 0
    with pytest.raises(TypeError, match="handle"):
        module["stic_close"](handle)
    with pytest.raises(RuntimeError, match="cannot be opened"):
        module["stic_open"]("/nonexistent")
    with pytest.raises(TypeError, match="io_bytes_per_s"):
        module["stic_open"](str(package), 1, 2, -1)
    slow = module["stic_open"](str(package), 1, 2, 100_000_000, 1)
    stats = tensor(np.zeros(ctypes.sizeof(native.Stats), np.uint8))
    module["stic_stats"](slow, stats)
    opened = native.Stats.from_buffer_copy(np.from_dlpack(stats))
    assert opened.emulated == 1 and opened.direct == 0
    module["stic_close"](slow)
    with pytest.raises(TypeError, match="io_requests_per_s"):
        module["stic_open"](str(package), 1, 2, 0, 0, 0, 0, 0, 0, -1)
    slow = module["stic_open"](str(package), 1, 2, 0, 0, 0, 0, 0, 0, 25_000)
    module["stic_stats"](slow, stats)
    assert native.Stats.from_buffer_copy(np.from_dlpack(stats)).emulated == 1
    module["stic_close"](slow)


def test_a_module_changes_between_plans(library: Path, family: Path) -> None:
    module = tvm_ffi.load_module(str(library))
    with Session(family) as session:
        plans = session.plans
    handle = module["stic_open"](str(family), 0, 0, 0, 0, 0, 0, plans[2].predicted_us, plans[5].claimed_bytes)
    room = np.zeros(ctypes.sizeof(native.Stats), np.uint8)
    for number in (2, 0, 4):
        assert module["stic_set_budget"](handle, plans[number].predicted_us, 0) == number
        module["stic_stats"](handle, tvm_ffi.from_dlpack(room))
        stats = native.Stats.from_buffer_copy(room)
        assert (stats.plan, stats.claimed_bytes) == (number, plans[number].claimed_bytes)
    with pytest.raises(ValueError, match="no plan of the package"):
        module["stic_set_budget"](handle, 1, 0)
    assert module["stic_last_status"]() == 14
    with pytest.raises(TypeError, match="stic_set_budget"):
        module["stic_set_budget"](handle, 1)
    assert module["stic_close"](handle) == 0
    with pytest.raises(ValueError, match="no plan of the package"):
        module["stic_open"](str(family), 0, 0, 0, 0, 0, 0, 0, 1)


def test_the_device_is_said_as_far_as_there_is_room(library: Path, gpu_package: Path) -> None:
    module = tvm_ffi.load_module(str(library))
    with Session(gpu_package, gpu="off") as session:
        expected = session.device.encode()
    handle = module["stic_open"](str(gpu_package), 1, 2, 0, 0, 1)
    for size in (1024, 10):
        room = np.zeros(size, np.uint8)
        count = module["stic_session_device"](handle, tvm_ffi.from_dlpack(room))
        assert count == min(size, len(expected)) and room[:count].tobytes() == expected[:count]
    for wrong in (np.zeros(64, np.float32), np.zeros(64, np.int8)):
        with pytest.raises(TypeError, match="stic_session_device"):
            module["stic_session_device"](handle, tvm_ffi.from_dlpack(wrong))
    assert module["stic_close"](handle) == 0
    with pytest.raises(TypeError, match="gpu=0"):
        module["stic_open"](str(gpu_package), 1, 2, 0, 0, 3)


def test_exports_nothing_else(library: Path) -> None:
    done = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    public = ("stic_session_", "stic_error_message", "stic_version", "__tvm_ffi_stic_")
    assert names and all(name.startswith(public) for name in names), names
