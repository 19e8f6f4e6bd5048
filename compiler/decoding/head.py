"""A decoder's vocabulary with slices at bits of their own: logits, and what a slice's bits do to distributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.forward import normalise
from stic.compiler.decoder.model import Array
from stic.compiler.decoding.quantize import QuantizedDecoder
from stic.runtime.architecture import tensors

EXACT = 32  # bits of a slice that is not quantised


class Head:
    """The last block's weights; each bitwidth is read once."""

    def __init__(self, quantized: QuantizedDecoder) -> None:
        self._quantized, decoder = quantized, quantized.cut.decoder
        self._head, self._last = decoder.architecture.head, len(quantized.shapes) - 1
        small = [t.role for t in tensors(decoder.architecture) if t.block == self._last and t.role != "head"]
        found = {role: decoder.weights.read(self._last, role) for role in small}
        self._small = {role: array for role, array in found.items() if array is not None}
        self._known: dict[int, list[Array]] = {}

    def at(self, bits: int) -> list[Array]:
        """Weights (rows, hidden) of each slice; EXACT: the model's own."""
        if bits not in self._known:
            self._known[bits] = self._own() if bits == EXACT else self._quantized.head(bits)
        return self._known[bits]

    def _own(self) -> list[Array]:
        cut, found = self._quantized.cut, []
        for index, matrices in enumerate(cut.slices(self._last)):
            rows, columns = cut.used(self._last, "head", index)
            found.append(matrices["head"][np.ix_(rows, columns)])
        return found

    def inner(self, x: Array) -> Array:
        """What the head's product reads, of the stream `x` (rows, hidden)."""
        return normalise(x, self._head.norms.input, self._small, "input")

    def part(self, inner: Array, index: int, bits: int) -> Array:
        """Logits of a slice's rows."""
        weights = self.at(bits)
        first = sum(len(part) for part in weights[:index])
        logits = inner @ weights[index].T
        if "head_bias" in self._small:
            logits += self._small["head_bias"][first : first + len(weights[index])]
        if self._head.softcap is not None:
            cap = np.float32(self._head.softcap)
            logits = np.tanh(logits / cap) * cap
        return np.asarray(logits, np.float32)

    def logits(self, x: Array, row: Sequence[int]) -> Array:
        """Logits (rows, vocabulary) of the stream `x` (rows, hidden), with each slice at its bits of `row`."""
        inner = self.inner(x)
        return np.concatenate([self.part(inner, index, bits) for index, bits in enumerate(row)], axis=1)

    def slice_losses(self, x: Array, bits: Sequence[int]) -> NDArray[np.float64]:
        """Loss (slices, bits) with one slice quantised, all else being exact, at the stream `x` (rows, hidden)."""
        inner, slices = self.inner(x), self._quantized.shapes[-1].slices
        exact = [self.part(inner, index, EXACT).astype(np.float64) for index in range(slices)]
        whole = np.concatenate(exact, axis=1)
        peak = whole.max(axis=1, keepdims=True)
        total = np.exp(whole - peak).sum(axis=1)
        found = np.zeros((slices, len(bits)))
        for index, place in np.ndindex(found.shape):
            own, other = exact[index] - peak, self.part(inner, index, bits[place]).astype(np.float64) - peak
            change = (np.exp(other) - np.exp(own)).sum(axis=1) / total  # of the sum that all are divided by
            found[index, place] = np.mean(
                (np.exp(own) * (own - other)).sum(axis=1) / total + np.log1p(np.maximum(change, -1 + 1e-12))
            )
        return np.maximum(found, 0.0)


def divergence(exact: Array, other: Array) -> float:
    """Mean Kullback-Leibler divergence of distributions (rows, vocabulary) from exact ones, both as logarithms."""
    return float(np.einsum("rv,rv->r", np.exp(exact), exact - other).mean(dtype=np.float64))


def log_softmax(logits: Array) -> Array:
    """Logarithms of the distributions (rows, vocabulary)."""
    rows = logits - logits.max(axis=1, keepdims=True)
    found: Array = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return found
