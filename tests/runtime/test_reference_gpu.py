"""The reference's GPU arithmetic against its CPU arithmetic, and against plain matrix products. No kernels run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stic.runtime.package import Package
from stic.runtime.reference import Reference
from stic.runtime.reference_gpu import ARITHMETICS, GpuLayers

BITS = ((16, 8, 8, 5), (8, 8, 6, 4), (), (16, 16, 8, 8))
IDS = np.random.default_rng(1).integers(0, 1000, 19)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def packages(make_package: Callable[..., Path]) -> Callable[..., Package]:
    """`packages(storage, places)`: the same random model with layers placed in different ways; built once each."""
    made: dict[tuple, Package] = {}

    def make(storage: str, places: tuple[str, ...] | None = None) -> Package:
        key = (storage, places)
        if key not in made:
            made[key] = Package.open(
                make_package(BITS, gpu="mali-g52", gpu_precision=storage, places=places, compiled=False)
            )
        return made[key]

    return make


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_a_gpu_answers_almost_like_a_cpu(packages, storage, arithmetic):
    """The CPU quantises activations and attention to int8; a GPU does neither, or activations only."""
    package = packages(storage)
    cpu, gpu = Reference(package).run(IDS), Reference(package, arithmetic).run(IDS)
    assert gpu.shape == cpu.shape and gpu.dtype == np.float32
    assert not np.array_equal(gpu, cpu)
    assert cosine(gpu, cpu) > 0.999


def test_more_precision_is_nearer_to_the_float_answer(packages):
    best = Reference(packages("float32"), "float").run(IDS)
    half = 1 - cosine(Reference(packages("float16"), "float").run(IDS), best)
    integers = 1 - cosine(Reference(packages("float32"), "int8").run(IDS), best)
    assert 0 < half < integers < 1e-3


@pytest.mark.parametrize("places", [("gpu", "cpu", "cpu", "gpu"), ("cpu", "gpu", "cpu", "cpu")])
def test_layers_may_be_on_either(packages, places):
    package = packages("float16", places)
    mixed, cpu = Reference(package, "int8").run(IDS), Reference(package).run(IDS)
    assert cosine(mixed, cpu) > 0.999 and not np.array_equal(mixed, cpu)
    assert not np.array_equal(mixed, Reference(packages("float16"), "int8").run(IDS))


def test_without_an_arithmetic_or_a_gpu_everything_is_the_cpus(packages, make_package):
    plain = Package.open(make_package(BITS, compiled=False))
    expected = Reference(plain).run(IDS)
    np.testing.assert_array_equal(Reference(packages("float16")).run(IDS), expected)
    np.testing.assert_array_equal(Reference(plain, "int8").run(IDS), expected)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_float_products_are_those_of_the_stored_weights(packages, layer):
    package = packages("float32")
    layers, row = GpuLayers(package, "float"), package.blocks[layer]
    rng, slices = np.random.default_rng(layer), int(package.kept[layer])

    def dense(s: int, name: str, scale: np.ndarray) -> np.ndarray:
        matrix = package.matrix(layer, s, name, int(package.bits[layer, s]))
        if matrix.weight is not None:
            return matrix.weight
        weight = scale[:, None] * matrix.table[matrix.codes]
        weight[matrix.outlier_rows, matrix.outlier_columns] = matrix.outlier_values
        return weight

    n, k = package.shapes[0].matrix("up")
    x = rng.standard_normal((k, 5)).astype(np.float32)
    got = layers.split(layer, "up", x, int(row["up_scale_at"]), int(row["up_bias_at"]))
    scale, bias = (
        package.tensor(int(row[f"up_{part}_at"]), "<f4", package.shapes[0].slices, n) for part in ("scale", "bias")
    )
    for s in range(slices):
        np.testing.assert_allclose(got[s], dense(s, "up", scale[s]) @ x + bias[s][:, None], rtol=1e-5, atol=1e-5)

    n, k = package.shapes[0].matrix("down")
    inputs = [rng.standard_normal((k, 5)).astype(np.float32) for _ in range(slices)]
    joined = layers.join(layer, "down", inputs, int(row["down_scale_at"]), int(row["down_bias_at"]))
    scale, bias = (package.tensor(int(row[f"down_{part}_at"]), "<f4", n) for part in ("scale", "bias"))
    want = bias[:, None] + sum(dense(s, "down", scale) @ x for s, x in enumerate(inputs))
    np.testing.assert_allclose(joined, want[: package.hidden], rtol=1e-5, atol=1e-5)


def test_stored_activations_are_halves(packages):
    x = GpuLayers(packages("float16"), "float").embed(IDS, np.zeros_like(IDS))
    np.testing.assert_array_equal(x, x.astype(np.float16).astype(np.float32))
    y = GpuLayers(packages("float32"), "float").embed(IDS, np.zeros_like(IDS))
    assert 0 < np.abs(x - y).max() < 2e-3


def test_an_unknown_arithmetic_is_refused(packages):
    with pytest.raises(ValueError, match="float, int8"):
        Reference(packages("float16"), "int4")
