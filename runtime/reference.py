"""The same run in numpy, slowly and obviously: the answer that every engine must give.

Integers are exact. Floats may differ in the last bits, because sums are taken in another order; where such a
difference crosses a rounding boundary of an activation's quantisation, an integer differs by one.

Activations are (tokens, features) here; the tiled layout of the kernels is their own affair.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stic.runtime.errors import InputError
from stic.runtime.format import ACTIVATIONS, POOLINGS, pad
from stic.runtime.package import Package

Floats = NDArray[np.float32]


def quantize(x: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Quantise each row of x (tokens, features) to [-127, 127] symmetrically; returns codes and scales (tokens, 1)."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.clip(np.rint(x * inverse), -127, 127).astype(np.int32)
    return codes, (largest / np.float32(127)).astype(np.float32)


def layer_norm(x: Floats, gamma: Floats, beta: Floats, epsilon: float) -> Floats:
    """Normalise over the last axis."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = np.square(x - mean).mean(axis=-1, keepdims=True)
    return ((x - mean) / np.sqrt(variance + np.float32(epsilon)) * gamma + beta).astype(np.float32)


def erf(x: Floats) -> Floats:
    """Error function; absolute error below 1.5e-7 (Abramowitz and Stegun 1964, formula 7.1.26, in float64)."""
    z = np.abs(x.astype(np.float64))
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return (np.sign(x) * (1 - series * np.exp(-z * z))).astype(np.float32)


def activation(name: str) -> Callable[[Floats], Floats]:
    """One of ACTIVATIONS, elementwise."""
    functions: dict[str, Callable[[Floats], Floats]] = {
        "none": lambda x: x,
        "gelu": lambda x: x * np.float32(0.5) * (1 + erf(x * np.float32(np.sqrt(0.5)))),
        "gelu_tanh": lambda x: x * np.float32(0.5) * (1 + np.tanh(np.float32(0.79788456) * (x + 0.044715 * x**3))),
        "relu": lambda x: np.maximum(x, np.float32(0)),
        "tanh": np.tanh,
    }
    return functions[name]


