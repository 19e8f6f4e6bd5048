"""Kernels of one model for one target -> kernels.so.

The result depends on the schedules' sources, the model's constants, the target, TVM and the linker; it is cached under
a hash of all of them. TVM takes seconds to import, so only what is not cached imports it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import stic.schedules
from stic.runtime.native import cache_dir
from stic.schedules.shape import KernelShape
from stic.schedules.tuning import tuning_for
from stic.targets import toolchain
from stic.targets.target import Target
from stic.targets.toolchain import find_c_compiler, link_shared


def generate(shape: KernelShape, target: Target, out: Path) -> None:
    """Write the shared library with every kernel of the model to `out`.

    Its symbols are plain C functions (stic_dot, stic_unpack_b2, ...) and it needs no other library.
    Raises ToolchainError where no linker for the target is found.
    """
    cached = cache_dir() / "kernels" / f"{kernels_key(shape, target)}.so"
    if not cached.is_file():
        _compile(shape, target, cached)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".kernels-") as folder:
        partial = Path(folder) / out.name
        shutil.copy(cached, partial)
        os.replace(partial, out)


def _compile(shape: KernelShape, target: Target, out: Path) -> None:
    from stic.schedules.rule import kernels_for
    from stic.schedules.tir import build

    with tempfile.TemporaryDirectory(prefix="stic-") as folder:
        compiled = Path(folder) / "kernels.o"
        build(kernels_for(target, shape), dict(target.tvm)).write_to_file(str(compiled))
        link_shared([compiled], out, target)


def kernels_key(shape: KernelShape, target: Target) -> str:
    """Return a hash of everything that the library's content depends on."""
    linker = find_c_compiler(target)
    facts = {
        "shape": asdict(shape),
        "target": [target.arch, sorted(target.features), dict(target.tvm)],
        "tuning": asdict(tuning_for(target)),
        "tvm": metadata.version("apache-tvm"),
        "linker": [linker.command, linker.version],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    root = Path(next(iter(stic.schedules.__path__)))
    for path in (*sorted(root.rglob("*.py")), Path(toolchain.__file__)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:32]
