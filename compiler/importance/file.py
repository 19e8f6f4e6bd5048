"""Importance as a JSON file, for `--importance`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stic.compiler.importance.additivity import Additivity
from stic.compiler.importance.measure import Importance
from stic.compiler.plan import SubmodelPath
from stic.runtime.errors import InputError
from stic.runtime.files import write_text

FORMAT = 2  # of an importance file; 1 had no path


def save(importance: Importance, path: Path) -> None:
    """Write JSON, whole or not at all."""
    data = {"format": FORMAT, **asdict(importance)}
    for name in ("gain", "presence", "raw", "raw_width"):
        data[name] = None if data[name] is None else _without_nan(data[name].tolist())
    if data["path"] is not None:
        data["path"]["value"] = data["path"]["value"].tolist()
    try:
        write_text(path, json.dumps(data, indent=1), parents=False)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def load(path: Path) -> Importance:
    """Read what `save` wrote. Raises InputError for anything else: unknown or missing fields, shapes that disagree."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("unknown format")
        for name in ("gain", "presence", "raw", "raw_width"):
            data[name] = None if data[name] is None else np.array(data[name], np.float64)
        if data["path"] is not None:
            order = tuple((int(k), int(s)) for k, s in data["path"].pop("order"))
            data["path"] = SubmodelPath(order, np.array(data["path"].pop("value"), np.float64), **data["path"])
        data["additivity"] = tuple(Additivity(**entry) for entry in data["additivity"])
        data["bits"], data["layer_factor"] = tuple(data["bits"]), tuple(data["layer_factor"])
        importance = Importance(**data)
        layers, slices, bits = importance.gain.shape
        width = importance.raw_width
        agree = importance.presence.shape == (layers, slices) and importance.raw.shape == importance.gain.shape
        agree = agree and (importance.path is None or importance.path.value.shape == (layers, slices))
        agree = agree and bits == len(importance.bits) and layers == len(importance.layer_factor)
        if not agree or (width is not None and width.shape != (layers, slices + 1)):
            raise ValueError("its shapes disagree")
        return importance
    except OSError as error:
        raise InputError(f"cannot read the importance file {path}: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not an importance file that this stic wrote: {error}; profile again") from error


def _without_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return None if math.isnan(values) else values
