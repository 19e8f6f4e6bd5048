"""Quantise shards: every weight becomes `scale[row] * table[code]`, a few outliers stay float16.

Two quantizers. `nested` (the default) stores one 8-bit code a weight whose first b bits are the code at b bits, so that
one store serves 2 to 8 bits. `gobo` (arXiv 2005.03842, as STI uses it) fits an independent dictionary for every
bitwidth and is the published yardstick.

Tables hold int8, so that kernels can look codes up and multiply integers; the scale, float32 per output row, carries
the rest. Rows of `out` and `down` share their scale between the slices of a layer, since their sums run over slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stic.compiler.model import Array, Model
from stic.compiler.offers import QUANTIZERS, Quantizer
from stic.compiler.quantization.codebook import Fit
from stic.compiler.quantization.gobo import fit_gobo
from stic.compiler.quantization.moments import input_moments
from stic.compiler.quantization.nested import fit_nested
from stic.compiler.sharding import ShardedModel, assemble, shard_matrices
from stic.runtime.errors import InputError
from stic.runtime.format import FULL, JOINED, LEVEL_BITS, MATRICES
from stic.runtime.layout import Shape, levels_of, record_layout

OUTLIER_RATE = 0.0025  # share of weights that `nested` keeps exactly: twice as many buy less than their bytes and time
MOMENT_FLOOR = 0.01  # added to every input's mean square, as a share of their mean
CORRELATION_SHRINKAGE = 0.1  # what is taken from measured correlations
Moments = Mapping[tuple[int, str], Array]


@dataclass(frozen=True, eq=False)
class Outliers:
    """Weights kept exactly, sorted by row, then column."""

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """One (N, K) matrix of one shard at every bitwidth.

    At an outlier the code is 2^(bits - 1), which is its own prefix at every bitwidth: kernels take it for granted when
    they replace the code's share of a product by the outlier's.
    """

    codes: Mapping[int, NDArray[np.uint8]]  # nested: {8: (N, K)}; otherwise one (N, K) a bitwidth
    luts: Mapping[int, NDArray[np.int8]]  # bits -> (2^bits,), at most 127 in magnitude
    scale: Array  # (N,); 0 in rows that are padding
    outliers: Outliers
    centroids: Mapping[int, Array] = field(default_factory=dict)  # the tables before rounding to int8

    def __post_init__(self) -> None:
        for bits, codes in self.codes.items():
            if np.any(codes[self.outliers.rows, self.outliers.columns] != 1 << (bits - 1)):
                raise ValueError(f"an outlier has another code than {1 << (bits - 1)} at {bits} bits")

    def codes_at(self, bits: int) -> NDArray[np.uint8]:
        """Return the codes (N, K) at `bits`, each below 2^bits."""
        if bits in self.codes:
            return self.codes[bits]
        return self.codes[LEVEL_BITS[-1]] >> np.uint8(LEVEL_BITS[-1] - bits)


@dataclass(frozen=True, eq=False)
class MatrixLevel:
    """One (N, K) matrix at one bitwidth, as a record has it."""

    codes: NDArray[np.uint8]  # (N, K), below 2^bits
    table: NDArray[np.int8]  # (2^bits,)
    outliers: Outliers
    ratios: NDArray[np.uint8] | None = None  # (N, groups), of a store in groups


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A sharded model with the quantised form of every matrix."""

    sharded: ShardedModel
    quantizer: Quantizer
    matrices: tuple[tuple[Mapping[str, QuantizedMatrix], ...], ...]  # [layer][slice][name]

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.sharded.model.name

    @property
    def nested(self) -> bool:
        """Whether codes of fewer bits are prefixes of codes of more bits."""
        return self.quantizer == "nested"

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """How each block is cut."""
        return self.sharded.geometry.shapes

    def matrix(self, block: int, index: int, name: str) -> QuantizedMatrix:
        """Return one matrix of slice `index`."""
        return self.matrices[block][index][name]

    def level(self, block: int, index: int, name: str, bits: int) -> MatrixLevel:
        """Return one matrix of slice `index` at one bitwidth."""
        matrix = self.matrix(block, index, name)
        return MatrixLevel(matrix.codes_at(bits), matrix.luts[bits], matrix.outliers)

    def weights(self, block: int, index: int) -> dict[str, Array]:
        """The matrices of a slice before they were quantised, (N, K) float32, padded with zeros."""
        return shard_matrices(self.sharded, block, index)


