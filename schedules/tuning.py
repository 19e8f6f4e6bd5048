"""What a schedule leaves open, and the records of what was found best: `tuned/<target>.json`, written by `stic tune`.

Every choice gives the same results; only time differs. Without a record, or with one of another processor, kernels are
compiled with the defaults below.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stic.runtime.errors import TargetError
from stic.runtime.files import write_text
from stic.targets.target import Target, processor

FORMAT = 1
FOLDER = Path(__file__).parent / "tuned"
Tiles = tuple[tuple[int, int], ...]
_FIELDS = {"format", "target", "features", "processor", "tuning", "measured", "made_with"}


@dataclass(frozen=True)
class Tuning:
    """The open choices of the kernels of one target."""

    tiles: Tiles | None = None  # register tiles of the dot product (token tiles, rows); None: the micro-kernel's first
    chains: int | None = None  # independent sums of a product for few tokens; None: what its kernel says
    prefetch_bytes: int = 10240  # over all planes, between what is read and what is prefetched; 0: none

    def __post_init__(self) -> None:
        if self.chains not in (None, 1, 2, 4, 8, 16) or not 0 <= self.prefetch_bytes <= 1 << 20:
            raise ValueError(f"chains {self.chains} or prefetch_bytes {self.prefetch_bytes} is out of range")


def record_path(target: Target) -> Path:
    """Where the record of a target is kept."""
    return FOLDER / f"{target.name}.json"


def tuning_for(target: Target) -> Tuning:
    """The record of a target, if it was measured on its processor, else the defaults.

    Raises TargetError for a file that is not a record.
    """
    path = record_path(target)
    if not path.is_file():
        return Tuning()
    tuning, measured_on = read(path)
    # A target file is one device; `host` is whatever machine this is.
    return tuning if target.name != "host" or measured_on == (processor(), target.features) else Tuning()


def read(path: Path) -> tuple[Tuning, tuple[str, tuple[str, ...]]]:
    """Read a record: the tuning, and the processor and features that it was measured with.

    Raises TargetError where it is none.
    """
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT or set(data) != _FIELDS:
            raise ValueError("unknown format or fields")
        chosen: dict[str, Any] = data["tuning"]
        if set(chosen) != {field.name for field in fields(Tuning)}:
            raise ValueError("unknown or missing choices")
        tiles, chains = chosen["tiles"], chosen["chains"]
        tiles = None if tiles is None else tuple((int(count), int(rows)) for count, rows in tiles)
        chains = None if chains is None else int(chains)
        measured_on = str(data["processor"]), tuple(map(str, data["features"]))
        return Tuning(tiles, chains, int(chosen["prefetch_bytes"])), measured_on
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{path} is not a record of `stic tune` ({error}): remove it, or tune again") from error


def write(
    path: Path, target: Target, measured_on: str, tuning: Tuning, measured: dict[str, Any], made_with: dict[str, str]
) -> None:
    """Write a record, whole or not at all."""
    data = {
        "format": FORMAT,
        "target": target.name,
        "features": target.features,
        "processor": measured_on,
        "tuning": asdict(tuning),
        "measured": measured,
        "made_with": made_with,
    }
    write_text(path, json.dumps(data, indent=1) + "\n")
