"""Put an exported model and what belongs to it on disk: whole files or none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from stic.compiler.frontend.facts import TABLE, facts_files
from stic.runtime.errors import InputError

# What is kept of config.json, beside the facts that change an answer; their other files are copied.
_KEPT = (
    "model_type", *TABLE["config.json"], "elastic", "num_labels", "hidden_size", "dim", "max_position_embeddings",
    "pad_token_id",
)  # fmt: skip
_INLINE_LIMIT = 1_800_000_000  # protobuf ends at 2 GiB; larger weights go to a file beside the model


def write_all(model: onnx.ModelProto, config: dict[str, Any], folders: tuple[Path, Path], out: Path) -> None:
    """Write tokenizer, config, facts, weights beside the model if they are large, and the model last.

    `folders`: of the encoder, and of the whole model.
    """
    folder, whole = folders
    tokenizer, kept = folder / "tokenizer.json", {key: config[key] for key in _KEPT if key in config}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.parent.resolve() != folder.resolve():
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
            _replace(out.parent / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
            for fact in facts_files(whole):
                _replace(out.parent / fact.name, partial(shutil.copyfile, fact))
            if tokenizer.is_file():
                _replace(out.parent / "tokenizer.json", lambda path: shutil.copyfile(tokenizer, path))
        if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _INLINE_LIMIT:
            _move_weights(model, out.with_name(out.name + ".data"))
        _replace(out, lambda path: path.write_bytes(model.SerializeToString()))
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}; free some space or choose another place"
            " (of temporary files, with TMPDIR)"
        ) from error


def _move_weights(model: onnx.ModelProto, path: Path) -> None:
    """Write every weight to `path`, one after another, and point the model at it."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) < 1024:
                    continue
                entries = {"location": path.name, "offset": file.tell(), "length": file.write(tensor.raw_data)}
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in entries.items():
                    tensor.external_data.add(key=key, value=str(value))

    _replace(path, write)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write under a temporary name in the same folder, then rename; leave nothing behind on failure."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
