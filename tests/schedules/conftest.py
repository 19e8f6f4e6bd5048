"""Run kernels of several targets on small inputs: natively, or under qemu-aarch64 where it is installed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs apache-tvm")

from stic.compiler.package.kernels import generate
from stic.schedules.cpu.attention import attention
from stic.schedules.rule import EVERY_CPU, decoder_rules, micro_kernel
from stic.schedules.shape import DecoderShape, KernelShape
from stic.schedules.tir import PrimFunc, build
from stic.targets import target as target_module
from stic.targets.target import Target, load
from stic.targets.toolchain import find_c_compiler, link_shared


def _qemu(cpu: str) -> tuple[str, ...]:
    return ("qemu-aarch64", "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu")


# Target -> command that runs its programs; an empty one runs them on this machine. A CPU that lacks what the target
# has stops with SIGILL, so each target runs on the least CPU that QEMU has for it.
MACHINES: dict[str, tuple[str, ...]] = {
    "host": (),
    "x86-64-v3": (),
    "aarch64-i8mm": _qemu("max"),
    "aarch64-dotprod": _qemu("cortex-a76"),
    "raspberry-pi-4": _qemu("cortex-a72"),
    "odroid-n2plus": _qemu("cortex-a53"),  # what its small cores are
}
# Levels of targets/host.toml that a better machine passes over.
LEVELS = {
    "host-avx512-vbmi": "AVX-512 with VNNI and VBMI",
    "host-avx512": "AVX-512 with VNNI",
    "host-avx-vnni": "AVX-VNNI",
}
# Variants of targets: the same target without some features.
WITHOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "portable": ("x86-64-v3", ("avx2",)),  # the fallback rules
}


@dataclass(frozen=True)
class Again:
    """An argument that is an earlier one's buffer, given once more."""

    argument: int


Call = tuple[str, Sequence[np.ndarray | int | Again]]


@dataclass(frozen=True)
class Machine:
    """A target's kernels and the way to call them."""

    target: Target
    emulator: tuple[str, ...]
    driver: Path
    kernels: Callable[[KernelShape | DecoderShape], Path]
    folder: Path

    def run(self, calls: Sequence[Call], shape: KernelShape | DecoderShape) -> list[list[np.ndarray]]:
        """Call kernels in one process; return, for every call, its buffers as the kernel left them."""
        cases, results = self._write(calls), self.folder / "results"
        command = [*self.emulator, str(self.driver), str(self.kernels(shape)), str(cases), str(results)]
        self._execute(command)
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

    def count(self, calls: Sequence[Call], shape: KernelShape | DecoderShape) -> list[int]:
        """Call kernels in one process; return how many instructions each executed, beyond those of an empty function.

        Skips where this machine cannot count them.
        """
        source, counts = Path(__file__).with_name("count_qemu.c"), self.folder / "counts"
        counts.unlink(missing_ok=True)
        files = [str(self.kernels(shape)), str(self._write(calls)), str(self.folder / "results")]
        if self.emulator:
            plugin = self.folder / "count_qemu.so"
            if not plugin.is_file():
                compiler = find_c_compiler(load("host"))
                compiler.run(["-O1", "-shared", "-fPIC", "-o", str(plugin), str(source)], "the plugin that counts")
            emulator, *options = self.emulator
            self._execute([emulator, "-plugin", f"{plugin},counts={counts}", *options, str(self.driver), *files])
        else:
            if platform.machine() != "x86_64":
                pytest.skip(f"no counter of instructions is written for {platform.machine()} itself")
            counter = self.folder / "driver_that_counts"
            if not counter.is_file():
                sources = [str(source.with_name(name)) for name in ("driver.c", "count_x86.c")]
                compiler = find_c_compiler(self.target)
                compiler.run(["-O1", "-o", str(counter), *sources, "-ldl"], "the driver that counts")
            self._execute([str(counter), *files], {"STIC_COUNTS": str(counts)})
        empty, *executed = map(int, counts.read_text().split())
        if empty == 0:
            pytest.skip("this machine does not step through single instructions")
        return [count - empty for count in executed]

    def disassembly(self, shape: KernelShape | DecoderShape, symbol: str) -> list[tuple[int, str]]:
        """(address, instruction) of a function, in order. Skips where objdump is absent."""
        tool = "aarch64-linux-gnu-objdump" if self.emulator else "objdump"
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} to read the kernels of {self.target.name}")
        command = [tool, "-d", "--no-show-raw-insn", f"--disassemble={symbol}", str(self.kernels(shape))]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.findall(r"^ +([0-9a-f]+):\t(.+)$", text, re.MULTILINE)
        assert found, f"{symbol} is not in {self.kernels(shape)}"
        return [(int(address, 16), instruction) for address, instruction in found]

    def _write(self, calls: Sequence[Call]) -> Path:
        """Write the calls for driver.c to read."""
        data = bytearray()
        for name, arguments in calls:
            data += struct.pack("<q", len(name)) + name.encode() + struct.pack("<q", len(arguments))
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    data += struct.pack("<qq", 1, argument.nbytes) + argument.tobytes()
                elif isinstance(argument, Again):
                    data += struct.pack("<qq", 2, argument.argument)
                else:
                    data += struct.pack("<qq", 0, int(argument))
        cases = self.folder / "cases"
        cases.write_bytes(data)
        return cases

    def _execute(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, **(environment or {})}
        )
        if "plugin" in done.stderr and done.returncode:
            pytest.skip(f"this {command[0]} takes no plugins: {done.stderr.strip()}")
        assert done.returncode == 0, f"{self.target.name}: exit {done.returncode} {done.stderr}"


