"""Write a kernel for a GPU and lower it to OpenCL C.

The words of `stic.schedules.tir` hold here too; `launch` opens a work-group and its work-items, `shared` takes local
memory, `barrier` waits for the group. TVM's code generator writes each function as it is, with its arguments in their
order: the engine owns buffers, sizes and launches, as it does on the CPU.

Activations are stored in half or single precision. Reading and writing half through `vload_half` and `vstore_half`
needs no extension (OpenCL C 1.1, 6.11.7), so the same text runs where `cl_khr_fp16` is missing; arithmetic is in single
precision everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script import tirx as T
from tvm.tirx.script import builder as B

from stic.schedules.tir import Buffer, Expr, PrimFunc, load, store

TARGET = {"kind": "opencl", "keys": ["opencl", "gpu"]}
_AXES = "xyz"


@contextmanager
def launch(groups: int, local_size: Sequence[int]) -> Iterator[tuple[list[Expr], list[Expr]]]:
    """Run the statements inside in every work-item; yields (group ids, local ids), `groups` and len(local_size) axes.

    How many groups there are is up to whoever launches; the text does not depend on it.
    """
    with ExitStack() as stack:
        group = [stack.enter_context(B.launch_thread(f"blockIdx.{axis}", 1 << 20)) for axis in _AXES[:groups]]
        item = [
            stack.enter_context(B.launch_thread(f"threadIdx.{axis}", size))
            for axis, size in zip(_AXES, local_size, strict=False)
        ]
        yield group, item


@contextmanager
def shared(*sizes: tuple[int, str]) -> Iterator[list[Buffer]]:
    """Buffers (elements, dtype) in local memory, one for each work-group."""
    with B.sblock("group"):
        B.reads([])
        B.writes([])
        yield [B.sblock_alloc_buffer((elements,), dtype, scope="shared") for elements, dtype in sizes]


def barrier() -> None:
    """Wait until all work-items of the group are here and see each other's local memory."""
    B.evaluate(T.tvm_storage_sync("shared"))


def load_vector(buffer: Buffer, index: Expr, lanes: int) -> Expr:
    """Read `lanes` (2, 4, 8, 16) consecutive elements by the built-in function.

    TVM writes a vector load only where it proves that the index is a multiple of `lanes`, else one load an element.
    """
    return T.call_extern(f"{buffer.dtype}x{lanes}", f"vload{lanes}", 0, T.address_of(buffer[index]))


def store_vector(buffer: Buffer, index: Expr, value: Expr, lanes: int) -> None:
    """Write `lanes` (2, 4, 8, 16) consecutive elements by the built-in function, as `load_vector` reads them."""
    B.evaluate(T.call_extern("void", f"vstore{lanes}", value, 0, T.address_of(buffer[index])))


def load_real(buffer: Buffer, index: Expr, lanes: int) -> Expr:
    """Read `lanes` (1, 2, 4, 8, 16) stored activations as float32."""
    if buffer.dtype == "float32":
        return load(buffer, index, 1) if lanes == 1 else load_vector(buffer, index, lanes)
    name = f"stic_load_half{lanes if lanes > 1 else ''}"
    return T.call_extern(f"float32x{lanes}" if lanes > 1 else "float32", name, T.address_of(buffer[index]))


def store_real(buffer: Buffer, index: Expr, value: Expr, lanes: int) -> None:
    """Round `lanes` values to the buffer's precision and store them."""
    if buffer.dtype == "float32":
        if lanes == 1:
            store(buffer, index, value, lanes)
        else:
            store_vector(buffer, index, value, lanes)
        return
    name = f"stic_store_half{lanes if lanes > 1 else ''}"
    B.evaluate(T.call_extern("void", name, value, T.address_of(buffer[index])))


def lower(function: PrimFunc) -> str:
    """Return one function as OpenCL C, without the preamble that declares what it calls.

    Kernels come as they should be: flat buffers as large as they must be, a name for every value that is used again. So
    there are no passes that flatten, compact, simplify or look for common expressions (the driver's compiler does);
    simplifying would write named values out again.
    """
    target = tvm.target.Target(TARGET)
    x, s = tirx.transform, s_tir.transform
    passes = tvm.ir.transform.Sequential(
        [
            s.CanonicalizeLoop(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.LowerMatchBuffer(),
            s.LowerOpaqueBlock(),
            x.NarrowDataType(32),
            x.VectorizeLoop(True),
            x.StorageRewrite(),
            x.UnrollLoop(),
            x.LowerIntrin(),
        ]
    )
    name = function.attrs["global_symbol"]
    module = passes(x.BindTarget(target.with_host(tvm.target.Target({"kind": "llvm"})))(tvm.IRModule({name: function})))
    device = module[name].with_attr("target", target).with_attr({"calling_conv": 2, "tirx.is_global_func": True})
    text: Any = tvm.get_global_func("target.build.opencl")(tvm.IRModule({name: device}), target).inspect_source()
    # TVM asks for an extension as soon as half is named; `load_real` and `store_real` need none.
    start = text.rindex(f"__kernel void {name}(")
    return str(text[start:]).rstrip() + "\n"
