"""A decoder's passes in numpy, slowly and obviously: the answer that every engine must give, bit for bit.

Sums are taken in the order of `stic.runtime.arithmetic_decoder`, so that neither chunks nor threads change a bit.
Activations are (features, tokens) here; how kernels tile them is their own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stic.runtime.arithmetic import activation, fma, layer_norm, matmul, quantize, rms_norm, softcap
from stic.runtime.arithmetic_decoder import add_grouped, cached_attention, finish_grouped, quantize_grouped, rope
from stic.runtime.errors import InputError
from stic.runtime.format import ABSENT, CACHES, FLAGS, NORMS
from stic.runtime.layout import Shape
from stic.runtime.package import Matrix, Package

Floats = NDArray[np.float32]


@dataclass
class KeyHead:
    """What the cache holds for one key head, for T tokens of the context."""

    keys: NDArray[np.float16] | NDArray[np.int8]  # (head_dim, T)
    values: NDArray[np.float16] | NDArray[np.int8]  # (head_dim, T)
    key_scales: Floats | None  # (T,), of int8
    value_scales: Floats | None

    @classmethod
    def empty(cls, head_dim: int, tokens: int, cache: str) -> KeyHead:
        """Room for so many tokens."""
        keys, values = (np.zeros((head_dim, tokens), cache) for _ in range(2))
        if cache == "float16":
            return cls(keys, values, None, None)
        return cls(keys, values, np.zeros(tokens, np.float32), np.zeros(tokens, np.float32))

    def store(self, position: int, key: Floats, value: Floats) -> None:
        """Keep keys and values (head_dim, tokens) of the tokens from a position on."""
        places = slice(position, position + key.shape[1])
        if self.key_scales is None or self.value_scales is None:
            most = np.finfo(np.float16).max  # what is beyond stays finite
            self.keys[:, places], self.values[:, places] = np.clip(key, -most, most), np.clip(value, -most, most)
            return
        self.keys[:, places], self.key_scales[places] = quantize(key)
        self.values[:, places], self.value_scales[places] = quantize(value)

    def attend(self, query: Floats, position: int, window: int, cap: float | None) -> Floats:
        """Attention of the queries (queries, head_dim, tokens) of tokens from a position on."""
        scales = None
        if self.key_scales is not None and self.value_scales is not None:
            scales = (self.key_scales, self.value_scales)
        return cached_attention(query, self.keys, self.values, position, window, cap, scales)


class Block:
    """One block of a package: its tensors and its products."""

    def __init__(self, package: Package, number: int) -> None:
        self.package, self.number = package, number
        self.shape: Shape = package.shapes[number]
        self.entry = package.blocks[number]
        self.flags = {name for bit, name in enumerate(FLAGS) if int(self.entry["flags"]) >> bit & 1}
        self.epsilon = float(package.plan["model"]["epsilon"])

    def floats(self, role: str, *shape: int) -> Floats | None:
        """A tensor of the trunk; None where the model does not have it."""
        at = int(self.entry[f"{role}_at"])
        return None if at == ABSENT else self.package.tensor(at, "<f4", *shape)

    def norm(self, place: str) -> Callable[[Floats], Floats] | None:
        """The norm of a place, of hidden states; None where there is none."""
        hidden, width = self.shape.hidden, self.shape.padded_hidden
        gamma, beta = (self.floats(f"{place}_{part}", width) for part in ("gamma", "beta"))
        kind = NORMS[int(self.package.model["norm"])]
        return None if gamma is None else self._norm(kind, gamma[:hidden], None if beta is None else beta[:hidden])

    def head_norm(self, which: str, width: int) -> Callable[[list[Floats]], list[Floats]]:
        """The norm of "query" or "key", of a list of all heads; `width` features a slice, padded."""
        gamma, beta = (self.floats(f"{which}_norm_{part}", self.shape.slices, width) for part in ("gamma", "beta"))
        if gamma is None:
            return lambda heads: heads
        kind = "layer" if "layer_head_norm" in self.flags else "rms"

        def apply(heads: list[Floats]) -> list[Floats]:
            used = len(heads) // self.shape.slices * self.shape.head_dim
            own = gamma[:, :used].reshape(len(heads), -1)
            shift = None if beta is None else beta[:, :used].reshape(len(heads), -1)
            if "whole_head_norm" in self.flags:
                norm = self._norm(kind, own.reshape(-1), None if shift is None else shift.reshape(-1))
                return list(norm(np.concatenate(heads)).reshape(len(heads), self.shape.head_dim, -1))
            return [self._norm(kind, own[i], None if shift is None else shift[i])(head) for i, head in enumerate(heads)]

        return apply

    def _norm(self, kind: str, gamma: Floats, beta: Floats | None) -> Callable[[Floats], Floats]:
        if kind == "rms":
            return partial(rms_norm, gamma=gamma, epsilon=self.epsilon)
        return partial(
            layer_norm, gamma=gamma, beta=np.zeros_like(gamma) if beta is None else beta, epsilon=self.epsilon
        )

    def _matrix(self, slice_: int, name: str) -> Matrix:
        return self.package.matrix(self.number, slice_, name, int(self.package.bits[self.number, slice_]))

    def split(self, name: str, x: Floats) -> list[Floats]:
        """Apply a matrix whose rows belong to slices to x (features, tokens): each slice gives its own (N, tokens)."""
        (rows, columns), slices = self.shape.matrix(name), self.shape.slices
        scale, bias = self.floats(f"{name}_scale", slices, rows), self._bias(name, slices, rows)
        assert scale is not None
        x = np.pad(x, ((0, columns - len(x)), (0, 0)))
        quantised = quantize_grouped(x)
        outputs = []
        for s in range(slices):
            matrix = self._matrix(s, name)
            if matrix.weight is not None:
                outputs.append(bias[s][:, None] + matmul(matrix.weight, x))
                continue
            sums = _add(np.zeros((rows, x.shape[1]), np.float32), matrix, quantised)
            outputs.append(finish_grouped(sums, scale[s], bias[s]))
        return outputs

    def tied_rows(self, tokens: NDArray[np.int64], multiplier: np.float32) -> Floats:
        """Rows of the vocabulary as an embedding, (tokens, hidden)."""
        shape, hidden, group = self.shape, self.shape.hidden, int(self.package.header["group"])
        slices, rows = np.divmod(tokens, shape.rows_per_slice)
        scale = self.floats("head_scale", shape.slices, shape.head_width)
        found = np.empty((len(tokens), hidden), np.float32)
        assert scale is not None
        for s in np.unique(slices):
            matrix, own = self._matrix(int(s), "head"), rows[slices == s]
            if matrix.weight is not None:
                found[slices == s] = multiplier * matrix.weight[own, :hidden]
                continue
            assert matrix.codes is not None and matrix.table is not None and matrix.ratios is not None
            factor = (multiplier * scale[s, own])[:, None] * matrix.ratios[own].astype(np.float32)
            values = matrix.table[matrix.codes[own, :hidden]].astype(np.float32)
            found[slices == s] = np.repeat(factor, group, axis=1)[:, :hidden] * values
        return found

    def join(self, name: str, inputs: list[Floats]) -> Floats:
        """Apply a matrix whose columns belong to slices: inputs (K, tokens) each, results (hidden, tokens) summed."""
        rows = self.shape.matrix(name)[0]
        scale, bias = self.floats(f"{name}_scale", rows), self._bias(name, rows)
        assert scale is not None
        sums, full = np.zeros((rows, inputs[0].shape[1]), np.float32), []
        for s, x in enumerate(inputs):
            matrix = self._matrix(s, name)
            if matrix.weight is not None:
                full.append(matmul(matrix.weight, x))
            else:
                sums = _add(sums, matrix, quantize_grouped(x))
        some = len(full) < len(inputs)
        y = finish_grouped(sums, scale, bias) if some else np.broadcast_to(bias[:, None], sums.shape)
        for product in full:
            y = y + product
        return y[: self.shape.hidden]

    def _bias(self, name: str, *shape: int) -> Floats:
        bias = self.floats(f"{name}_bias", *shape)
        return np.zeros(shape, np.float32) if bias is None else bias


def _add(sums: Floats, matrix: Matrix, quantised: tuple[NDArray[np.int32], Floats]) -> Floats:
    """Add a slice's product with quantised inputs to `sums` (N, tokens)."""
    assert matrix.codes is not None and matrix.table is not None and matrix.ratios is not None
    return add_grouped(sums, matrix.table[matrix.codes], matrix.ratios, *quantised)


