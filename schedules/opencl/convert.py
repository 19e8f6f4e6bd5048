"""stic_widen and stic_narrow: activations between their stored precision and float32, where a layer's input changes
hands between GPU and CPU; and the fallback for whatever has no schedule of its own, TVM's dlight.

A definition says what is computed, elementwise and without loops; dlight's rule for GPUs splits it among work-items,
one element each. Kernels and their launches are read from what TVM made of it.

Halves are bits here (ushort), because TVM asks for cl_khr_fp16 as soon as a value is a half; the preamble's functions
convert them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import te, tirx
from tvm.s_tir import dlight

from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.opencl.program import Kernel, Launch
from stic.schedules.opencl.source import TARGET
from stic.schedules.shape import KernelShape

_MANY = 1 << 20  # any number of units that every group size divides


def by_dlight(name: str, tensors: Sequence[Any], count: Any) -> Kernel:
    """Schedule a definition whose arguments are `tensors`, inputs and outputs of (count,) each, and `count`.

    A unit is an element.
    """
    target = tvm.target.Target(TARGET).with_host(tvm.target.Target({"kind": "llvm"}))
    function = te.create_prim_func([*tensors, count]).with_attr("global_symbol", name)
    with target:
        module = dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(tvm.IRModule({name: function}))
    build = importlib.import_module("tvm.tirx.build")  # the attribute of that name is a function
    pipeline = tirx.get_tir_pipeline("s_tir")[0]
    host, devices = build.split_host_device_mods(pipeline(tirx.transform.BindTarget(target)(module)))
    (device,) = (function for part in devices.values() for function in part.functions.values())
    # TVM orders the parameters by itself, and calls pointers x_ptr.
    parameters = {parameter.name.removesuffix("_ptr"): parameter for parameter in device.params}
    order = [parameters[argument.name] for argument in (*tensors, count)]
    ordered = tirx.PrimFunc(order, device.body, device.ret_type, device.attrs).with_attr("global_symbol", name)
    call = _launch(host)
    extents = dict(zip(call.attrs["launch_params"], call.args[-len(call.attrs["launch_params"]) :], strict=True))
    analyzer = tvm.sym.Analyzer()
    analyzer.bind(call.args[1 + len(tensors)], tirx.const(_MANY, "int32"))  # after the kernel's name and the tensors
    groups, items = (int(analyzer.simplify(extents[axis])) for axis in ("blockIdx.x", "threadIdx.x"))
    return Kernel(ordered, Launch(name, (items,), (_MANY // groups,)))


def _launch(host: Any) -> Any:
    """The call of the one kernel that a host module launches; its last arguments are the extents."""
    calls: list[Any] = []

    def note(call: Any) -> None:
        if getattr(call.op, "name", "") == "tirx.call_ffi_kernel":
            calls.append(call)

    for function in host.functions.values():
        tvm_ffi.structural_walk(function.body, (tvm.ir.Call, note))
    (call,) = calls
    return call


def widen(style: Style, shape: KernelShape, storage: GpuPrecision) -> Kernel:
    """(x: S, y: f32, count): y = x. A unit is an element."""
    count = tirx.Var("count", "int32")
    x = te.placeholder((count,), _bits(storage), "x")

    def value(i: Any) -> Any:
        return tirx.call_pure_extern("float32", "stic_from_half", x[i]) if storage == "float16" else x[i]

    return by_dlight("stic_widen", [x, te.compute((count,), value, "y")], count)


def narrow(style: Style, shape: KernelShape, storage: GpuPrecision) -> Kernel:
    """(y: f32, x: S, count): x = y, rounded to nearest even. A unit is an element."""
    count = tirx.Var("count", "int32")
    y = te.placeholder((count,), "float32", "y")

    def value(i: Any) -> Any:
        return tirx.call_pure_extern("uint16", "stic_to_half", y[i]) if storage == "float16" else y[i]

    return by_dlight("stic_narrow", [y, te.compute((count,), value, "x")], count)


def _bits(storage: GpuPrecision) -> str:
    return "uint16" if storage == "float16" else "float32"