class Reference:
    """Runs a package in numpy.

    >>> output = Reference(Package.open("model.stic")).run([101, 7592, 102])
    """

    def __init__(self, package: Package) -> None:
        self.package = package
        self.shape = package.shape
        self.epsilon = float(package.plan["model"]["epsilon"])
        self.activation = activation(package.plan["model"]["activation"])

    def run(self, ids: ArrayLike, types: ArrayLike | None = None) -> Floats:
        """Run one input.

        ids: (tokens,) token ids; types: (tokens,) token types, default zeros.
        Returns (tokens, features) if the package pools nothing, else (features,).
        """
        head = self.package.header
        tokens = np.asarray(ids, np.int64).reshape(-1)
        kinds = np.zeros_like(tokens) if types is None else np.asarray(types, np.int64).reshape(-1)
        if not 1 <= len(tokens) <= int(head["max_length"]):
            raise InputError(
                f"the input has {len(tokens)} tokens; this package takes 1 to {head['max_length']}"
                " (compile with a larger --max-length)"
            )
        if np.any((tokens < 0) | (tokens >= int(head["vocabulary"]))):
            raise InputError(f"a token id is outside the vocabulary of {head['vocabulary']}")
        if len(kinds) != len(tokens) or np.any((kinds < 0) | (kinds >= max(1, int(head["types"])))):
            raise InputError(f"token types must be {len(tokens)} numbers below {max(1, int(head['types']))}")
        x = self._embed(tokens, kinds)
        for layer in range(len(self.package.layers)):
            if self.package.layers[layer]["slices"]:
                x = self._layer(layer, x)
        return self._head(x)

    def _vector(self, at: int) -> Floats:
        """A per-hidden-feature vector of the trunk, without its padding."""
        return self.package.tensor(int(at), "<f4", self.shape.padded_hidden)[: self.shape.hidden]

    def _embed(self, ids: NDArray[np.int64], types: NDArray[np.int64]) -> Floats:
        package, head, width = self.package, self.package.header, self.shape.padded_hidden
        position = package.tensor(int(head["position_at"]), "<f2", int(head["max_length"]), width)
        token_type = package.tensor(int(head["token_type_at"]), "<f2", max(1, int(head["types"])), width)
        h = self.shape.hidden
        x = package.embedding_rows(ids) + position[: len(ids), :h] + token_type[types, :h]
        gamma, beta = self._vector(head["embedding_gamma_at"]), self._vector(head["embedding_beta_at"])
        return layer_norm(x.astype(np.float32), gamma, beta, self.epsilon)

    def _products(
        self, layer: int, s: int, name: str, x: Floats, codes: NDArray[np.int32], token_scale: Floats
    ) -> tuple[NDArray[np.float64], Floats]:
        """Multiply slice `s` of a matrix with its input x (tokens, K), quantised as codes * token_scale.

        Returns the sums of integer products, which are exact in float64, and the sums over exact weights,
        both (tokens, N).
        """
        matrix = self.package.matrix(layer, s, name, int(self.package.bits[layer, s]))
        n = self.shape.matrix(name)[0]
        if matrix.weight is not None:
            return np.zeros((len(x), n)), x @ matrix.weight.T
        assert matrix.codes is not None and matrix.table is not None
        weight = matrix.table[matrix.codes].astype(np.float64)
        weight[matrix.outlier_rows, matrix.outlier_columns] = 0
        exact = np.zeros((n, len(x)), np.float32)
        values = matrix.outlier_values[:, None] * codes.T[matrix.outlier_columns].astype(np.float32)
        np.add.at(exact, matrix.outlier_rows, values * token_scale.T)
        return codes.astype(np.float64) @ weight.T, exact.T

    def _split(self, layer: int, name: str, x: Floats, scale_at: int, bias_at: int) -> list[Floats]:
        """Apply a matrix whose rows belong to slices: each slice gives its own (tokens, N)."""
        n, slices = self.shape.matrix(name)[0], int(self.package.header["slices"])
        scale = self.package.tensor(scale_at, "<f4", slices, n)
        bias = self.package.tensor(bias_at, "<f4", slices, n)
        codes, token_scale = quantize(x)
        outputs = []
        for s in range(int(self.package.layers[layer]["slices"])):
            sums, exact = self._products(layer, s, name, x, codes, token_scale)
            outputs.append(token_scale * (scale[s] * sums.astype(np.float32)) + exact + bias[s])
        return outputs

    def _join(self, layer: int, name: str, inputs: list[Floats], scale_at: int, bias_at: int) -> Floats:
        """Apply a matrix whose columns belong to slices: inputs (tokens, K) are quantised together, results summed."""
        n, width = self.shape.matrix(name)
        codes, token_scale = quantize(np.concatenate(inputs, axis=1))
        sums, exact = np.zeros((len(codes), n)), np.zeros((len(codes), n), np.float32)
        for s, x in enumerate(inputs):
            part = codes[:, s * width : (s + 1) * width]
            more_sums, more_exact = self._products(layer, s, name, x, part, token_scale)
            sums += more_sums
            exact += more_exact
        scale, bias = (self.package.tensor(at, "<f4", n) for at in (scale_at, bias_at))
        return (token_scale * (scale * sums.astype(np.float32)) + exact + bias)[:, : self.shape.hidden]

    def _layer(self, layer: int, x: Floats) -> Floats:
        row, shape = self.package.layers[layer], self.shape
        padded = np.pad(x, ((0, 0), (0, shape.padded_hidden - shape.hidden)))
        width, head_dim = shape.attention_width, shape.head_dim
        contexts = []
        for qkv in self._split(layer, "qkv", padded, int(row["qkv_scale_at"]), int(row["qkv_bias_at"])):
            context = np.zeros((len(x), width), np.float32)
            for h in range(shape.heads_per_slice):
                q, k, v = (qkv[:, part * width + h * head_dim :][:, :head_dim] for part in range(3))
                scores = q @ k.T
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                context[:, h * head_dim : (h + 1) * head_dim] = weights / weights.sum(axis=1, keepdims=True) @ v
            contexts.append(context)
        y = self._join(layer, "out", contexts, int(row["out_scale_at"]), int(row["out_bias_at"]))
        x = layer_norm(
            x + y, self._vector(row["attention_gamma_at"]), self._vector(row["attention_beta_at"]), self.epsilon
        )
        padded = np.pad(x, ((0, 0), (0, shape.padded_hidden - shape.hidden)))
        ups = self._split(layer, "up", padded, int(row["up_scale_at"]), int(row["up_bias_at"]))
        hidden = [self.activation(up) for up in ups]
        y = self._join(layer, "down", hidden, int(row["down_scale_at"]), int(row["down_bias_at"]))
        return layer_norm(x + y, self._vector(row["ffn_gamma_at"]), self._vector(row["ffn_beta_at"]), self.epsilon)

    def _head(self, x: Floats) -> Floats:
        head = self.package.header
        pooling = POOLINGS[int(head["pooling"])]
        y = {"tokens": x, "first": x[:1], "mean": x.mean(axis=0, keepdims=True)}[pooling]
        for dense in self.package.dense:
            rows, columns = int(dense["rows"]), int(dense["columns"])
            weight = self.package.tensor(int(dense["weight_at"]), "<f2", pad(rows, 16), pad(columns, 16))
            bias = self.package.tensor(int(dense["bias_at"]), "<f4", pad(rows, 16))
            y = y @ weight[:rows, :columns].astype(np.float32).T + bias[:rows]
            y = activation(ACTIVATIONS[int(dense["activation"])])(y)
        if head["normalize"]:
            y = y / np.maximum(np.linalg.norm(y, axis=-1, keepdims=True), np.float32(1e-12))
        return (y if pooling == "tokens" else y[0]).astype(np.float32)