def quantize(
    sharded: ShardedModel,
    quantizer: Quantizer = "nested",
    moments: Moments | None = None,
    outlier_rate: float = OUTLIER_RATE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizedModel:
    """Quantise every shard at 2..8 bits.

    `moments` come from `input_moments` on text like what the model will read; left out, from random tokens.
    `outlier_rate` is the share of weights kept exactly. gobo takes neither. `progress` is told layers done
    and their total. Raises InputError for an unknown quantizer or weights that are not finite.
    """
    if quantizer not in QUANTIZERS:
        raise InputError(f"there is no quantizer {quantizer!r}; try one of {', '.join(QUANTIZERS)}")
    if quantizer == "gobo":
        moments = None
    elif moments is None:
        moments = input_moments(sharded)
    layers = []
    for number in range(sharded.geometry.layers):
        slices: list[dict[str, QuantizedMatrix]] = [{} for _ in range(sharded.geometry.slices)]
        matrices = [shard_matrices(sharded, number, index) for index in range(sharded.geometry.slices)]
        for name in MATRICES["layer"]:
            _quantize_matrices(sharded, number, name, matrices, slices, moments, outlier_rate)
        layers.append(tuple(slices))
        progress(len(layers), sharded.geometry.layers)
    return QuantizedModel(sharded, quantizer, tuple(layers))


def _quantize_matrices(
    sharded: ShardedModel,
    layer: int,
    name: str,
    matrices: list[dict[str, Array]],
    slices: list[dict[str, QuantizedMatrix]],
    moments: Moments | None,
    outlier_rate: float,
) -> None:
    """Quantise one matrix of all slices of a layer, together where they share their scale; no moments: by GOBO."""
    g = sharded.geometry
    every = list(range(g.slices))
    for group in [every] if name in JOINED else [[index] for index in every]:
        used = [g.used(name, index) for index in group]
        weights = [matrices[index][name][np.ix_(*sides)] for index, sides in zip(group, used, strict=True)]
        if not all(np.isfinite(w).all() for w in weights):
            raise InputError(f"{sharded.model.name}: layer {layer}, {name} holds NaN or infinite weights")
        if moments is None:
            scale, fits = fit_gobo(weights)
        else:
            blocks = moments[layer, name]
            inputs = [
                _damped(blocks[index % len(blocks)], int(columns.sum()))
                for index, (_, columns) in zip(group, used, strict=True)
            ]
            scale, fits = fit_nested(weights, inputs, outlier_rate)
        for index, (rows, columns_used), fit in zip(group, used, fits, strict=True):
            slices[index][name] = _padded(fit, scale, matrices[index][name], rows, columns_used)


def _damped(moments: Array, count: int) -> Array:
    """The moments of the first `count` inputs, shrunk a little towards independent, equally large ones.

    The shrinkage covers for the tokens that were not measured.
    """
    inner = moments[:count, :count]
    diagonal = np.diag(inner)
    mean = float(diagonal.mean()) if count else 1.0
    base = (1 - CORRELATION_SHRINKAGE) * inner + CORRELATION_SHRINKAGE * np.diag(diagonal)
    if not mean > 0:  # nothing was measured, or not finite
        return np.eye(count, dtype=np.float32)
    return ((base + MOMENT_FLOOR * mean * np.eye(count)) / mean).astype(np.float32)


def _padded(
    fit: Fit, scale: Array, matrix: Array, rows: NDArray[np.bool_], columns: NDArray[np.bool_]
) -> QuantizedMatrix:
    """Put a fit back into the padded matrix; padding gets the code nearest to 0, padding rows the scale 0."""
    codes = {}
    for bits, inner in fit.codes.items():
        codes[bits] = np.full(matrix.shape, np.abs(fit.luts[bits].astype(np.int16)).argmin(), np.uint8)
        codes[bits][np.ix_(rows, columns)] = np.where(fit.outlier, 1 << (bits - 1), inner)
    full_scale = np.zeros(len(rows), np.float32)
    full_scale[rows] = scale
    at_row, at_column = np.nonzero(fit.outlier)
    outlier_rows = np.flatnonzero(rows)[at_row].astype(np.int32)
    outlier_columns = np.flatnonzero(columns)[at_column].astype(np.int32)
    values = matrix[outlier_rows, outlier_columns].astype(np.float16)
    outliers = Outliers(outlier_rows, outlier_columns, values)
    return QuantizedMatrix(codes, fit.luts, full_scale, outliers, fit.centroids)


def dequantize(
    quantized: QuantizedModel, layer: int, index: int, name: str, bits: int, exact_tables: bool = False
) -> Array:
    """Return the (N, K) float32 weights that the engine computes with at `bits`: 2..8, 16 (float16) or 32 (as given).

    Padding is 0. `exact_tables` takes the tables before their rounding to int8: GOBO as published.
    """
    sharded = quantized.sharded
    if bits in (16, 32):
        weights = shard_matrices(sharded, layer, index)[name]
        return weights.astype(np.float16).astype(np.float32) if bits == 16 else weights
    if bits not in LEVEL_BITS:
        raise InputError(f"there is no level of {bits} bits; try one of {LEVEL_BITS}, 16 or 32")
    matrix = quantized.matrix(layer, index, name)
    table = matrix.centroids[bits] if exact_tables else matrix.luts[bits].astype(np.float32)
    weights = matrix.scale[:, None] * table[matrix.codes_at(bits)]
    weights[:, ~sharded.geometry.used(name, index)[1]] = 0
    weights[matrix.outliers.rows, matrix.outliers.columns] = matrix.outliers.values
    return weights


def uniform(quantized: QuantizedModel, bits: int, exact_tables: bool = False) -> Model:
    """Return the model with every shard at `bits`."""
    return assemble(
        quantized.sharded, lambda layer, index, name: dequantize(quantized, layer, index, name, bits, exact_tables)
    )


def record_bytes(quantized: QuantizedModel, layer: int, index: int, level: int, full_bits: int = 16) -> int:
    """Return the size of one record of the store: planes, tables, and outliers where the level has them."""
    matrices = quantized.matrices[layer][index]
    counts = tuple(len(matrices[name].outliers) for name in MATRICES["layer"])
    return record_layout(quantized.sharded.geometry.shape, level, quantized.nested, full_bits, counts).size


def store_bytes(quantized: QuantizedModel, bits: tuple[int, ...], full_bits: int = 16) -> int:
    """Return the bytes of the records that serve all the given bitwidths, scales included."""
    levels = sorted({level for b in bits for level in levels_of(b, quantized.nested)})
    g = quantized.sharded.geometry
    records = sum(
        record_bytes(quantized, layer, index, level, full_bits)
        for layer in range(g.layers)
        for index in range(g.slices)
        for level in levels
    )
    return records + (_scale_bytes(quantized) if levels != [FULL] else 0)


def _scale_bytes(quantized: QuantizedModel) -> int:
    """Row scales: GOBO has none of its own, one float32 a matrix in their place."""
    g = quantized.sharded.geometry
    if not quantized.nested:
        return 4 * g.layers * g.slices * len(MATRICES["layer"])
    rows = {name: g.matrix_shape(name)[0] * (1 if name in JOINED else g.slices) for name in MATRICES["layer"]}
    return 4 * g.layers * sum(rows.values())


def bytes_per_weight(quantized: QuantizedModel, bits: int) -> float:
    """Return stored bytes for a model at `bits` over its true weights: planes, dictionaries, scales and outliers."""
    g = quantized.sharded.geometry
    weights = g.layers * (4 * g.heads * g.head_dim + 2 * g.ffn) * g.hidden
    return store_bytes(quantized, (bits,), bits if bits in (16, 32) else 16) / weights


def outlier_rate(quantized: QuantizedModel) -> dict[str, float]:
    """Return the achieved share of outliers of each kind of matrix."""
    counts = {name: 0 for name in MATRICES["layer"]}
    for layer in quantized.matrices:
        for matrices in layer:
            for name in MATRICES["layer"]:
                counts[name] += len(matrices[name].outliers)
    g = quantized.sharded.geometry
    attention, ffn = g.heads * g.head_dim * g.hidden, g.ffn * g.hidden
    sizes = {"qkv": 3 * attention, "out": attention, "up": ffn, "down": ffn}
    return {name: counts[name] / (g.layers * sizes[name]) for name in MATRICES["layer"]}
