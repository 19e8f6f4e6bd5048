"""modules.json of sentence-transformers: what stands around the encoder, as one head.

A module is honoured or refused by name; the last word of its type counts, so that every version's spelling is read
(`sentence_transformers.models.Pooling`, `sentence_transformers.sentence_transformer.modules.pooling.Pooling`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.frontend.safetensors import Weights
from stic.compiler.model import Dense, Head, HeadActivation, Linear
from stic.runtime.errors import InputError
from stic.runtime.format import Pooling

MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
# Mode -> pooling of a head; what is not listed is refused. "sqrt" is a mean that only its length tells from "mean".
_POOLINGS = {
    "mean_tokens": "mean", "mean": "mean", "cls_token": "first", "cls": "first",
    "mean_sqrt_len_tokens": "sqrt", "mean_sqrt_len": "sqrt",
}  # fmt: skip
_ACTIVATIONS: dict[str, HeadActivation] = {"Identity": "none", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}


@dataclass(frozen=True, eq=False)
class Modules:
    """What modules.json puts around the encoder."""

    transformer: Path  # folder of its config.json and weights
    head: Head  # pooling "tokens": nothing is pooled
    prompt_counts: bool = True  # whether a prompt's tokens take part in the pooling

    @property
    def pools(self) -> bool:
        """Whether anything follows the encoder."""
        return self.head.pooling != "tokens" or bool(self.head.dense) or self.head.normalize


def transformer_folder(folder: Path) -> Path:
    """Return where a directory keeps config.json and weights of its encoder: `folder`, or a folder in it."""
    for entry, kind in _entries(folder) or ():
        if kind == "Transformer":
            return folder / str(entry.get("path", ""))
    return folder


def pools(folder: Path) -> bool:
    """Whether modules.json in `folder` has a Pooling, so that the model is an encoder of sentences."""
    return any(kind == "Pooling" for _, kind in _entries(folder) or ())


def read_modules(folder: Path) -> Modules | None:
    """Read modules.json in `folder`; None where there is none. InputError names a module that is not supported."""
    entries = _entries(folder)
    if entries is None:
        return None
    path, root = folder / "modules.json", False
    modules = Modules(transformer_folder(folder), Head("tokens"))
    for entry, kind in entries:
        own = folder / str(entry.get("path", ""))
        head = modules.head
        if kind == "Pooling":
            if head.pooling != "tokens" or head.dense or head.normalize:
                raise InputError(f"{path}: Pooling comes after {entry.get('name')!r}; it must follow the Transformer")
            pooling, root, counts = _pooling(own / "config.json")
            modules = replace(modules, head=Head(pooling), prompt_counts=counts)
        elif kind == "Dense":
            if head.pooling == "tokens" or head.normalize:
                raise InputError(f"{path}: its Dense must stand between Pooling and Normalize")
            modules = replace(modules, head=replace(head, dense=(*head.dense, _dense(own))))
        elif kind == "Normalize":
            modules = replace(modules, head=replace(head, normalize=True))
        elif kind not in MODULES:
            raise InputError(f"{path}: its module '{kind}' is not supported; {', '.join(MODULES)} are")
    if root and (modules.head.dense or not modules.head.normalize):
        raise InputError(
            f"{path}: its pooling (mean_sqrt_len) is supported before Normalize only, where it is the mean; use mean"
        )
    return modules


def _entries(folder: Path) -> list[tuple[dict[str, Any], str]] | None:
    path = folder / "modules.json"
    if not path.is_file():
        return None
    content = _json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{path} holds no list of modules; it is damaged")
    return [(entry, str(entry.get("type", "")).rsplit(".", 1)[-1]) for entry in content]


def _pooling(path: Path) -> tuple[Pooling, bool, bool]:
    """(pooling, whether it is divided by a root, whether prompts take part) of a Pooling module's config."""
    config = read_object(path)
    chosen = [key.removeprefix("pooling_mode_") for key, on in config.items() if "pooling_mode_" in key and on]
    if not chosen:  # newer versions: one word, or a list of them
        word = config.get("pooling_mode", "none")
        chosen = [str(one) for one in word] if isinstance(word, list) else [str(word)]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise InputError(f"{path}: its pooling ({', '.join(chosen)}) is not supported; mean or cls is")
    found = _POOLINGS[chosen[0]]
    return "first" if found == "first" else "mean", found == "sqrt", config.get("include_prompt") is not False


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    config = read_object(path)
    sizes = [config.get(key) for key in ("out_features", "in_features")]
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise InputError(f"{path}: in_features and out_features are {sizes[1]!r} and {sizes[0]!r}; expected numbers")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") not in (None, "sentence_embedding"):
            raise InputError(f"{path}: {key} is {config[key]!r}; a Dense of the sentence_embedding is supported")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1].split("(")[0]
    if name not in _ACTIVATIONS:
        raise InputError(f"{path}: activation_function '{name}' is not supported; {', '.join(_ACTIVATIONS)} are")
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} holds no model.safetensors: save the model with safetensors (save_pretrained)")
    weights = Weights(folder / "model.safetensors")
    weight = weights.get("linear.weight", tuple(sizes)).astype(np.float32)
    bias = np.zeros(len(weight), np.float32)
    if config.get("bias", True):
        bias = weights.get("linear.bias", (len(weight),)).astype(np.float32)
    return Dense(Linear(weight, bias), _ACTIVATIONS[name])


def _json(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file, which modules.json needs; copy the whole directory")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no object; it is damaged")
    return content
