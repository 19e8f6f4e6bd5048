"""Put an exported model and what belongs to it on disk: whole files or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from stic.compiler.export.graph import ExportedGraph
from stic.compiler.frontend.facts import TABLE, facts_files
from stic.runtime.errors import InputError
from stic.runtime.files import copy_file, whole_file, write_bytes, write_text

# What is kept of config.json, beside the facts that change an answer; their other files are copied.
_KEPT = (
    "model_type", *TABLE["config.json"], "elastic", "num_labels", "hidden_size", "dim", "max_position_embeddings",
    "pad_token_id",
)  # fmt: skip
_INLINE_LIMIT = 1_800_000_000  # protobuf ends at 2 GiB; larger weights go to a file beside the model
_POINTED_BYTES = 1024  # of a weight that is worth pointing to


def write_all(exported: ExportedGraph, config: dict[str, Any], folders: tuple[Path, Path], out: Path) -> None:
    """Write tokenizer, config, facts, weights beside the model if they are large, and the model last.

    `folders`: of the encoder, and of the whole model.
    """
    folder, whole = folders
    tokenizer, kept = folder / "tokenizer.json", {key: config[key] for key in _KEPT if key in config}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.parent.resolve() != folder.resolve():
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
            write_text(out.parent / "config.json", text)
            for fact in facts_files(whole):
                copy_file(fact, out.parent / fact.name)
            if tokenizer.is_file():
                copy_file(tokenizer, out.parent / "tokenizer.json")
        if sum(array.nbytes for array in exported.weights.values()) > _INLINE_LIMIT:
            model = _beside(exported, out.with_name(out.name + ".data"))
        else:
            model = exported.whole()
        write_bytes(out, model.SerializeToString())
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}; free some space or choose another place"
            " (of temporary files, with TMPDIR)"
        ) from error


def _beside(exported: ExportedGraph, path: Path) -> onnx.ModelProto:
    """Write every weight to `path`, one after another; return a model that points there."""
    model = onnx.ModelProto()
    model.CopyFrom(exported.structure)
    with whole_file(path) as partial, partial.open("wb") as file:
        for name, array in exported.weights.items():
            if array.nbytes < _POINTED_BYTES:
                model.graph.initializer.append(exported.tensor(name))
                continue
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor = TensorProto(name=name, dims=array.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
            data = np.ascontiguousarray(array).data
            entries = {"location": path.name, "offset": file.tell(), "length": file.write(data)}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            model.graph.initializer.append(tensor)
    return model
