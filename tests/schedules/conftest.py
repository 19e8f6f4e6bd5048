"""Run kernels of several targets on small inputs: natively, or under qemu-aarch64 where it is installed."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.compiler.codegen import generate
from stic.schedules.shape import KernelShape
from stic.targets.target import Target, load
from stic.targets.toolchain import find_c_compiler

# Target -> command that runs its programs; an empty one runs them on this machine.
MACHINES: dict[str, tuple[str, ...]] = {
    "host": (),
    "x86-64-v3": (),
    "aarch64-dotprod": ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"),
    "raspberry-pi-4": ("qemu-aarch64", "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu"),
}
# Variants of targets that this machine may lack: the same target without some features.
WITHOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "host-without-vbmi": ("host", ("avx512_vbmi",)),  # AVX-512 VNNI dot product, AVX2 unpacking
    "portable": ("x86-64-v3", ("avx2",)),  # the fallback rules
}
Call = tuple[str, Sequence[np.ndarray | int]]


@dataclass(frozen=True)
class Machine:
    """A target's kernels and the way to call them."""

    target: Target
    emulator: tuple[str, ...]
    driver: Path
    kernels: Callable[[KernelShape], Path]
    folder: Path

    def run(self, calls: Sequence[Call], shape: KernelShape) -> list[list[np.ndarray]]:
        """Call kernels in one process; return, for every call, its buffers as the kernel left them."""
        data = bytearray()
        for name, arguments in calls:
            data += struct.pack("<q", len(name)) + name.encode() + struct.pack("<q", len(arguments))
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    data += struct.pack("<qq", 1, argument.nbytes) + argument.tobytes()
                else:
                    data += struct.pack("<qq", 0, int(argument))
        cases, results = self.folder / "cases", self.folder / "results"
        cases.write_bytes(data)
        command = [*self.emulator, str(self.driver), str(self.kernels(shape)), str(cases), str(results)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, f"{self.target.name}: exit {done.returncode} {done.stderr}"
        content, at, answers = results.read_bytes(), 0, []
        for _, arguments in calls:
            buffers = []
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    flat = np.frombuffer(content, argument.dtype, argument.size, at)
                    buffers.append(flat.reshape(argument.shape))
                    at += argument.nbytes
            answers.append(buffers)
        return answers


@pytest.fixture(scope="session", params=[*MACHINES, *WITHOUT])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """One of MACHINES or WITHOUT; skips where this machine can neither run nor emulate it."""
    name = request.param
    base, dropped = WITHOUT.get(name, (name, ()))
    emulator, target = MACHINES[base], load(base)
    target = replace(target, features=tuple(feature for feature in target.features if feature not in dropped))
    if emulator and (shutil.which(emulator[0]) is None or shutil.which("aarch64-linux-gnu-gcc") is None):
        pytest.skip(f"target {name} needs {emulator[0]} and aarch64-linux-gnu-gcc")
    if not emulator and target.missing_features:
        pytest.skip(f"this machine lacks {', '.join(target.missing_features)} of target {name}")
    folder = tmp_path_factory.mktemp(name)
    driver = folder / "driver"
    source = Path(__file__).with_name("driver.c")
    find_c_compiler(target).run(["-O1", "-o", str(driver), str(source), "-ldl"], "the test driver")
    built: dict[KernelShape, Path] = {}

    def kernels(shape: KernelShape) -> Path:
        if shape not in built:
            out = folder / f"kernels{len(built)}.so"
            generate(shape, target, out)
            built[shape] = out
        return built[shape]

    return Machine(target, emulator, driver, kernels, folder)