class ReferenceDecoder:
    """A decoder's package in numpy, with a text of its own.

    >>> decoder = ReferenceDecoder(Package.open("model.stic"))
    >>> logits = decoder.extend([504, 2365, 13])[-1]
    """

    def __init__(self, package: Package) -> None:
        model = package.model
        if not model["causal"]:
            raise InputError(f"{package.path} holds an encoder: use stic.runtime.reference")
        self.package = package
        self.position = 0  # tokens that the text has
        self.blocks = [Block(package, number) for number in range(len(package.shapes))]
        self.activation = activation(package.plan["model"]["activation"])
        cache, context = CACHES[int(model["cache"])], package.max_length
        self.cache = {
            block.number: [
                KeyHead.empty(block.shape.head_dim, context, cache)
                for _ in range(block.shape.slices * block.shape.key_heads_per_slice)
            ]
            for block in self.blocks
            if block.shape.kind == "attention"
        }

    def extend(self, ids: ArrayLike) -> Floats:
        """Extend the text by (tokens,) ids; returns the logits of each, (tokens, vocabulary).

        Raises InputError for tokens that the model does not have, or for more than its context has room for.
        """
        tokens = np.asarray(ids, np.int64).reshape(-1)
        if not 1 <= len(tokens) <= self.package.max_length - self.position:
            raise InputError(f"{len(tokens)} tokens after {self.position} in a context of {self.package.max_length}")
        if np.any((tokens < 0) | (tokens >= int(self.package.model["vocabulary"]))):
            raise InputError(f"a token id is outside the vocabulary of {self.package.model['vocabulary']}")
        x, parallel, logits = self._embed(tokens), None, np.zeros((0, len(tokens)), np.float32)
        for number, block in enumerate(self.blocks):
            before = x if parallel is None or "parallel" not in block.flags else parallel
            norm = block.norm("input")
            n = before if norm is None else norm(before)
            parallel = x
            if block.shape.kind == "vocabulary":
                logits = self._logits(block, n)
            else:
                y = self._attention(block, n) if number in self.cache else self._feed_forward(block, n)
                branch, post = block.norm("branch"), block.norm("post")
                x = x + (y if branch is None else branch(y))
                x = x if post is None else post(x)
        self.position += len(tokens)
        return np.ascontiguousarray(logits.T)

    def rewind(self, position: int) -> None:
        """Go back to a position at or before the present one."""
        if not 0 <= position <= self.position:
            raise InputError(f"the text has {self.position} tokens, and cannot go back to position {position}")
        self.position = position

    def _embed(self, tokens: NDArray[np.int64]) -> Floats:
        model = self.package.model
        if self.package.row_type == "tied":
            rows = self.blocks[-1].tied_rows(tokens, model["embedding_multiplier"])
            places = self._places(len(tokens))
            return np.ascontiguousarray((rows if places is None else rows + places).T)
        values, scales = self.package.embedding_rows(tokens)
        factor = np.full(len(tokens), model["embedding_multiplier"], np.float32)
        if scales is not None:
            factor = factor * scales
        rows = values.astype(np.float32)
        places = self._places(len(tokens))
        if places is None:
            return np.ascontiguousarray((rows * factor[:, None]).T)
        return np.ascontiguousarray(fma(rows, factor[:, None], places).T)

    def _places(self, tokens: int) -> Floats | None:
        """Learned rows of the next positions, (tokens, hidden); None where the model has none."""
        at, width = int(self.package.model["position_at"]), self.blocks[0].shape.padded_hidden
        if at == ABSENT:
            return None
        table = self.package.tensor(at, "<f2", self.package.max_length, width)
        return table[self.position : self.position + tokens, : self.package.hidden].astype(np.float32)

    def _turns(self, table: int, tokens: int) -> Floats:
        """Cosines, then sines, of the tokens' positions: (features, tokens)."""
        model = self.package.model
        sizes = int(model["rotaries"]), self.package.max_length, int(model["rotary_features"])
        tables = self.package.tensor(int(model["rotary_at"]), "<f4", *sizes)
        return tables[table, self.position : self.position + tokens].T

    def _attention(self, block: Block, n: Floats) -> Floats:
        """What a block of attention adds, before its branch norm; its keys and values are kept."""
        shape, tokens = block.shape, n.shape[1]
        a, c, head_dim = shape.attention_width, shape.key_width, shape.head_dim
        heads: dict[str, list[Floats]] = {"query": [], "key": [], "value": []}
        for part in block.split("qkv", n):
            for name, first, count in (
                ("query", 0, shape.heads_per_slice),
                ("key", a, shape.key_heads_per_slice),
                ("value", a + c, shape.key_heads_per_slice),
            ):
                heads[name] += [part[first + h * head_dim :][:head_dim] for h in range(count)]
        queries, keys = block.head_norm("query", a)(heads["query"]), block.head_norm("key", c)(heads["key"])
        if table := int(block.entry["rotary"]):
            turns = self._turns(table - 1, tokens)
            queries, keys = ([rope(head, turns) for head in part] for part in (queries, keys))
        group, contexts = shape.heads_per_slice // shape.key_heads_per_slice, []
        cap = float(block.entry["softcap"]) or None
        for h, store in enumerate(self.cache[block.number]):
            store.store(self.position, keys[h], heads["value"][h])
            own = np.stack(queries[h * group : (h + 1) * group])
            contexts.append(store.attend(own, self.position, int(block.entry["window"]), cap).reshape(-1, tokens))
        inputs = []
        for s in range(shape.slices):
            used = np.concatenate(contexts[s * shape.key_heads_per_slice : (s + 1) * shape.key_heads_per_slice])
            inputs.append(np.pad(used, ((0, a - len(used)), (0, 0))))
        return block.join("out", inputs)

    def _feed_forward(self, block: Block, n: Floats) -> Floats:
        width = block.shape.ffn_width
        ups = block.split("up", n)
        if block.shape.gated:
            return block.join("down", [self.activation(up[:width]) * up[width:] for up in ups])
        return block.join("down", [self.activation(up) for up in ups])

    def _logits(self, block: Block, n: Floats) -> Floats:
        each = block.shape.rows_per_slice
        rows = np.concatenate([part[:each] for part in block.split("head", n)])
        cap = float(block.entry["softcap"])
        return (softcap(rows, cap) if cap else rows)[: int(self.package.model["output_features"])]
