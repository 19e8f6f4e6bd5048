"""What tests of packages share: a model of random weights, plans for it, the parts of a package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stic.compiler.device.synthetic import synthetic
from stic.compiler.package.assembly import Materials, Planned, assemble_package, collect
from stic.compiler.package.index import Parts
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.compiler.quantization.quantize import quantize
from stic.compiler.sharding import Geometry
from stic.targets.target import load

GEOMETRY = Geometry(2, 64, 4, 16, 128, 4)
BITS = ((16, 8, 5, 2), (6, 4, 3))
RESIDENT = ((0, 8, 5, 0), (6, 0, 0))
MAX_LENGTH = 40


def materials_for(quantizer: str) -> Materials:
    """What a package of random weights is made of."""
    quantized = synthetic(GEOMETRY, "gelu", MAX_LENGTH)
    if quantizer == "gobo":
        quantized = quantize(quantized.sharded, "gobo")
    return collect(quantized, 16, MAX_LENGTH, 2, 2)


def plan_of(bits: tuple[tuple[int, ...], ...], resident: tuple[tuple[int, ...], ...]) -> Plan:
    """A plan of these bits that keeps the resident ones."""
    layers = tuple(LayerPlan(b, r) for b, r in zip(bits, resident, strict=True))
    return Plan("test", layers, False, 1, True, Budget(), 0.0, Proof("heuristic", 0.0, None, 0.0))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Parts whose kernels are never loaded."""
    kernels = tmp_path_factory.mktemp("kernels") / "kernels.so"
    kernels.write_bytes(b"no code")
    planned = (Planned(plan_of(BITS, RESIDENT)),)
    return assemble_package(materials_for("nested"), planned, load("host"), kernels, keep_planes=True)


@pytest.fixture(scope="module")
def other(parts: Parts) -> Parts:
    """The same model with another forecast: another package."""
    return replace(parts, plans=(replace(parts.default, predicted_us=123),))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
