"""Measured gains, and random ones drawn from them.

gains.json holds what `stic importance` measured of small encoders, shard by shard, and how. It is made by

    python -m benchmarks.planner_study.gains NAME=IMPORTANCE.json ... > gains.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.importance.file import load
from stic.compiler.importance.measure import Importance
from stic.compiler.plan import SubmodelPath

Gains = NDArray[np.float64]
FILE = Path(__file__).with_name("gains.json")
DIGITS = 4  # significant ones that the file keeps; measurements are no better


@dataclass(frozen=True, eq=False)
class Measured:
    """One model's gains, as in `stic.compiler.plan.Problem`."""

    name: str
    bits: tuple[int, ...]
    gain: Gains  # (layers, slices, bits)
    path: SubmodelPath | None  # of an elastic model


def measured(path: Path = FILE) -> tuple[Measured, ...]:
    """All models of gains.json."""
    models = json.loads(path.read_text(encoding="utf-8"))["models"]
    return tuple(Measured(m["name"], tuple(m["bits"]), np.array(m["gain"]), _path(m["path"])) for m in models)


def _path(data: dict[str, Any] | None) -> SubmodelPath | None:
    if data is None:
        return None
    return SubmodelPath(tuple((k, s) for k, s in data["order"]), np.array(data["value"]))


def draw(
    source: Measured, layers: int, slices: int, rng: np.random.Generator, layer_sigma: float, shard_sigma: float
) -> tuple[Gains, SubmodelPath | None]:
    """Return gain (layers, slices, bits) and path of submodels of a model that might have been measured.

    A bootstrap in two stages: layers of the source with replacement, and for each of them shards with replacement, both
    in the order of the source, since importance falls with depth and with the slice index. Layers, and shards within
    them, are scaled by log-normal factors; the shape of a shard's curve over the bits is a measured one. Shards join
    the submodels in the order of those that they were drawn from.
    """
    count, width, _ = source.gain.shape
    rows = np.sort(rng.integers(count, size=layers))[:, None]
    columns = np.sort(rng.integers(width, size=(layers, slices)), axis=1)
    scale = rng.lognormal(0, layer_sigma, (layers, 1)) * rng.lognormal(0, shard_sigma, (layers, slices))
    gain = source.gain[rows, columns] * scale[:, :, None]
    if source.path is None:
        return gain, None
    joins = np.empty((count, width), int)
    joins[tuple(zip(*source.path.order, strict=True))] = np.arange(count * width)
    joins = joins[rows, columns]
    order = sorted(np.ndindex(layers, slices), key=lambda shard: (joins[shard], shard))
    return gain, SubmodelPath(tuple(order), source.path.value[rows, columns] * scale)


def packed(name: str, found: Importance) -> dict[str, Any]:
    """One model of gains.json."""
    source, _, amount = found.calibration.partition(":")
    return {
        "name": name,
        "calibration": f"{Path(source).name}:{amount}",
        "unit": f"{found.objective}, every shard varied while the others stay at {found.level} bits",
        "rho": found.rho,
        "bits": found.bits,
        "gain": _rounded(found.gain.tolist()),
        "path": found.path and {"order": found.path.order, "value": _rounded(found.path.value.tolist())},
    }


def _rounded(values: Any) -> Any:
    return [_rounded(v) for v in values] if isinstance(values, list) else float(f"{values:.{DIGITS}g}")


if __name__ == "__main__":
    pairs = [argument.partition("=")[::2] for argument in sys.argv[1:]]
    models = [json.dumps(packed(name, load(Path(path)))) for name, path in pairs]
    what = "gain of each shard over 2 bits, by layer, slice and bits; path: shards in the order in which submodels take"
    what += " them, and what each adds at 2 bits"
    print(f'{{"what": "{what}", "models": [\n' + ",\n".join(models) + "\n]}")
