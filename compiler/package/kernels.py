"""Kernels of one model for one target -> kernels.so, and for its GPU -> kernels.cl.

A result depends on the schedules' sources, the model's constants, the target, TVM and the linker; it is cached under
a hash of all of them. Only what is not cached needs TVM, which works in a process of its own (`kernels_process`).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.cache.closure import code_of
from stic.runtime.errors import ToolchainError
from stic.runtime.files import write_bytes
from stic.runtime.gpu_format import LAUNCH, MOST_LAUNCHES, GpuPrecision, Style
from stic.runtime.native import cache_dir
from stic.schedules.shape import DecoderShape, KernelShape
from stic.schedules.tuning import tuning_for
from stic.targets.target import Target
from stic.targets.toolchain import find_c_compiler, link_shared

# The modules that make a library of kernels and the text of a program; the first of them import tvm, so not here.
_LIBRARY = ("stic.schedules.rule", "stic.schedules.tir", link_shared.__module__)
_PROGRAM = "stic.schedules.opencl.rule"
_PROCESS = "stic.compiler.package.kernels_process"  # imports the modules of both


@dataclass(frozen=True, eq=False)
class GpuProgram:
    """kernels.cl and how its kernels are started."""

    path: Path
    style: Style
    storage: GpuPrecision
    launches: NDArray[Any]  # LAUNCH


def generate(shape: KernelShape | DecoderShape, target: Target, out: Path) -> None:
    """Write the shared library with every kernel of the model to `out`.

    Its symbols are plain C functions (stic_dot, stic_unpack_b2, ...) and it needs no other library.
    Raises ToolchainError where no linker for the target is found.
    """
    cached = cache_dir() / "kernels" / f"{kernels_key(shape, target)}.so"
    if not cached.is_file():
        _compile(shape, target, cached)
    write_bytes(out, cached.read_bytes())


def generate_program(shape: KernelShape, style: Style, storage: GpuPrecision, q: int, out: Path) -> GpuProgram:
    """Write the text of the model's kernels for a GPU of `style` to `out`.

    `storage` is the type of stored activations, `q` the interleave of the package's weights.
    """
    key = program_key(shape, style, storage, q)
    cached = cache_dir() / "kernels" / f"{key}.cl.json"
    try:
        data = json.loads(cached.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = _in_process("program", shape, style, storage, q)
        write_bytes(cached, json.dumps(data).encode())
    write_bytes(out, data["text"].encode())
    return GpuProgram(out, style, storage, _launches(data["launches"]))


def _launches(entries: list[dict[str, Any]]) -> NDArray[Any]:
    """Launches as they stand in a package, axes that a kernel does not use filled with 1."""
    if len(entries) > MOST_LAUNCHES:
        raise ValueError(f"a program has {len(entries)} kernels, at most {MOST_LAUNCHES} have room in a package")
    table = np.zeros(len(entries), LAUNCH)
    for row, entry in zip(table, entries, strict=True):
        name = entry["name"].encode()
        if len(name) > LAUNCH["name"].itemsize:
            raise ValueError(f"the name of kernel {entry['name']} is too long for a package")
        row["name"], row["local_bytes"] = name, entry["local_bytes"]
        for axes in ("local", "group"):
            row[axes] = (*entry[axes], 1, 1)[:3]
    return table


def _compile(shape: KernelShape | DecoderShape, target: Target, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        compiled = Path(folder) / "kernels.o"
        _in_process("library", shape, target, str(compiled))
        link_shared([compiled], out, target)


def _in_process(name: str, *arguments: Any) -> Any:
    """Call a function of `kernels_process` in a process of its own, which ends with the call however that ends.

    Raises what the function refuses, and ToolchainError where the process is ended from outside.
    """
    # -P: the folder that stic is started in is no place to import from.
    command, request = [sys.executable, "-P", "-m", _PROCESS], pickle.dumps((name, *arguments))
    done = subprocess.run(command, input=request, capture_output=True, check=False)
    if done.returncode < 0:
        raise ToolchainError(
            f"the process that compiles kernels was ended by signal {-done.returncode}, as where memory is short: end"
            " other programs, and try again"
        )
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        raise RuntimeError(f"the process that compiles kernels failed with status {done.returncode}: {said}")
    sys.stderr.write(said)  # warnings of LLVM
    kind, result = pickle.loads(done.stdout)
    if kind == "refused":
        raise result
    if kind == "failed":
        raise RuntimeError(f"kernels cannot be compiled: {result}")
    return result


def kernels_key(shape: KernelShape | DecoderShape, target: Target) -> str:
    """Return a hash of everything that the library's content depends on."""
    linker = find_c_compiler(target)
    facts = {
        "shape": asdict(shape),
        "target": [target.arch, sorted(target.features), dict(target.tvm)],
        "tuning": asdict(tuning_for(target)),
        "tvm": metadata.version("apache-tvm"),
        "linker": [linker.command, linker.version],
    }
    return _key(facts, *_LIBRARY)


def program_key(shape: KernelShape, style: Style, storage: GpuPrecision, q: int) -> str:
    """Return a hash of everything that the content of kernels.cl depends on."""
    facts = {"shape": asdict(shape), "gpu": [style, storage, q], "tvm": metadata.version("apache-tvm")}
    return _key(facts, _PROGRAM)


def _key(facts: dict[str, Any], *modules: str) -> str:
    """Hash of facts, of what `modules` run, of this file and of the process's."""
    code = code_of(*modules, alone=(__name__, _PROCESS))
    return hashlib.sha256(json.dumps({**facts, "code": code}, sort_keys=True).encode()).hexdigest()[:32]
