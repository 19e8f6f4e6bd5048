"""What lies in the folder that a model is given as: weights or ONNX, and what belongs to it.

Folders are as people have them: Hugging Face's (config.json, model.safetensors or its shards), optimum's (model.onnx
beside config.json), the hub's (onnx/model.onnx, the rest one folder up). Whatever else is there is refused with what to
make of it; pickles are never opened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from stic.compiler.frontend.sharded_safetensors import INDEX, WEIGHTS
from stic.runtime.errors import InputError

_HUB = "onnx"  # the hub's folder for ONNX files
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # as transformers can read them
_FOREIGN = ("*.bin", "*.pt", "*.pth", "*.ckpt", "tf_model.h5", "flax_model.msgpack", "*.gguf", "*.tflite")
_VOCABULARIES = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")


def onnx_file(folder: Path) -> Path | None:
    """The ONNX file to read for a directory; None: its safetensors, with their config, are to be exported.

    `model.onnx`, or the only .onnx file there is, in the directory itself or in its folder `onnx`. Raises InputError
    for several without one of that name, and for a directory with neither.
    """
    if _has_weights(folder):
        return None
    for place in (folder, folder / _HUB):
        found = sorted(path for path in place.glob("*.onnx") if path.is_file())
        plain = [path for path in found if path.name == "model.onnx"] or found
        if len(plain) == 1:
            return plain[0]
        if found:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise InputError(f"{folder} holds several ONNX files: {names}; give one of them")
    raise InputError(nothing_to_read(folder))


def beside(model: Path, name: str) -> Path:
    """The file `name` that belongs to a model, a directory or an .onnx file; it need not exist.

    It lies in the directory, or beside the file; of a file in a folder `onnx`, one folder up if not there.
    """
    if model.is_dir():
        return model / name
    near, folder = model.parent / name, _absolute(model).parent
    above = folder.parent / name
    return above if folder.name == _HUB and above.is_file() and not near.is_file() else near


def name_of(model: Path) -> str:
    """What to call a model: its directory, or its file unless that is merely called model."""
    path = _absolute(model)
    if not model.is_dir() and path.stem != "model":
        return path.stem
    folder = path if model.is_dir() else path.parent
    return folder.parent.name if folder.name == _HUB else folder.name


def _absolute(path: Path) -> Path:
    """Without `..`, and through no link: the hub's cache keeps files elsewhere, under other names."""
    return Path(os.path.abspath(path))


def no_tokenizer(model: Path) -> str:
    """What to say of a model without tokenizer.json: how to make one, where there is a vocabulary."""
    said = f"there is no tokenizer.json beside {model}, so calibration texts cannot be turned into tokens: "
    for name in _VOCABULARIES:
        found = beside(model, name)
        if found.is_file():
            folder = found.parent
            return (
                f'{said}make one of {found}, where transformers is installed, with python -c "from transformers import'
                f" AutoTokenizer; AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
            )
    return said + "put the model's there (a Hugging Face directory has one)"


def _has_weights(folder: Path) -> bool:
    """Whether there are safetensors to export: with a config.json, or where modules.json says."""
    for place in (folder, *_modules(folder)):
        if (place / "config.json").is_file() and any((place / name).is_file() for name in (WEIGHTS, INDEX)):
            return True
    # Something is missing then, and the export says what; ONNX, if there is any, needs none of it.
    onnx = any(path.is_file() for place in (folder, folder / _HUB) for path in place.glob("*.onnx"))
    return not onnx and any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def _modules(folder: Path) -> list[Path]:
    """Folders of the modules of a sentence-transformers directory, which may hold the encoder."""
    if not (folder / "modules.json").is_file():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir())


def nothing_to_read(folder: Path) -> str:
    """Why there is nothing to read in a directory, and what would be."""
    wanted = "config.json with model.safetensors, or model.onnx"
    if (folder / "index.bin").is_file() and (folder / "shards.bin").is_file():
        return f"{folder} is a package that stic compiled: give the model that it was compiled from, or use `stic run`"
    for name in _PICKLES:
        if (folder / name).is_file():
            return (
                f"{folder} has its weights in {name} only, a pickle, which stic does not open: convert it, where"
                f' transformers is installed, with python -c "from transformers import {_class(folder)} as M;'
                f" M.from_pretrained('{folder}').save_pretrained('{folder}')\", which writes {WEIGHTS}"
            )
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        if (folder / name).is_file():
            return f"{folder} holds an adapter only: merge it into its model (peft's merge_and_unload), and save that"
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return f"{folder} holds {shards[0]}, but neither {WEIGHTS} nor {INDEX}: download the rest, or save it again"
    for pattern in _FOREIGN:
        for path in sorted(folder.glob(pattern)):
            return f"{folder} has its weights in {path.name}, which stic does not read; give {wanted}"
    return f"{folder} holds no model: expected {wanted}"


def _class(folder: Path) -> str:
    """The class of transformers that config.json names; AutoModel where it names none."""
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return "AutoModel"
    return name if isinstance(name, str) and name.isidentifier() else "AutoModel"
