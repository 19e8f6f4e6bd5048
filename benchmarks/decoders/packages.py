"""Packages of the model, compiled as anybody would, and kept as long as the compiler's code is the same."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.decoders import source
from stic.compiler.cache.closure import code_of
from stic.compiler.cache.digests import digest
from stic.compiler.options import LEAST_HEAD
from stic.runtime.architecture import tensors
from stic.runtime.errors import SticError
from stic.runtime.format import JOINED
from stic.runtime.package import Package

_COMPILER = "stic.compiler.pipeline"
CALL = "import sys; from stic.compiler.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Sizes:
    """Bytes of a package."""

    file_bytes: int  # of all its files
    layer_bits: float  # stored bits over true weights of all blocks but the vocabulary, everything counted
    claimed_bytes: int  # memory at the full context


def compiled(folder: Path, name: str, *options: str, target: str = "host") -> Path:
    """The package `name`, compiled with these options on the calibration text where it is not there yet.

    Raises SticError with the compiler's last line where it refuses.
    """
    model, text = source.gguf(), source.data(source.CALIBRATION)
    calibration = ["--calibration", str(text), "--calibration-tokens", str(source.CALIBRATION_TOKENS)]
    asked = [str(model), "--target", target, *calibration, *options]
    path, made_by = folder / f"{name}.stic", folder / f"{name}.key"
    key = digest(code_of(_COMPILER), asked)
    if path.is_dir() and made_by.is_file() and made_by.read_text(encoding="utf-8") == key:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", CALL, "compile", *asked, "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SticError(f"{name}: {(done.stderr.strip().splitlines() or ['the compiler ended'])[-1]}")
    made_by.write_text(key, encoding="utf-8")
    return path


def uniform(folder: Path, bits: int, context: int, *options: str, target: str = "host") -> Path:
    """All blocks at the same bits, everything resident."""
    name = "-".join([f"{bits}bits", str(context), target, *(option.strip("-") for option in options)])
    asked = ("--planner", "preload", "--bits", str(bits), "--context", str(context), *options)
    return compiled(folder, name, *asked, target=target)


def sizes(path: Path) -> Sizes:
    """What a package takes."""
    package = Package.open(path)
    head = len(package.shapes) - 1
    stored = int(package.records["bytes"][:head].sum())
    for shape in package.shapes[:head]:
        for name in shape.matrices:
            stored += 4 * shape.matrix(name)[0] * (1 if name in JOINED else shape.slices)
    files = sum(file.stat().st_size for file in path.iterdir())
    return Sizes(files, 8 * stored / layer_weights(), int(package.plan["claimed_bytes"]))


def layer_weights() -> int:
    """Weights in the matrices of the model's blocks, the vocabulary's left out."""
    architecture = source.decoder().architecture
    blocks = range(len(architecture.blocks) - 1)
    return sum(int(np.prod(t.shape)) for t in tensors(architecture) if t.block in blocks and len(t.shape) == 2)


def mixed(folder: Path, layer_bits: float, context: int, like: Sizes) -> Path:
    """What the ILP makes of so many bits a weight of the layers, the head as in uniform packages, all resident.

    The memory is what a uniform package of the same context claims (`like`), and as much less or more as the bits take.
    Storage is taken to be so slow that nothing can be streamed in time.
    """
    memory = like.claimed_bytes + math.floor((layer_bits - like.layer_bits) * layer_weights() / 8)
    limits = ("--memory", f"{memory}B", "--next-token", "1s", "--storage", "1MB", "--head-bits", str(LEAST_HEAD))
    return compiled(folder, f"mixed-{layer_bits:g}-{context}", *limits, "--context", str(context))
