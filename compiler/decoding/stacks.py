"""A block's matrices with all slices together, as they are quantised: padded, slices below or beside each other.

Rows of qkv, up and head belong to slices, which stand below each other; columns of out and down do, and these stand
beside each other. The head, which may be most of a model, has a matrix for each slice: head0, head1, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array
from stic.compiler.decoding.cut import GROUP, Cut
from stic.compiler.quantization.grouped import GroupedMatrix, column_groups
from stic.runtime.format import JOINED
from stic.runtime.layout import Shape


@dataclass(frozen=True, eq=False)
class Stacks:
    """The matrices of one block."""

    cut: Cut
    block: int

    @property
    def shape(self) -> Shape:
        """How the block is cut."""
        return self.cut.shapes[self.block]

    def named(self, name: str) -> list[str]:
        """The matrices that are of one name of `Shape.matrices`."""
        return [f"head{index}" for index in range(self.shape.slices)] if name == "head" else [name]

    @property
    def listed(self) -> list[str]:
        """All matrices of the block."""
        return [matrix for name in self.shape.matrices for matrix in self.named(name)]

    def read(self) -> dict[str, Array]:
        """Read the block's weights, all slices together."""
        slices = list(self.cut.slices(self.block))
        if self.shape.kind == "vocabulary":
            return {f"head{index}": matrices["head"] for index, matrices in enumerate(slices)}
        return {
            name: np.concatenate([matrices[name] for matrices in slices], axis=1 if name in JOINED else 0)
            for name in self.shape.matrices
        }

    def groups(self, name: str) -> NDArray[np.intp]:
        """The group of each column."""
        columns = self.shape.matrix(name)[1]
        return column_groups([columns] * (self.shape.slices if name in JOINED else 1), GROUP)

    def part(self, whole: dict[str, GroupedMatrix], name: str, index: int) -> GroupedMatrix:
        """A slice's share of one of its matrices."""
        if name == "head":
            return whole[f"head{index}"]
        n, k = self.shape.matrix(name)
        own = slice(index * (k if name in JOINED else n), (index + 1) * (k if name in JOINED else n))
        return whole[name].part(slice(None), own) if name in JOINED else whole[name].part(own, slice(None))

    @cached_property
    def columns(self) -> dict[str, NDArray[np.intp]]:
        """By name, which padded columns hold the features that a matrix reads, in the order of the model."""
        found = {}
        for name in self.shape.matrices:
            used = [self.cut.used(self.block, name, index)[1] for index in range(self.shape.slices)]
            found[name] = np.flatnonzero(np.concatenate(used) if name in JOINED else used[0])
        return found

    def activations(self, rows: Array, name: str) -> Array:
        """Features (rows, K of the model) as the engine's products read them: int8 in groups."""
        count = len(self.groups(name))
        padded = np.zeros((len(rows), count), np.float32)
        padded[:, self.columns[name]] = rows
        groups = self.groups(name)
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        largest = np.maximum.reduceat(np.abs(padded), starts, axis=1)
        scale = (largest / np.float32(127))[:, groups]
        codes = np.rint(padded / np.where(scale > 0, scale, np.float32(1)))
        return np.asarray((codes * scale)[:, self.columns[name]], np.float32)

    def moments(self, left: Array, rows: Array, name: str) -> Array:
        """E[left rows^T] (K, K) over tokens, of features (tokens, K of the model), in a matrix's padded columns."""
        count, at = len(self.groups(name)), self.columns[name]
        found = np.zeros((count, count), np.float32)
        found[np.ix_(at, at)] = left.T @ rows / np.float32(len(rows))
        return found

    def roles(self, whole: dict[str, Array]) -> dict[str, Array]:
        """Weights by role, as the forward pass takes them, of matrices with all slices together."""
        found: dict[str, Array] = {}
        for name, matrix in whole.items():
            columns = self.columns[name]
            if name in JOINED:
                role = "output" if name == "out" else "down"
                found[role] = matrix[: self.shape.hidden, columns]
                continue
            n = self.shape.matrix(name)[0]
            for role, start, width in self._rows(name):
                rows = np.concatenate([index * n + start + np.arange(width[index]) for index in range(len(width))])
                found[role] = matrix[np.ix_(rows, columns)]
        return found

    def owners(self) -> dict[str, tuple[int, NDArray[np.intp]]]:
        """By role, the axis along which slices share a matrix, and which slice owns each row or column of it."""
        found: dict[str, tuple[int, NDArray[np.intp]]] = {}
        for name in self.shape.matrices:
            if name in JOINED:
                widths = [int(self.cut.used(self.block, name, index)[1].sum()) for index in range(self.shape.slices)]
                found["output" if name == "out" else "down"] = (1, _repeated(widths))
            elif name != "head":
                found |= {role: (0, _repeated(widths)) for role, _, widths in self._rows(name)}
        return found

    def _rows(self, name: str) -> list[tuple[str, int, list[int]]]:
        """(role, first row in a slice, rows of each slice) of what a matrix by rows is made of."""
        shape, count = self.shape, self.shape.slices
        if name == "qkv":
            queries, keys = shape.heads_per_slice * shape.head_dim, shape.key_heads_per_slice * shape.head_dim
            starts = (0, shape.attention_width, shape.attention_width + shape.key_width)
            roles = zip(("query", "key", "value"), starts, (queries, keys, keys), strict=True)
            return [(role, start, [width] * count) for role, start, width in roles]
        own = [int(self.cut.used(self.block, "down", index)[1].sum()) for index in range(count)]
        roles_of_up = ("gate", "up") if shape.gated else ("up",)
        return [(role, part * shape.ffn_width, own) for part, role in enumerate(roles_of_up)]


def _repeated(widths: list[int]) -> NDArray[np.intp]:
    return np.repeat(np.arange(len(widths)), widths)


@lru_cache(maxsize=8)
def stacks_of(cut: Cut, block: int) -> Stacks:
    """The matrices of a block."""
    return Stacks(cut, block)
