"""A Hugging Face directory with a decoder: config.json, safetensors (sharded too), and its text files, to `Decoder`.

Only headers are read here; weights are when they are asked for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.decoder.model import Decoder
from stic.compiler.frontend.decoder_text import read_text
from stic.compiler.frontend.families.config import Config
from stic.compiler.frontend.families.family import Family, Made, Names, recipes
from stic.compiler.frontend.families.known import FAMILIES, family_of
from stic.compiler.frontend.folders import name_of, nothing_to_read
from stic.compiler.frontend.recipes import RecipeWeights, weights
from stic.compiler.frontend.safetensors import Weights
from stic.compiler.frontend.sentence_modules import read_object
from stic.compiler.frontend.sharded_safetensors import INDEX, WEIGHTS, ShardedWeights, open_weights
from stic.runtime.errors import InputError, UnsupportedModelError

_COMPARED_ROWS = 4096  # of head and embedding at a time
_OUTER = ("architectures", "eos_token_id", "quantization_config")  # said beside it, of both
_WITH_TEXT = {"gemma3": "gemma3_text"}  # models of text and images -> the family of their text_config


def read_decoder(folder: Path) -> Decoder:
    """Open a directory.

    Raises UnsupportedModelError for a model that stic cannot compute, by the key or the tensor that says so, and
    InputError for files that are missing or damaged.
    """
    config = read_config(folder)
    family = family_of(config.raw("model_type", None), config.where)
    config = config.with_defaults(family.defaults)
    found = family.make(config)
    names = family.names(config, found.architecture)
    config.settle(family.ignored)
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise InputError(nothing_to_read(folder))
    files = _Files(open_weights(folder), family, str(folder))
    found, names = _head(found, names, files)
    text = read_text(folder, config, found.architecture.vocabulary)
    architecture = replace(found.architecture, bos=text.bos, stops=text.stops)
    held = weights(architecture, files, recipes(found, names), str(folder))
    files.all_used(held)
    return Decoder(name_of(folder), architecture, held, text.text, folder)


def is_decoder(folder: Path) -> bool:
    """Whether a directory's configuration names a family of decoders. Raises InputError where it cannot be read."""
    kind = read_config(folder).raw("model_type", None)
    return any(kind in family.types for family in FAMILIES)


def read_config(folder: Path) -> Config:
    """The configuration of a directory's text model; no defaults are known yet."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise InputError(f"{folder} is no directory; give the one that holds the model's config.json and weights")
    if not path.is_file():
        raise InputError(f"{folder} has no config.json, which says what its weights are: put the model's there")
    keys = read_object(path)
    kind = keys.get("model_type")
    if isinstance(kind, str) and kind in _WITH_TEXT:
        text = keys.get("text_config")
        if not isinstance(text, dict):
            raise InputError(f"{path}: model_type is {kind!r}, but it has no text_config; download it again")
        outer = {key: value for key, value in keys.items() if key in _OUTER}
        keys = {**text, **outer, "model_type": _WITH_TEXT[kind]}
    return Config(keys, str(path))


def _head(found: Made, names: Names, files: _Files) -> tuple[Made, Names]:
    """Tie the head where the files have none of its own, or one that equals the embedding, whatever the key says."""
    embedding, head = names.outer["embedding"], names.outer["head"]
    name, own = embedding.recipe(0).names[0], head.recipe(0).names[0]
    tied = own not in files or (name in files and files.same(name, own))
    if tied and own in files:
        files.ignore(own)
    through = embedding.through is not None or head.through is not None
    if tied and through:  # one table, of which embedding and head are different maps
        names = replace(names, outer={**names.outer, "head": replace(head, name=embedding.name)})
    last = replace(found.architecture.head, tied=tied and not through)
    architecture = replace(found.architecture, blocks=(*found.architecture.blocks[:-1], last))
    return replace(found, architecture=architecture), names


class _Files:
    """Tensors under the names of the family's stems, in the spelling that the files have."""

    def __init__(self, files: Weights | ShardedWeights, family: Family, where: str) -> None:
        self._files, self._family, self._where = files, family, where
        self._names = frozenset(files.names)
        self._ignored: set[str] = set()

    def _spelled(self, name: str) -> str | None:
        """The name in the files; None if they lack it."""
        if name in self._names:
            return name
        for ours, theirs in (*self._family.spellings, (self._family.prefix, "")):
            if name.startswith(ours) and (other := theirs + name.removeprefix(ours)) in self._names:
                return other
        return None

    def __contains__(self, name: str) -> bool:
        return self._spelled(name) is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """See `stic.compiler.frontend.recipes.Stored`."""
        return self._files.shape(self._spelled(name) or name)

    def rows(self, name: str, first: int, count: int) -> NDArray[Any]:
        """See `stic.compiler.frontend.recipes.Stored`."""
        return self._files.rows(self._spelled(name) or name, first, count)

    def same(self, one: str, other: str) -> bool:
        """Whether two matrices are equal; it reads a part of them at a time."""
        shape = self.shape(one)
        return shape == self.shape(other) and all(
            np.array_equal(self.rows(one, first, _COMPARED_ROWS), self.rows(other, first, _COMPARED_ROWS))
            for first in range(0, shape[0], _COMPARED_ROWS)
        )

    def ignore(self, name: str) -> None:
        """Leave out a tensor that stands twice."""
        self._ignored.add(name)

    def all_used(self, held: RecipeWeights) -> None:
        """Raise UnsupportedModelError for a tensor that the model has no place for."""
        family, used = self._family, set(self._ignored)
        for recipe in held.recipes.values():
            used.update(recipe.names, recipe.through.names if recipe.through else ())
        spelled = {self._spelled(name) for name in used}
        for name in self._files.names:
            if name not in spelled and not name.endswith(family.buffers) and not name.startswith(family.apart):
                raise UnsupportedModelError(
                    f"{self._where}: it holds '{name}', which the model of config.json has no place for: mend"
                    " config.json if the model needs it, or save the model without it"
                )
