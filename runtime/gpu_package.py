"""Read the GPU part of a package; what is out of bounds is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.runtime.errors import PackageError
from stic.runtime.format import BLOCK, REGION, TILE, Shape, pad
from stic.runtime.gpu_format import (
    GPU,
    GPU_REGIONS,
    GPU_STYLES,
    LAUNCH,
    MOST_LAUNCHES,
    PLACES,
    STORAGE_BITS,
    Storage,
    Style,
    state_sizes,
)

_SHARED = {frozenset(("ffn", name)) for name in ("qkv", "context", "scores")}  # may lie over each other


@dataclass(frozen=True, eq=False)
class GpuPart:
    """Where a package's layers run, and what the GPU needs for its own."""

    style: Style
    storage: Storage
    fallback: bool
    launches: NDArray[Any]  # LAUNCH
    places: tuple[str, ...]  # of PLACES, one a layer
    regions: Mapping[str, tuple[int, int]]  # name -> (offset, bytes) in the state buffer
    scores_tiles: int
    state_bytes: int


def read_gpu(
    index: bytes, header: np.void, layers: NDArray[Any], shape: Shape, refuse: Callable[[str], PackageError]
) -> GpuPart:
    """Parse the GPU part that `header` leads to. `layers` is the LAYER table; `refuse` makes the error."""

    def table(what: str, at: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        if at % 4 or at + count * dtype.itemsize > len(index):
            raise refuse(f"{what} of the GPU part lies outside index.bin")
        return np.frombuffer(index, dtype, count, at)

    gpu = table("the structure", int(header["gpu_at"]), GPU, 1)[0]
    storage = {bits: name for name, bits in STORAGE_BITS.items()}.get(int(gpu["storage_bits"]))
    if storage is None or int(gpu["style"]) >= len(GPU_STYLES) or int(gpu["fallback"]) > 1:
        raise refuse(
            f"its GPU part has {gpu['storage_bits']}-bit storage, style {gpu['style']}, fallback {gpu['fallback']}"
        )
    if int(gpu["launches"]) > MOST_LAUNCHES:
        raise refuse(f"its GPU part has {gpu['launches']} launches, at most {MOST_LAUNCHES} are allowed")
    launches = table("the launch table", int(gpu["launches_at"]), LAUNCH, int(gpu["launches"]))
    names = [row["name"] for row in launches]
    if b"" in names or len(set(names)) < len(names) or np.any(launches["local"] == 0) or np.any(launches["group"] == 0):
        raise refuse("a launch of its GPU part has no name, one twice, or an axis without work")
    places = table("the place table", int(gpu["places_at"]), np.dtype("u1"), len(layers))
    if np.any(places >= len(PLACES)) or np.any(places[layers["slices"] == 0]) or not np.any(places):
        raise refuse(f"its GPU part places layers at {places.tolist()}, keeping {layers['slices'].tolist()} slices")
    rows = table("the state table", int(gpu["state_at"]), REGION, len(GPU_REGIONS))
    regions = {name: (int(row["offset"]), int(row["bytes"])) for name, row in zip(GPU_REGIONS, rows, strict=True)}
    part = GpuPart(
        GPU_STYLES[int(gpu["style"])],
        storage,
        bool(gpu["fallback"]),
        launches,
        tuple(PLACES[place] for place in places),
        regions,
        int(gpu["scores_tiles"]),
        int(gpu["state_bytes"]),
    )
    _check_state(part, header, layers, shape, refuse)
    return part


def _check_state(
    part: GpuPart, header: np.void, layers: NDArray[Any], shape: Shape, refuse: Callable[[str], PackageError]
) -> None:
    """Every region is large enough, aligned, inside the buffer, and apart from the others."""
    length, most = int(header["max_length"]), int(np.max(layers["slices"]))
    if not 1 <= part.scores_tiles <= -(-length // TILE):
        raise refuse(f"its GPU part has room for the scores of {part.scores_tiles} tiles")
    bits = STORAGE_BITS[part.storage]
    needed = state_sizes(shape, most, length, bits, part.scores_tiles, int(header["row_stride"]))
    for name, (offset, size) in part.regions.items():
        if offset % BLOCK or offset + size > part.state_bytes or size < needed[name]:
            raise refuse(f"region {name} of the GPU's state lies wrong: {size} bytes at {offset}")
    for (a, (at, size)), (b, (bt, other)) in combinations(part.regions.items(), 2):
        if at < bt + other and bt < at + size and frozenset((a, b)) not in _SHARED:
            raise refuse(f"regions {a} and {b} of the GPU's state overlap")


def check_weights(regions: Mapping[str, tuple[int, int]], refuse: Callable[[str], PackageError]) -> None:
    """The weights are one stretch from the arena's start: `preload`, then `working`."""
    (start, size), (behind, _) = regions["preload"], regions["working"]
    if start != 0 or behind != pad(size, BLOCK):
        raise refuse(f"its weights are not one stretch: preload at {start}, working at {behind}")