def _level(title: str) -> Target:
    """The host, as it would be if this level of its file were its best."""
    content = tomllib.loads(Path(target_module.__file__).with_name("host.toml").read_text())
    level = next(level for level in content["level"] if level["title"] == title)
    host = load("host")
    if level["arch"] != host.arch:
        pytest.skip(f"this {host.arch} machine has no level {title}")
    return replace(host, features=tuple(level["features"]), tvm=level["tvm"], description=f"this machine: {title}")


@pytest.fixture(scope="session", params=[*MACHINES, *LEVELS, *WITHOUT])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """One of MACHINES, LEVELS or WITHOUT; skips where this machine can neither run nor emulate it."""
    name = request.param
    base, dropped = WITHOUT.get(name, (name, ()))
    emulator = MACHINES.get(base, ())
    target = _level(LEVELS[base]) if base in LEVELS else load(base)
    target = replace(target, features=tuple(feature for feature in target.features if feature not in dropped))
    if emulator and (shutil.which(emulator[0]) is None or shutil.which("aarch64-linux-gnu-gcc") is None):
        pytest.skip(f"target {name} needs {emulator[0]} and aarch64-linux-gnu-gcc")
    if not emulator and target.missing_features:
        pytest.skip(f"this machine lacks {', '.join(target.missing_features)} of target {name}")
    folder = tmp_path_factory.mktemp(name)
    driver = folder / "driver"
    source = Path(__file__).with_name("driver.c")
    find_c_compiler(target).run(["-O1", "-o", str(driver), str(source), "-ldl"], "the test driver")
    built: dict[KernelShape | DecoderShape, Path] = {}

    def kernels(shape: KernelShape | DecoderShape) -> Path:
        if shape not in built:
            out = folder / f"kernels{len(built)}.so"
            generate(shape, target, out)
            built[shape] = out
        return built[shape]

    return Machine(target, emulator, driver, kernels, folder)


def _with_only(machine: Machine, functions: Callable[[Any], list[PrimFunc]]) -> Machine:
    """The machine with few of a shape's kernels: those that come in all bitwidths are what takes time to compile."""
    built: dict[KernelShape | DecoderShape, Path] = {}

    def kernels(shape: KernelShape | DecoderShape) -> Path:
        if shape not in built:
            out = machine.folder / f"{type(shape).__name__}{len(built)}.so"
            build(functions(shape), dict(machine.target.tvm)).write_to_file(str(out.with_suffix(".o")))
            link_shared([out.with_suffix(".o")], out, machine.target)
            built[shape] = out
        return built[shape]

    return replace(machine, kernels=kernels)


@pytest.fixture(scope="session")
def encoder(machine: Machine) -> Machine:
    """The machine with all of an encoder's kernels but the products of codes."""
    target, plain = machine.target, micro_kernel(machine.target)
    return _with_only(
        machine, lambda shape: [attention(target, shape, plain), *(rule(target, shape) for rule in EVERY_CPU)]
    )


@pytest.fixture(scope="session")
def decoder(machine: Machine) -> Machine:
    """The machine with all of a decoder's kernels but the products of codes."""
    return _with_only(machine, lambda shape: [rule(machine.target, shape) for rule in decoder_rules(shape)])
