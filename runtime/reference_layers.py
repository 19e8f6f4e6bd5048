"""Layers as CPU kernels compute them, in the same order of float operations.

Activations are (features, tokens).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stic.runtime.arithmetic import activation, attention, fma, layer_norm, matmul, quantize
from stic.runtime.package import Matrix, Package

Floats = NDArray[np.float32]


class Layers:
    """The embedding and the layers of a package. From `keep` on methods say what another device does its way."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.shapes = package.shapes
        self.epsilon = float(package.plan["model"]["epsilon"])
        self.activation = activation(package.plan["model"]["activation"])

    def embed(self, ids: NDArray[np.int64], types: NDArray[np.int64]) -> Floats:
        """Look up (tokens,) ids and types in the tables; returns normalised (hidden, tokens)."""
        package, head = self.package, self.package.model
        h, width = package.hidden, self.shapes[0].padded_hidden
        length, padding = int(head["max_length"]), int(head["padding"])
        position = package.tensor(int(head["position_at"]), "<f2", length + (padding > 0), width)
        skipped = ids == padding - 1
        rows = np.where(skipped, length, np.cumsum(~skipped) - 1)
        token_type = package.tensor(int(head["token_type_at"]), "<f2", max(1, int(head["types"])), width)
        words, scales = package.embedding_rows(ids)
        place = position[rows, :h].astype(np.float32) + token_type[types, :h].astype(np.float32)
        word = words.astype(np.float32)
        x = (word + place if scales is None else fma(word, scales[:, None], place)).T
        gamma, beta = self._vector(head["embedding_gamma_at"]), self._vector(head["embedding_beta_at"])
        return self.keep(layer_norm(x, gamma, beta, self.epsilon))

    def layer(self, layer: int, x: Floats) -> Floats:
        """One encoder layer on x (hidden, tokens)."""
        row, shape = self.package.blocks[layer], self.shapes[layer]
        padding = ((0, shape.padded_hidden - shape.hidden), (0, 0))
        width, head_dim = shape.attention_width, shape.head_dim
        contexts = []
        for rows in self.split(layer, "qkv", np.pad(x, padding), int(row["qkv_scale_at"]), int(row["qkv_bias_at"])):
            qkv = self.keep(rows)
            context = np.zeros((width, x.shape[1]), np.float32)
            for h in range(shape.heads_per_slice):
                q, k, v = (qkv[part * width + h * head_dim :][:head_dim] for part in range(3))
                context[h * head_dim : (h + 1) * head_dim] = self.keep(self.attention(q, k, v))
            contexts.append(context)
        y = self.join(layer, "out", contexts, int(row["out_scale_at"]), int(row["out_bias_at"]))
        gamma, beta = self._vector(row["attention_gamma_at"]), self._vector(row["attention_beta_at"])
        x = self.keep(layer_norm(x + y, gamma, beta, self.epsilon))
        ups = self.split(layer, "up", np.pad(x, padding), int(row["up_scale_at"]), int(row["up_bias_at"]))
        hidden = [self.keep(self.activation(up)) for up in ups]
        y = self.join(layer, "down", hidden, int(row["down_scale_at"]), int(row["down_bias_at"]))
        gamma, beta = self._vector(row["post_gamma_at"]), self._vector(row["post_beta_at"])
        return self.keep(layer_norm(x + y, gamma, beta, self.epsilon))

    def _vector(self, at: int) -> Floats:
        """A per-hidden-feature vector of the trunk, without its padding."""
        return self.package.tensor(int(at), "<f4", self.shapes[0].padded_hidden)[: self.package.hidden]

    def _matrix(self, layer: int, s: int, name: str) -> Matrix:
        return self.package.matrix(layer, s, name, int(self.package.bits[layer, s]))

    def keep(self, x: Floats) -> Floats:
        """What is left of activations that a kernel has stored."""
        return x

    def attention(self, query: Floats, key: Floats, value: Floats) -> Floats:
        """Attention of one head, all (head_dim, tokens)."""
        return attention(query, key, value)

    def split(self, layer: int, name: str, x: Floats, scale_at: int, bias_at: int) -> list[Floats]:
        """Apply a matrix whose rows belong to slices to x (K, tokens): each slice gives its own (N, tokens)."""
        n, slices = self.shapes[layer].matrix(name)[0], self.shapes[layer].slices
        scale = self.package.tensor(scale_at, "<f4", slices, n)
        bias = self.package.tensor(bias_at, "<f4", slices, n)
        codes, token_scale = quantize(x)
        outputs = []
        for s in range(int(self.package.kept[layer])):
            matrix = self._matrix(layer, s, name)
            if matrix.weight is not None:
                outputs.append(bias[s][:, None] + matmul(matrix.weight, x))
            else:
                outliers = np.zeros((n, x.shape[1]), np.float32)
                _add_outliers(matrix, codes, scale[s], outliers)
                outputs.append(_finish(_products(matrix, codes), outliers, token_scale, scale[s], bias[s]))
        return outputs

    def join(self, layer: int, name: str, inputs: list[Floats], scale_at: int, bias_at: int) -> Floats:
        """Apply a matrix whose columns belong to slices: inputs (K, tokens) are quantised together, results summed."""
        n, width = self.shapes[layer].matrix(name)
        scale, bias = (self.package.tensor(at, "<f4", n) for at in (scale_at, bias_at))
        codes, token_scale = quantize(np.concatenate(inputs))
        total, outliers = np.zeros((n, codes.shape[1])), np.zeros((n, codes.shape[1]), np.float32)
        full = []
        for s, x in enumerate(inputs):
            matrix, part = self._matrix(layer, s, name), codes[s * width : (s + 1) * width]
            if matrix.weight is not None:
                full.append(matmul(matrix.weight, x))
            else:
                _add_outliers(matrix, part, scale, outliers)
                total += _products(matrix, part)
        some = len(full) < len(inputs)
        y = _finish(total, outliers, token_scale, scale, bias) if some else np.broadcast_to(bias[:, None], total.shape)
        for product in full:
            y = y + product
        return y[: self.package.hidden]


def _products(matrix: Matrix, codes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Sums of integer products (N, tokens), outliers taken by their code; exact in float64."""
    assert matrix.codes is not None and matrix.table is not None
    return matrix.table[matrix.codes].astype(np.float64) @ codes.astype(np.float64)


def _add_outliers(matrix: Matrix, codes: NDArray[np.int32], scale: Floats, sums: Floats) -> None:
    """Add to `sums` (N, tokens) what the exact weights give beyond their code's share, one after the other."""
    assert matrix.table is not None
    dense = np.float32(matrix.table[len(matrix.table) // 2])  # an outlier's code is 2^(bits - 1)
    beyond = fma(-scale[matrix.outlier_rows], dense, matrix.outlier_values)
    for row, column, weight in zip(matrix.outlier_rows, matrix.outlier_columns, beyond, strict=True):
        sums[row] = fma(weight, codes[column].astype(np.float32), sums[row])


def _finish(total: NDArray[np.float64], outliers: Floats, token_scale: Floats, scale: Floats, bias: Floats) -> Floats:
    """token_scale (tokens,) * (scale (N,) * total + outliers) + bias (N,), both (N, tokens)."""
    inner = fma(scale[:, None], total.astype(np.float32), outliers)
    return fma(token_scale, inner, bias[:, None])
