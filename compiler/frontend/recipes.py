"""Tensors made of stored ones by the recipes of a family, when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Array
from stic.compiler.frontend.families.family import Key, Recipe
from stic.runtime.architecture import Architecture, tensors
from stic.runtime.errors import UnsupportedModelError


class Stored(Protocol):
    """The tensors of a model's files, by the names that recipes have."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the files give it."""

    def rows(self, name: str, first: int, count: int) -> NDArray[Any]:
        """Rows of it as floats. Raises InputError for files that are damaged."""


def made_shape(stored: Stored, recipe: Recipe) -> tuple[int, ...]:
    """The shape of what `made` returns, from the files' headers; () where the shapes of what is stored do not fit."""
    shape = stored.shape(recipe.names[0])
    if recipe.stacked:
        shape = (len(recipe.names), *shape)
    if recipe.transposed:
        shape = shape[::-1]
    if recipe.rows is not None and shape:
        shape = (max(0, min(recipe.rows[1], shape[0] - recipe.rows[0])), *shape[1:])
    if recipe.through is None:
        return shape
    other = made_shape(stored, recipe.through)
    return (shape[0], other[0]) if len(shape) == len(other) == 2 and shape[1] == other[1] else ()


def made(stored: Stored, recipe: Recipe, first: int = 0, count: int | None = None) -> Array:
    """Return rows first .. first + count - 1 of a tensor (None: all that follow), which may be read only.

    Of a matrix that is stored as it is used, no other rows are read.
    """
    start, whole = (0, None) if recipe.rows is None else recipe.rows
    if recipe.transposed or recipe.interleaved or recipe.stacked:
        parts = [stored.rows(name, 0, stored.shape(name)[0]) for name in recipe.names]
        array = np.stack(parts) if recipe.stacked else parts[0]
        array = array.T if recipe.transposed else array
        array = array[start : None if whole is None else start + whole]
        array = halves(array, recipe.interleaved) if recipe.interleaved else array
        array = array[first : None if count is None else first + count]
    else:
        held = stored.shape(recipe.names[0])[0] - start if whole is None else whole
        array = stored.rows(recipe.names[0], start + first, held - first if count is None else count)
    found: Array = np.ascontiguousarray(array, np.float32)
    if recipe.offset:
        found = found + np.float32(recipe.offset)
    if recipe.factor != 1.0:
        found = found * np.float32(recipe.factor)
    return found if recipe.through is None else found @ made(stored, recipe.through).T


def halves(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows (heads * size, ...) whose rotary pairs are (2 i, 2 i + 1), with pairs (i, i + size / 2) instead."""
    size = len(array) // heads
    pairs = array.reshape(heads, size // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


@dataclass(frozen=True, eq=False)
class RecipeWeights:
    """`stic.compiler.decoder.model.Weights` of files, by recipes. The head of a tied model is its embedding."""

    stored: Stored
    recipes: Mapping[Key, Recipe]
    outer: Mapping[str, Key]  # embedding and head, by their role

    def read(self, block: int | None, role: str) -> Array | None:
        """See `stic.compiler.decoder.model.Weights.read`."""
        recipe = self.recipes.get((block, role))
        return None if recipe is None else made(self.stored, recipe)

    def rows(self, role: str, first: int, count: int) -> Array:
        """See `stic.compiler.decoder.model.Weights.rows`."""
        return made(self.stored, self.recipes[self.outer[role]], first, count)


def weights(architecture: Architecture, stored: Stored, recipes: Mapping[Key, Recipe], where: str) -> RecipeWeights:
    """Check that the files hold every tensor in its shape, by their headers alone.

    Raises UnsupportedModelError, which names `where`, what lacks or does not fit, and the shape that is needed.
    """
    outer, ends = {}, dict[str, int]()
    for tensor in tensors(architecture):
        key = (tensor.block, tensor.role)
        if tensor.role in ("embedding", "head"):
            outer["head"] = outer[tensor.role] = key
        if key not in recipes:
            if not tensor.optional:
                raise UnsupportedModelError(f"{where}: nothing says where the {tensor.role} of block {tensor.block} is")
            continue
        recipe = recipes[key]
        for name in (*recipe.names, *(recipe.through.names if recipe.through else ())):
            if name not in stored:
                raise UnsupportedModelError(
                    f"{where}: it has no weight '{name}', which the model of its configuration needs"
                )
        found = made_shape(stored, recipe)
        if found != tensor.shape:
            shape = stored.shape(recipe.names[0])
            raise UnsupportedModelError(
                f"{where}: weight '{recipe.names[0]}' has shape {shape}, which makes a {tensor.role} of {found}; the"
                f" configuration says {tensor.shape}"
            )
        if recipe.rows is not None:
            ends[recipe.names[0]] = max(ends.get(recipe.names[0], 0), sum(recipe.rows))
    for name, end in ends.items():
        if end not in stored.shape(name):  # rows, or columns where it is stored the other way round
            raise UnsupportedModelError(
                f"{where}: weight '{name}' has shape {stored.shape(name)}, of which the configuration uses {end} rows"
            )
    return RecipeWeights(stored, recipes, outer)
