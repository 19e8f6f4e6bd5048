"""Run OpenCL kernels on numpy arrays: on any OpenCL platform, PoCL before others.

STIC_OPENCL_DEVICE=text picks the device whose platform or name contains the text. Cases with `tiny` in their id also
run under Oclgrind (test_oclgrind.py), which asks by STIC_KERNELS_RUN=file for the names of the kernels that ran.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.schedules.opencl.program import Launch, Program
from stic.schedules.opencl.rule import program_for

Argument = np.ndarray | int


@dataclass
class Device:
    """An OpenCL device, and the programs built on it."""

    cl: Any  # the module pyopencl
    context: Any
    queue: Any
    programs: dict[tuple[str, tuple[tuple[str, int], ...]], Any] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)  # names of kernels

    def run(
        self,
        text: str,
        defines: Mapping[str, int],
        launch: Launch,
        grid: Sequence[int],
        arguments: Sequence[Argument],
    ) -> list[np.ndarray]:
        """Run a kernel of a program on `grid` units; return its arrays as it left them.

        An array that occurs twice among the arguments is one buffer. Integers are int32. Arrays are not changed.
        """
        buffers: dict[int, Any] = {}
        values: list[Any] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                assert argument.flags.c_contiguous
                if id(argument) not in buffers:
                    flags = self.cl.mem_flags.READ_WRITE | self.cl.mem_flags.COPY_HOST_PTR
                    buffers[id(argument)] = self.cl.Buffer(self.context, flags, hostbuf=argument)
                values.append(buffers[id(argument)])
            else:
                values.append(np.int32(argument))
        self.ran.add(launch.name)
        function = self.cl.Kernel(self.program(text, defines), launch.name)
        function(self.queue, launch.global_size(grid), launch.local, *values)
        results = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                result = np.empty_like(argument)
                self.cl.enqueue_copy(self.queue, result, buffers[id(argument)])
                results.append(result)
        return results

    def program(self, text: str, defines: Mapping[str, int]) -> Any:
        """The built program; built once for the same text and definitions."""
        key = (text, tuple(sorted(defines.items())))
        if key not in self.programs:
            options = [f"-DSTIC_{name}={value}" for name, value in key[1]]
            self.programs[key] = self.cl.Program(self.context, text).build(options=options)
        return self.programs[key]


@pytest.fixture(scope="session")
def programs() -> Callable[..., Program]:
    """`program_for`, which writes each program once."""
    return cache(program_for)


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    """The device of these tests; skips where there is none."""
    need = "needs an OpenCL platform (Debian: pocl-opencl-icd) and pyopencl"
    cl = pytest.importorskip("pyopencl", reason=need)
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        platforms = []
    found = [(f"{platform.name} {device.name}", device) for platform in platforms for device in platform.get_devices()]
    wanted = os.environ.get("STIC_OPENCL_DEVICE", "")
    found = sorted((entry for entry in found if wanted in entry[0]), key=lambda entry: "Portable" not in entry[0])
    if not found:
        pytest.skip(f"{need}; none has {wanted!r} in its name" if wanted else need)
    context = cl.Context([found[0][1]])
    device = Device(cl, context, cl.CommandQueue(context))
    yield device
    if "STIC_KERNELS_RUN" in os.environ:
        Path(os.environ["STIC_KERNELS_RUN"]).write_text("\n".join(sorted(device.ran)))
