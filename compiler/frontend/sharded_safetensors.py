"""Weights of a Hugging Face directory: model.safetensors, or the shards that model.safetensors.index.json lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stic.compiler.frontend.safetensors import Weights
from stic.runtime.errors import InputError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def open_weights(folder: Path) -> Weights | ShardedWeights:
    """Open the weights in `folder`; one whole file is preferred, as transformers does. Raises InputError."""
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        return ShardedWeights(folder / INDEX)
    return Weights(folder / WEIGHTS)


class ShardedWeights:
    """The tensors of several files; otherwise as `Weights`."""

    def __init__(self, index: Path) -> None:
        """Read the index and every shard's header. InputError if one is missing or damaged, or they contradict."""
        self._index = index
        listed, total = _listing(index)
        shards = {file: Weights(index.with_name(file)) for file in sorted(set(listed.values()))}
        held = sum(shard.data_bytes for shard in shards.values())
        if total and total != held:
            raise InputError(
                f"{index}: its metadata promises {total} bytes of weights, its shards hold {held}; download them again,"
                " or take total_size out of it if that was never right"
            )
        self._shards: dict[str, Weights] = {}  # by the tensor's full name
        homes: dict[str, str] = {}
        for file, shard in shards.items():
            for name in shard.names:
                if name in homes:
                    raise InputError(f"{index}: weight '{name}' is in {homes[name]} and in {file}; save it again")
                homes[name], self._shards[name] = file, shard
        for name, file in listed.items():
            if homes.get(name) != file:
                raise InputError(
                    f"{index}: it says that weight '{name}' is in {file}, which does not hold it; download both again"
                )
        self.prefix = ""

    @property
    def names(self) -> tuple[str, ...]:
        """As `Weights.names`."""
        return tuple(self._shards)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._shards

    def use_prefix(self, prefix: str, probe: str) -> None:
        """As `Weights.use_prefix`."""
        if prefix + probe in self._shards:
            self.prefix = prefix

    def get(self, name: str, shape: tuple[int | None, ...], whole_name: bool = False) -> NDArray[Any]:
        """As `Weights.get`."""
        full = name if whole_name else self.prefix + name
        if full not in self._shards:
            raise InputError(f"{self._index}: no shard has weight '{full}', which the model of config.json needs")
        return self._shards[full].get(full, shape, whole_name=True)

    def shape(self, full: str) -> tuple[int, ...]:
        """As `Weights.shape`."""
        return self._shards[full].shape(full)

    def rows(self, full: str, first: int, count: int) -> NDArray[Any]:
        """As `Weights.rows`."""
        return self._shards[full].rows(full, first, count)


def _listing(index: Path) -> tuple[dict[str, str], float]:
    """Tensor name -> file name, as the index lists them, each beside it; and the bytes it promises, 0: none."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_once)
        listed, metadata = content["weight_map"], content.get("metadata", {})
        if not (listed and isinstance(listed, dict) and all(isinstance(file, str) for file in listed.values())):
            raise TypeError("its weight_map gives no file name for each weight")
        total = metadata.get("total_size", 0) if isinstance(metadata, dict) else None
        if isinstance(total, bool) or not isinstance(total, int | float) or total < 0:
            raise TypeError("its metadata gives no number of bytes")
    except KeyError:
        raise InputError(f"{index} is damaged: it has no weight_map; download it again") from None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{index} is damaged: {error}; download it again") from error
    for file in sorted(set(listed.values())):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise InputError(f"{index}: it names {file!r}, which is no .safetensors file of its own folder; refused")
        if not index.with_name(file).is_file():
            raise InputError(f"{index}: its shard {file} is missing; put it beside the index")
    return listed, total


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a name that is in it twice."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is in it twice")
    return result
