"""Layers as a GPU computes them: rounded where they are stored, in no particular order of sums.

Activations are stored in the precision that the package says; arithmetic is in float32. Weights are multiplied in int8
like on a CPU where the device has such products, or else in float32, with activations as they are ("float").
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stic.runtime.arithmetic import quantize
from stic.runtime.gpu_format import GpuArithmetic
from stic.runtime.package import Matrix, Package
from stic.runtime.reference_layers import Floats, Layers

ARITHMETICS: tuple[GpuArithmetic, ...] = get_args(GpuArithmetic)


class GpuLayers(Layers):
    """The embedding and the layers of a package with a GPU part."""

    def __init__(self, package: Package, arithmetic: GpuArithmetic) -> None:
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"the arithmetic of a GPU is one of {', '.join(ARITHMETICS)}, not {arithmetic!r}")
        assert package.gpu is not None
        super().__init__(package)
        self.storage = np.dtype(package.gpu.storage)
        self.arithmetic = arithmetic

    def layer(self, layer: int, x: Floats) -> Floats:
        """One encoder layer on x (hidden, tokens), which may come from a CPU in float32."""
        return super().layer(layer, self.keep(x))

    def keep(self, x: Floats) -> Floats:
        """Round to the stored precision."""
        return x.astype(self.storage).astype(np.float32)

    def attention(self, query: Floats, key: Floats, value: Floats) -> Floats:
        """Softmax attention of one head, all (head_dim, tokens)."""
        scores = key.T @ query
        powers = np.exp(scores - scores.max(axis=0))
        context: Floats = value @ (powers / powers.sum(axis=0))
        return context

    def split(self, layer: int, name: str, x: Floats, scale_at: int, bias_at: int) -> list[Floats]:
        """Apply a matrix whose rows belong to slices to x (K, tokens): each slice gives its own (N, tokens)."""
        n, slices = self.shapes[layer].matrix(name)[0], self.shapes[layer].slices
        scale = self.package.tensor(scale_at, "<f4", slices, n)
        bias = self.package.tensor(bias_at, "<f4", slices, n)
        codes, token_scale = quantize(x)
        outputs = []
        for s in range(int(self.package.kept[layer])):
            product = self._product(self._matrix(layer, s, name), scale[s], x, codes, token_scale)
            outputs.append((bias[s][:, None] + product).astype(np.float32))
        return outputs

    def join(self, layer: int, name: str, inputs: list[Floats], scale_at: int, bias_at: int) -> Floats:
        """Apply a matrix whose columns belong to slices: results of all inputs (K, tokens) are summed."""
        n, width = self.shapes[layer].matrix(name)
        scale, bias = (self.package.tensor(at, "<f4", n) for at in (scale_at, bias_at))
        codes, token_scale = quantize(np.concatenate(inputs))
        y = np.broadcast_to(bias[:, None].astype(np.float64), (n, codes.shape[1]))
        for s, x in enumerate(inputs):
            part = codes[s * width : (s + 1) * width]
            y = y + self._product(self._matrix(layer, s, name), scale, x, part, token_scale)
        return y.astype(np.float32)[: self.package.hidden]

    def _product(
        self, matrix: Matrix, scale: Floats, x: Floats, codes: NDArray[np.int32], token_scale: Floats
    ) -> NDArray[np.float64]:
        """A shard's matrix (N, K) times x (K, tokens), or times the int8 `codes` of x and their scales."""
        if matrix.weight is not None:
            return matrix.weight.astype(np.float64) @ x
        assert matrix.codes is not None and matrix.table is not None
        weight = scale[:, None].astype(np.float64) * matrix.table[matrix.codes]
        weight[matrix.outlier_rows, matrix.outlier_columns] = matrix.outlier_values
        return weight @ x if self.arithmetic == "float" else (weight @ codes) * token_scale
