"""The same run in numpy, slowly and obviously: the answer that every engine must give.

What a CPU computes between the embedding and the last layer equals this bit for bit: sums are taken in the same order
(`stic.runtime.arithmetic`). Layers that a GPU computes agree with it to the precision of what they store: devices and
their compilers order and fuse sums as they like. The head's pooling and linear maps, after which nothing is rounded to
integers, may differ in their last bits.

Activations are (features, tokens) here; how kernels tile them is their own affair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stic.runtime.arithmetic import activation
from stic.runtime.errors import InputError
from stic.runtime.format import ACTIVATIONS, POOLINGS
from stic.runtime.gpu_format import GpuArithmetic
from stic.runtime.layout import pad
from stic.runtime.package import Package
from stic.runtime.reference_gpu import GpuLayers
from stic.runtime.reference_layers import Layers

Floats = NDArray[np.float32]


class Reference:
    """Runs a package in numpy.

    >>> output = Reference(Package.open("model.stic")).run([101, 7592, 102])

    Layers that the package places on a GPU are computed as one with `gpu_arithmetic` does; None: as the CPU does.
    """

    def __init__(self, package: Package, gpu_arithmetic: GpuArithmetic | None = None) -> None:
        self.package = package
        self.cpu = Layers(package)
        self.gpu = GpuLayers(package, gpu_arithmetic) if package.gpu is not None and gpu_arithmetic else self.cpu

    def run(self, ids: ArrayLike, types: ArrayLike | None = None) -> Floats:
        """Run one input.

        ids: (tokens,) token ids; types: (tokens,) token types, default zeros.
        Returns (tokens, features) if the package pools nothing, else (features,).
        """
        head = self.package.model
        if head["causal"]:
            raise InputError(
                f"{self.package.path} holds a decoder, which one pass from tokens to one output does not run"
            )
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
        places = {"cpu": self.cpu, "gpu": self.gpu}
        kept = [(i, places[place]) for i, place in enumerate(self.package.places) if self.package.kept[i]]
        x = (kept[0][1] if kept else self.cpu).embed(tokens, kinds)
        for layer, layers in kept:
            x = layers.layer(layer, x)
        return self._head(x.T)

    def _head(self, x: Floats) -> Floats:
        head = self.package.model
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
        output: Floats = (y if pooling == "tokens" else y[0]).astype(np.float32)
        return output
