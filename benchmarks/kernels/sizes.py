"""Encoders of BERT-base's and BERT-large's shape against the same peers: whether a lead holds where models are larger.

Weights are random, because time does not depend on their values; cosines to float32 then say nothing of quality.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.kernels import encoder
from benchmarks.kernels.place import Place
from benchmarks.random_bert import Size, write_bert
from stic.compiler.export.huggingface import export_model


def measure(place: Place, settings: dict[str, Any]) -> dict[str, Any]:
    """The encoder part for every shape, one after another; files of one are removed before the next is written."""
    models: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    for shape in settings["shapes"]:
        layers = settings.get("layers", shape["layers"])
        size = Size(layers, shape["hidden"], shape["heads"], shape["ffn"])
        with tempfile.TemporaryDirectory(dir=place.folder) as name:
            folder = Path(name)
            write_bert(size, folder / "bert")
            model = folder / f"{shape['name']}, {layers} layers.onnx"
            export_model(folder / "bert", model, "mean")
            measured = encoder.measure(replace(place, model=model, folder=folder), settings)
        absent |= measured.pop("absent")
        models.append({**measured, "model": model.stem})
    return {"models": models, "absent": absent}
