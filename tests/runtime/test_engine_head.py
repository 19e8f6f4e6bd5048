"""Poolings, heads, token types and stores that the plain test packages do not have: engine and reference agree."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stic.compiler.device.synthetic import synthetic
from stic.compiler.model import Array, Dense, Head, HeadActivation, Linear
from stic.compiler.offers import Quantizer
from stic.compiler.package.assembly import Planned, assemble_package, collect
from stic.compiler.package.kernels import generate
from stic.compiler.package.writer import write_package
from stic.compiler.plan import Budget, LayerPlan, Plan, Proof
from stic.compiler.quantization.quantize import quantize
from stic.compiler.sharding import Geometry, shard
from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.session import Session
from stic.targets.target import load

BITS = ((8, 5, 3, 2), (4, 4, 4))
HIDDEN, MAX_LENGTH = 40, 40


def dense(out: int, inner: int, activation: HeadActivation) -> Dense:
    random = np.random.default_rng(out)
    weight: Array = random.standard_normal((out, inner), np.float32) * np.float32(inner**-0.5)
    return Dense(Linear(weight, random.standard_normal(out, np.float32)), activation)


HEADS = {
    "tokens": Head("tokens"),
    "tokens of length 1": Head("tokens", normalize=True),
    "labels of tokens": Head("tokens", (dense(5, HIDDEN, "none"),)),
    "first": Head("first"),
    "mean of length 1": Head("mean", normalize=True),
    "pooler and classes": Head("first", (dense(HIDDEN, HIDDEN, "tanh"), dense(3, HIDDEN, "none"))),
    "gelu, relu": Head("mean", (dense(70, HIDDEN, "gelu"), dense(20, 70, "relu"), dense(33, 20, "none")), True),
}


def write(folder: Path, head: Head, types: int, quantizer: Quantizer) -> Path:
    """A package of 2 layers with real quantised weights."""
    base = synthetic(Geometry(len(BITS), HIDDEN, 4, 10, 60, 4), "gelu_tanh", MAX_LENGTH).sharded
    random = np.random.default_rng(9)
    table = random.standard_normal((types, HIDDEN), np.float32) if types else None
    model = replace(base.model, head=head, embeddings=replace(base.model.embeddings, token_type=table))
    materials = collect(quantize(shard(model, 4), quantizer), 16, MAX_LENGTH, 2, 2)
    layers = tuple(LayerPlan(bits, tuple(0 for _ in bits)) for bits in BITS)
    plan = Plan("test", layers, False, 1, True, Budget(), 0.0, Proof("heuristic", 0.0, None, 0.0))
    target = load("host")
    generate(materials.kernel_shape, target, folder / "kernels.so")
    write_package(assemble_package(materials, (Planned(plan),), target, folder / "kernels.so"), folder / "model.stic")
    return folder / "model.stic"


def agree(package: Path, types: int) -> None:
    reference = Reference(Package.open(package))
    random = np.random.default_rng(2)
    errors = []
    with Session(package) as session:
        for n in (1, 16, 17, 40):
            ids = random.integers(0, session.info.vocabulary, n)
            kinds = random.integers(0, types, n) if types else None
            want = reference.run(ids, kinds)
            got = session.run(ids, kinds)
            assert got.shape == want.shape
            errors.append(float(np.abs(got - want).max()))
    assert max(errors) < 2e-5, errors


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str, tmp_path: Path) -> None:
    agree(write(tmp_path, HEADS[head], 0, "nested"), 0)


@pytest.mark.parametrize("quantizer", ("nested", "gobo"))
def test_token_types_and_stores(quantizer: Quantizer, tmp_path: Path) -> None:
    agree(write(tmp_path, Head("mean"), 3, quantizer), 3)
