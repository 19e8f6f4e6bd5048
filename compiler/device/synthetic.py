"""A model of given sizes with random weights, for measuring what those sizes cost on a device.

Time does not depend on the weights' values, so nothing is trained, exported or fitted: codes, tables and
outlier positions are drawn at random, the outliers at the rate that the nested quantizer aims at.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Embeddings, Head, Layer, Linear, Model, Norm
from stic.compiler.quantization.quantize import OUTLIER_RATE, Outliers, QuantizedMatrix, QuantizedModel
from stic.compiler.sharding import Geometry, ShardedModel, shard
from stic.runtime.format import LEVEL_BITS, MATRICES, Activation

VOCABULARY = 8192  # so many that the tokens of an input have rows in different blocks, as a real vocabulary's


def synthetic(
    geometry: Geometry,
    activation: Activation,
    max_length: int,
    seed: int = 0,
    epsilon: float = 1e-12,
    alike: bool = False,
) -> QuantizedModel:
    """Make a quantised model of `geometry` whose output is one mean-pooled vector.

    `alike`: layers differ in their codes, but share the float weights behind them, which only full precision reads.
    """
    rng = np.random.default_rng(seed)
    hidden, attention, ffn = geometry.hidden, geometry.heads * geometry.head_dim, geometry.ffn

    def linear(out: int, columns: int) -> Linear:
        weight = rng.standard_normal((out, columns), np.float32) * np.float32(columns**-0.5)
        return Linear(weight, np.zeros(out, np.float32))

    def norm() -> Norm:
        return Norm(np.ones(hidden, np.float32), np.zeros(hidden, np.float32), epsilon)

    layers = tuple(
        Layer(
            linear(attention, hidden),
            linear(attention, hidden),
            linear(attention, hidden),
            linear(hidden, attention),
            norm(),
            linear(ffn, hidden),
            linear(hidden, ffn),
            norm(),
        )
        for _ in range(1 if alike else geometry.layers)
    )
    tables = Embeddings(
        rng.standard_normal((VOCABULARY, hidden), np.float32),
        rng.standard_normal((max_length, hidden), np.float32),
        None,
        norm(),
    )
    scale = geometry.head_dim**-0.5
    model = Model("synthetic", geometry.heads, activation, tables, layers, Head("mean"), scale)
    found = shard(model, geometry.slices)
    copies = geometry.layers // len(layers)
    sharded = ShardedModel(
        replace(found.model, layers=found.model.layers * copies),
        replace(found.geometry, layers=geometry.layers),
        np.tile(found.head_order, (copies, 1)),
        np.tile(found.neuron_order, (copies, 1)),
    )
    matrices = tuple(
        tuple({name: _matrix(geometry, name, rng) for name in MATRICES["layer"]} for _ in range(geometry.slices))
        for _ in range(geometry.layers)
    )
    return QuantizedModel(sharded, "nested", matrices)


def _matrix(geometry: Geometry, name: str, rng: np.random.Generator) -> QuantizedMatrix:
    n, k = geometry.matrix_shape(name)
    codes = rng.integers(0, 256, (n, k), np.uint8)
    tables = {bits: np.linspace(-127, 127, 1 << bits).astype(np.int8) for bits in LEVEL_BITS}
    scale = np.full(n, k**-0.5 / 127, np.float32)
    outliers = _outliers(n, k, rng)
    codes[outliers.rows, outliers.columns] = 128
    return QuantizedMatrix({8: codes}, tables, scale, outliers)


def _outliers(n: int, k: int, rng: np.random.Generator) -> Outliers:
    at: NDArray[np.int64] = np.sort(rng.choice(n * k, int(n * k * OUTLIER_RATE), replace=False))
    values = rng.standard_normal(len(at)).astype(np.float16)
    return Outliers((at // k).astype(np.int32), (at % k).astype(np.int32), values)
