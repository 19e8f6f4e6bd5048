"""Reading a Hugging Face directory: the same model as by way of an ONNX file, its weights not copied."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stic.compiler.cache.digests import digest
from stic.compiler.export.huggingface import export_model
from stic.compiler.frontend import safetensors
from stic.compiler.frontend.onnx import load_model
from stic.compiler.inputs import read_model
from stic.compiler.model import Model


def arrays(model: Model) -> dict[str, np.ndarray[Any, Any]]:
    """The large arrays of a model."""
    found = {"word": model.embeddings.word, "position": model.embeddings.position}
    for number, layer in enumerate(model.layers):
        for name in ("query", "key", "value", "output", "ffn_in", "ffn_out"):
            found[f"{number} {name}"] = getattr(layer, name).weight
    return found


def is_mapped(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array is a view of a mapped file."""
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base  # type: ignore[assignment]
    return isinstance(array, np.memmap)


def shifted(path: Path) -> None:
    """Make a file's header longer by one byte, so that no tensor is aligned."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :])


@pytest.mark.parametrize("form", ["float32", "float16", "not aligned", "classifier"])
def test_a_directory_reads_as_its_export_does(
    form: str, tiny_dir: Path, tiny_classifier_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors, "_MAPPED_BYTES", 1)
    folder = shutil.copytree(tiny_classifier_dir if form == "classifier" else tiny_dir, tmp_path / "model")
    weights = folder / "model.safetensors"
    if form == "float16":
        save_file({name: array.astype(np.float16) for name, array in load_file(weights).items()}, weights)
    if form == "not aligned":
        shifted(weights)
    export_model(folder, tmp_path / "export" / "model.onnx")
    model, exported = read_model(folder), load_model(tmp_path / "export" / "model.onnx")
    assert digest(model.embeddings, model.layers, model.head) == digest(
        exported.embeddings, exported.layers, exported.head
    )
    assert (model.name, model.source, model.tokenizer) == ("model", folder, folder / "tokenizer.json")
    whole = form in ("float32", "classifier")
    assert {is_mapped(array) for array in arrays(model).values()} == {whole}
    assert all(array.flags.c_contiguous and array.flags.aligned for array in arrays(model).values())


@pytest.mark.parametrize("elastic", [False, True])
def test_a_directory_says_whether_it_is_elastic(elastic: bool, tiny_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_dir, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"elastic": elastic}))
    (folder / "tokenizer.json").unlink()
    model = read_model(folder)
    assert (model.elastic, model.tokenizer) == (elastic, None)
