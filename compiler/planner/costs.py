"""DeviceProfile -> costs of every choice: what was measured where the shape was measured, scaled where it was not.

A profile is the JSON that `stic probe` writes:

    {"format": 1, "device": "...",
     "io": {"direct": true, "lanes": 2, "points": [{"bytes", "lanes", "median_us", "spread_us"}, ...],
            "request_us": .., "bytes_per_s": .., "row_us": ..},          with the lanes of extents, or of rows, in use
     "compute": {"threads": 2, "shapes": [{"hidden", "heads_per_slice", "head_dim", "neurons_per_slice", "slices",
                 "rows", "layer_us", "slice_us": {"2": ..}, "embed_us", "head_us", "submit_us", "spread"}, ...]},
     "gpu": {"device", "driver", "arithmetic", "hand_over_us", "shapes": [..]}}   where one was measured; shapes alike
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stic.compiler.plan import BlockCost, ComputeCost, IoCost
from stic.runtime.emulated import EmulatedStorage
from stic.runtime.errors import InputError
from stic.runtime.format import BLOCK
from stic.runtime.layout import Shape, pad, row_stride
from stic.targets.target import Target

IO_DERATING = 0.95  # share of the measured bandwidth that a plan counts on
REQUEST_BYTES = 256 << 10  # least size at which phone flash reads at full speed (FlexInfer, arXiv 2503.03777)
# Estimates only: share of the multiplier's peak that kernels reach, and codes unpacked in a cycle and core.
KERNEL_EFFICIENCY = 0.4
CODES_PER_CYCLE = 4.0
FLOAT_SLOWDOWN = 4.0  # a full-precision multiplication against an int8 one
SUBMIT_US = 50.0  # waking the pool and returning: no measurement is behind it; `stic probe` makes one


@dataclass(frozen=True, eq=False)
class Costs:
    """What a planner needs to know of a device, and how sure it is."""

    io: IoCost
    compute: ComputeCost
    measured: bool  # False: at least a part is scaled or estimated, as `notes` say
    notes: tuple[str, ...] = ()
    gpu: ComputeCost | None = None  # the same work on the GPU
    hand_over_us: float = 0.0  # handing activations over between CPU and GPU


@dataclass(frozen=True, eq=False)
class ShapeProfile:
    """Times of layers of one shape at one input length."""

    shape: Shape
    rows: int
    compute: ComputeCost


@dataclass(frozen=True, eq=False)
class GpuProfile:
    """What was measured with all layers on the GPU."""

    device: str
    driver: str
    arithmetic: str  # of products: "int8" or "float", as the device's driver allows
    hand_over_us: float
    shapes: tuple[ShapeProfile, ...]


@dataclass(frozen=True, eq=False)
class DeviceProfile:
    """What `stic probe` measured."""

    device: str
    direct: bool  # False: reads may have come from the page cache
    lanes: int
    request_us: float
    bytes_per_s: float
    row_us: float
    threads: int
    shapes: tuple[ShapeProfile, ...]
    gpu: GpuProfile | None = None


def load(path: Path) -> DeviceProfile:
    """Read a profile. Raises InputError for a file that `stic probe` did not write."""
    try:
        return parse(json.loads(Path(path).read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a device profile: {error}; write one with `stic probe`") from error


def parse(data: Mapping[str, Any]) -> DeviceProfile:
    """Build a profile from its JSON data. Raises InputError for missing fields and impossible values."""
    try:
        if data["format"] != 1:
            raise ValueError(f"format {data['format']} is not known")
        io, compute = data["io"], data["compute"]
        profile = DeviceProfile(
            str(data["device"]),
            bool(io["direct"]),
            int(io["lanes"]),
            float(io["request_us"]),
            float(io["bytes_per_s"]),
            float(io["row_us"]),
            int(compute["threads"]),
            tuple(_shape(entry) for entry in compute["shapes"]),
            None if data.get("gpu") is None else _gpu(data["gpu"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"this is not a device profile: {error!r}; write one with `stic probe`") from error
    shapes = (*profile.shapes, *(profile.gpu.shapes if profile.gpu is not None else ()))
    numbers = [profile.request_us, profile.row_us, *(u for s in shapes for u in _times(s.compute))]
    numbers.append(profile.gpu.hand_over_us if profile.gpu is not None else 0.0)
    if not (profile.bytes_per_s > 0 and profile.threads > 0 and all(math.isfinite(n) and n >= 0 for n in numbers)):
        raise InputError("this device profile holds a negative or infinite time; measure again with `stic probe`")
    return profile


def _times(cost: ComputeCost) -> Iterable[float]:
    blocks = [us for block in cost.blocks for us in (block.block_us, *block.slice_us.values())]
    return (*blocks, cost.embed_us, cost.head_us, cost.submit_us)


def _gpu(entry: Mapping[str, Any]) -> GpuProfile:
    shapes = tuple(_shape(shape) for shape in entry["shapes"])
    device, driver, arithmetic = (str(entry[name]) for name in ("device", "driver", "arithmetic"))
    return GpuProfile(device, driver, arithmetic, float(entry["hand_over_us"]), shapes)


def _shape(entry: Mapping[str, Any]) -> ShapeProfile:
    sizes = [int(entry[name]) for name in ("hidden", "slices", "heads_per_slice", "head_dim", "neurons_per_slice")]
    slice_us = {int(bits): float(us) for bits, us in entry["slice_us"].items()}
    if not slice_us:
        raise ValueError("a shape without slice_us")
    single = [float(entry[name]) for name in ("layer_us", "embed_us", "head_us", "submit_us")]
    cost = ComputeCost((BlockCost(single[0], slice_us),), *single[1:])
    return ShapeProfile(Shape.layer(*sizes), int(entry["rows"]), cost)


def macs_of(shape: Shape, rows: int, seen: int | None = None) -> int:
    """Multiplications of one slice of one layer for an input of `rows` tokens, attention to `seen` tokens included.

    None: tokens see the input and nothing before it.
    """
    return rows * shape.weights + 2 * rows * (rows if seen is None else seen) * shape.attention_width


def _compute(measured: ShapeProfile, shape: Shape, rows: int) -> ComputeCost:
    """Times of another shape: slices by multiplications, norms and embedding by activations, head by weights."""
    by_macs = macs_of(shape, rows) / macs_of(measured.shape, measured.rows)
    by_activations = shape.hidden * rows / (measured.shape.hidden * measured.rows)
    by_head = (shape.hidden / measured.shape.hidden) ** 2
    cost = measured.compute
    slice_us = {bits: us * by_macs for bits, us in cost.layer.slice_us.items()}
    return ComputeCost(
        (BlockCost(cost.layer.block_us * by_activations, slice_us),),
        cost.embed_us * by_activations,
        cost.head_us * by_head,
        cost.submit_us,
    )


def _fill(cost: ComputeCost, bits: Iterable[int]) -> tuple[ComputeCost, list[int]]:
    """Add bitwidths that were not measured: the next larger one measured stands in, else the largest."""
    measured = cost.layer.slice_us
    known = dict(measured)
    missing = [b for b in bits if b not in measured]
    for b in missing:
        larger = [x for x in measured if x > b]
        known[b] = measured[min(larger) if larger else max(measured)]
    return replace(cost, blocks=(replace(cost.layer, slice_us=known),)), missing


def costs(
    profile: DeviceProfile,
    shape: Shape,
    rows: int,
    threads: int,
    bits: tuple[int, ...] = (),
    derating: float = IO_DERATING,
) -> Costs:
    """Costs of layers of `shape` for inputs of `rows` tokens on `threads` threads.

    A measured shape at the measured length is used as it is; otherwise the nearest one by multiplications is
    scaled, and a note says so. `bits` names fidelities that must have a time. Raises InputError for a profile
    without shapes.
    """
    if not profile.shapes:
        raise InputError(f"the profile of {profile.device} holds no compute times; run `stic probe` with a model")
    compute, notes = _nearest(profile.shapes, shape, rows, "compute times")
    if threads != profile.threads:
        ratio = profile.threads / threads
        compute = replace(
            compute,
            blocks=tuple(block.scaled(ratio) for block in compute.blocks),
            embed_us=compute.embed_us * ratio,
        )
        notes.append(f"compute times are scaled from {profile.threads} to {threads} threads")
    compute, missing = _fill(compute, bits)
    gpu, hand_over_us = None, 0.0
    if profile.gpu is not None and profile.gpu.shapes:
        on_gpu, scaled = _nearest(profile.gpu.shapes, shape, rows, f"times on {profile.gpu.device}")
        gpu, also_missing = _fill(on_gpu, bits)
        missing, hand_over_us = sorted({*missing, *also_missing}), profile.gpu.hand_over_us
        notes += scaled
    if missing:
        notes.append(f"bits {', '.join(map(str, missing))} were not measured; the next larger ones stand in")
    if not profile.direct:
        notes.append("IO was measured through the page cache (no O_DIRECT); real storage may be slower")
    io = IoCost(profile.request_us, profile.bytes_per_s * derating, REQUEST_BYTES, profile.row_us)
    return Costs(io, compute, not notes, tuple(notes), gpu, hand_over_us)


def _nearest(shapes: tuple[ShapeProfile, ...], shape: Shape, rows: int, what: str) -> tuple[ComputeCost, list[str]]:
    """Times of `shape`: those measured, or those of the nearest shape scaled, with a sentence that says so."""
    exact = [s for s in shapes if (s.shape, s.rows) == (shape, rows)]
    if exact:
        return exact[0].compute, []
    wanted = macs_of(shape, rows)
    nearest = min(shapes, key=lambda s: (abs(math.log(macs_of(s.shape, s.rows) / wanted)), abs(s.rows - rows)))
    note = (
        f"{what} are scaled from hidden {nearest.shape.hidden}, {nearest.rows} tokens, not measured; "
        "probe this model for better ones"
    )
    return _compute(nearest, shape, rows), [note]


def paced_io(io: IoCost, storage: EmulatedStorage) -> IoCost:
    """The same storage slowed down to what is emulated, embedding rows included.

    Emulated storage serves one request at a time, and what a request costs beyond its bytes passes meanwhile: a whole
    request takes its own time or its emulated time, whichever is longer.
    """
    slower = min(io.bytes_per_s, storage.bytes_per_s)
    moving_us = io.request_bytes * 1e6 / slower
    saved_us = moving_us - io.request_bytes * 1e6 / io.bytes_per_s
    return replace(
        io,
        request_us=max(0.0, io.request_us - saved_us, storage.least_request_us - moving_us),
        bytes_per_s=slower,
        row_us=max(io.row_us, storage.reading_us(BLOCK)),
    )


def paced(costs: Costs, storage: EmulatedStorage) -> Costs:
    """The same costs on storage that is emulated."""
    io = paced_io(costs.io, storage)
    return replace(costs, io=io, notes=(*costs.notes, f"storage is taken to deliver {storage}"))


def with_rows(costs: Costs, hidden: int, row_type: str) -> Costs:
    """Costs with embedding rows of one of ROW_TYPES, where those of int8 were measured or estimated.

    A longer row takes the time to move what it has more of whole blocks. Only a CPU embeds rows of float16: a GPU is
    handed what it made of them.
    """
    more = pad(row_stride(hidden, row_type), BLOCK) - pad(row_stride(hidden), BLOCK)
    io = replace(costs.io, row_us=costs.io.row_us + more * 1e6 / costs.io.bytes_per_s)
    if costs.gpu is None or row_type == "int8":
        return replace(costs, io=io)
    return replace(costs, io=io, gpu=replace(costs.gpu, embed_us=costs.compute.embed_us + costs.hand_over_us))


def estimate(
    target: Target,
    shape: Shape,
    rows: int,
    threads: int,
    row_lanes: int,
    bits: tuple[int, ...],
    derating: float = IO_DERATING,
    seen: int | None = None,
) -> Costs:
    """Costs from a target file's facts alone, where nothing was measured; always marked as an estimate.

    `seen`: tokens that attention looks at, where they are more than the input's.

    Raises InputError where the file lacks a fact that this needs.
    """
    facts = {**target.storage, **target.compute}
    needed = ("read_bytes_per_s", "request_us", "clock_hz", "int8_macs_per_cycle")
    missing = [name for name in needed if name not in facts]
    if missing:
        raise InputError(
            f"target {target.name} says nothing of {', '.join(missing)}, so no plan can be timed for it; "
            "measure it with `stic probe` and pass the profile"
        )
    speed, request_us, clock, macs_per_cycle = (facts[name].value for name in needed)
    macs_per_us = threads * clock * macs_per_cycle * KERNEL_EFFICIENCY / 1e6
    unpack_us = shape.weights / (CODES_PER_CYCLE * threads * clock / 1e6)
    multiply_us = macs_of(shape, rows, seen) / macs_per_us
    slice_us = {b: multiply_us * FLOAT_SLOWDOWN if b > 8 else multiply_us + unpack_us * b / 8 for b in bits}
    # Norms, residuals and quantisation pass over a few dozen values a hidden value, four at a time.
    layer_us = rows * shape.hidden * 32 / (4 * threads * clock / 1e6)
    row_us = request_us / row_lanes + BLOCK * 1e6 / speed
    io = IoCost(request_us, speed * derating, REQUEST_BYTES, row_us)
    compute = ComputeCost((BlockCost(layer_us, slice_us),), layer_us, layer_us, SUBMIT_US)
    return Costs(io, compute, False, (f"times are estimated from facts about {target.name}, nothing was measured",))


def costs_to_json(costs: Costs) -> dict[str, Any]:
    """Costs as plain data."""
    return asdict(costs)


def costs_from_json(data: Mapping[str, Any]) -> Costs:
    """Inverse of `costs_to_json`. Raises KeyError, TypeError or ValueError for anything else."""

    def compute(entry: Mapping[str, Any]) -> ComputeCost:
        blocks = [
            BlockCost(float(block["block_us"]), {int(bits): float(us) for bits, us in block["slice_us"].items()})
            for block in entry["blocks"]
        ]
        return ComputeCost(**{**entry, "blocks": tuple(blocks)})

    gpu = None if data["gpu"] is None else compute(data["gpu"])
    fields = {
        "io": IoCost(**data["io"]),
        "compute": compute(data["compute"]),
        "gpu": gpu,
        "notes": tuple(data["notes"]),
    }
    found = Costs(**{**data, **fields})
    times = (
        found.io.request_us,
        found.io.row_us,
        found.hand_over_us,
        *_times(found.compute),
        *(_times(gpu) if gpu else ()),
    )
    if not (
        found.io.bytes_per_s > 0 and found.io.request_bytes > 0 and all(math.isfinite(t) and t >= 0 for t in times)
    ):
        raise ValueError("it holds a negative or infinite time")
    return found
