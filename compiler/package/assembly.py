"""From decisions to a package: place a plan's extents, lay out the arena, verify both, and collect the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stic.compiler.forecast import Forecast
from stic.compiler.frontend.reading import VECTOR, Reading
from stic.compiler.memory.check import verify_extents, verify_family, verify_regions, verify_state, verify_weights
from stic.compiler.memory.gpu import gpu_bytes, gpu_state
from stic.compiler.memory.placement import Placement, Sizes, fixed_bytes, place_extents, regions
from stic.compiler.model import Model
from stic.compiler.package.contents import Contents, Quantized, model_table
from stic.compiler.package.index import GpuParts, Parts, PlacedPlan
from stic.compiler.package.kernels import GpuProgram
from stic.compiler.package.trunk import Trunk, build_embeddings, build_trunk
from stic.compiler.plan import Plan
from stic.compiler.planner.costs import REQUEST_BYTES
from stic.compiler.quantization.quantize import QuantizedModel
from stic.compiler.store import Store, lay_out
from stic.runtime.errors import InputError, TargetError, UnsupportedModelError
from stic.runtime.format import FULL, POOLINGS
from stic.runtime.gpu_format import GpuPrecision
from stic.runtime.layout import levels_of, row_stride
from stic.runtime.limits import LIMITS
from stic.schedules.shape import DecoderShape, KernelShape
from stic.targets.gpu import Gpu
from stic.targets.target import Target

STACK_BYTES = 128 << 10
ROW_LANES = 8  # reads of 4 KiB gain from so many at once, also on flash; reads of a whole request gain from two only


@dataclass(frozen=True, eq=False)
class Materials:
    """What a package is made of before any decision: quantised shards, trunk, embeddings, and their sizes."""

    quantized: Quantized
    contents: Contents
    store: Store
    trunk: Trunk
    embeddings: bytes
    sizes: Sizes
    row_type: str  # of the embeddings: one of ROW_TYPES
    kernel_shape: KernelShape | DecoderShape  # what the model's kernels are compiled for

    def fixed_bytes(self, plans: int = 1) -> int:
        """Memory that no decision changes, in a package of so many plans."""
        return fixed_bytes(self.sizes, self.store, plans)

    def gpu_bytes(self, storage: GpuPrecision) -> int:
        """Memory that is held beside the rest once any layer is on a GPU that stores activations as `storage`."""
        return gpu_bytes(self.sizes, self.store, storage)

    @property
    def encoder(self) -> QuantizedModel:
        """The quantised model of an encoder."""
        assert isinstance(self.quantized, QuantizedModel)
        return self.quantized

    @property
    def encoder_shape(self) -> KernelShape:
        """The same of an encoder, which alone has kernels for GPUs."""
        assert isinstance(self.kernel_shape, KernelShape)
        return self.kernel_shape


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, and its replay."""

    plan: Plan
    predicted_us: int = 0
    timeline: tuple[dict[str, Any], ...] = ()
    forecast: Forecast | None = None  # of a decoder


def collect(
    quantized: QuantizedModel,
    full_bits: int,
    max_length: int,
    threads: int,
    lanes: int,
    row_type: str = "int8",
    reading: Reading = VECTOR,
) -> Materials:
    """Lay out the store and build the trunk and the embedding rows, of one of ROW_TYPES, of a quantised model.

    `reading` says how the outputs are read.
    Raises UnsupportedModelError if its norms differ in epsilon, InputError if it has too few positions or its rows
    cannot be of that type.
    """
    model, shapes = quantized.sharded.model, quantized.shapes
    norms = [model.embeddings.norm, *(n for layer in model.layers for n in (layer.attention_norm, layer.ffn_norm))]
    if len({norm.epsilon for norm in norms}) > 1:
        raise UnsupportedModelError(f"{model.name}: its layer norms differ in epsilon; kernels are compiled for one")
    outliers = [
        np.array([[len(quantized.matrix(b, s, name).outliers) for name in x.matrices] for s in range(x.slices)])
        for b, x in enumerate(shapes)
    ]
    store = lay_out(shapes, outliers, quantized.nested, full_bits)
    trunk = build_trunk(quantized, max_length)
    head = model.head
    widths = [n for dense in head.dense for n in dense.linear.weight.shape]
    features = head.dense[-1].linear.weight.shape[0] if head.dense else model.hidden
    sizes = Sizes(
        shapes=shapes,
        max_length=max_length,
        trunk_bytes=len(trunk.data),
        row_stride=row_stride(model.hidden, row_type),
        head_width=max(widths, default=model.hidden),
        output_floats=features * (max_length if head.pooling == "tokens" else 1),
        threads=threads,
        lanes=lanes,
        row_lanes=max(lanes, ROW_LANES),
        stack_bytes=STACK_BYTES,
    )
    epsilon, embeddings = model.embeddings.norm.epsilon, build_embeddings(model.embeddings.word, row_type)
    kernel_shape = KernelShape(model.hidden, model.head_dim, model.activation, epsilon, epsilon)
    contents = _contents(model, max_length, trunk, reading)
    return Materials(quantized, contents, store, trunk, embeddings, sizes, row_type, kernel_shape)


def _contents(model: Model, max_length: int, trunk: Trunk, reading: Reading) -> Contents:
    """What a package says of an encoder."""
    head, types = model.head, model.embeddings.token_type
    values: dict[str, Any] = {
        "hidden": model.hidden,
        "vocabulary": model.embeddings.word.shape[0],
        "max_length": max_length,
        "chunk": max_length,
        "types": 0 if types is None else len(types),
        "padding": 0 if model.embeddings.padding is None else model.embeddings.padding + 1,
        "pooling": POOLINGS.index(head.pooling),
        "normalize": int(head.normalize),
        "output_features": head.dense[-1].linear.weight.shape[0] if head.dense else model.hidden,
        "embedding_multiplier": 1.0,
        **trunk.model,
    }
    described = {
        "name": model.name,
        "activation": model.activation,
        "epsilon": model.embeddings.norm.epsilon,
        "elastic": model.elastic,
        "labels": list(reading.names),
        "reading": reading.to_json(),
        "positions": min(model.max_length, LIMITS["chunk"]),  # --max-length could be so much
    }
    files = {} if model.tokenizer is None else {"tokenizer.json": model.tokenizer.read_bytes()}
    return Contents(model_table(values), described, files)


def claim(
    materials: Materials, plan: Plan, placement: Placement, storage: GpuPrecision = "float16", plans: int = 1
) -> int:
    """Bytes that the engine holds at its peak under a plan of a package of so many; layers on a GPU keep activations as
    `storage`."""
    table = len(materials.embeddings) if plan.table_resident else 0
    gpu = materials.gpu_bytes(storage) if plan.on_gpu else 0
    return materials.fixed_bytes(plans) + placement.preload_bytes + placement.working_bytes + table + gpu


def assemble_package(
    materials: Materials,
    planned: Sequence[Planned],
    target: Target,
    kernels: Path,
    program: GpuProgram | None = None,
    fallback: bool = True,
    keep_planes: bool = False,
) -> Parts:
    """Place everything that the plans decide and verify the placement; the result is ready for `write_package`.

    `planned` are the plans that the package carries, at least one, for an engine to switch between; the first is the
    default. All must agree on whether the embedding table is resident. Only what a plan uses is stored; `keep_planes`
    stores all planes, and full precision of all shards if a plan uses it, so that packages of other plans may share the
    files. A plan with layers on the GPU needs `program`; `fallback` says whether it still holds with these on the CPU.
    Raises TargetError where the GPU allows no buffer as large as the plan needs, or no work-group as a kernel needs,
    and InputError where several plans meet a GPU, or are more than a package may carry.
    """
    _check_family(planned)
    sizes = materials.sizes
    store = materials.store.only(_stored([one.plan for one in planned], materials.store, keep_planes))
    storage = program.storage if program is not None else "float16"
    placed = tuple(_place(materials, store, one, storage, len(planned)) for one in planned)
    if len(placed) > 1:
        verify_family([one.placement for one in placed], [one.regions for one in placed])
    default = placed[0]
    gpu = None
    if default.plan.on_gpu:
        if program is None or target.gpu is None:
            raise ValueError("a plan with layers on the GPU needs a target with one, and its kernels")
        gpu = GpuParts(target.gpu.name, program, gpu_state(sizes, program.storage), fallback)
        verify_state(gpu.state.regions, gpu.state.state_bytes)
        verify_weights(default.regions)
        _check_allocations(target.gpu, default.placement, gpu)
        _check_launches(target.gpu, program)
    return Parts(
        quantized=materials.quantized,
        contents=materials.contents,
        store=store,
        trunk=materials.trunk,
        embeddings=materials.embeddings,
        row_type=materials.row_type,
        row_stride=sizes.row_stride,
        plans=placed,
        target=target,
        kernels=kernels,
        threads=sizes.threads,
        lanes=sizes.lanes,
        row_lanes=sizes.row_lanes,
        request_bytes=REQUEST_BYTES,
        stack_bytes=sizes.stack_bytes,
        gpu=gpu,
    )


def _stored(plans: list[Plan], store: Store, keep_planes: bool) -> NDArray[np.bool_]:
    """Which records plans use, (blocks, LEVELS, most slices); with `keep_planes` all that they or others could use."""
    used = np.zeros(store.bytes.shape, bool)
    for plan in plans:
        for number, layer in enumerate(plan.layers):
            for s, bits in enumerate(layer.bits):
                used[number, list(levels_of(bits, store.nested)), s] = True
    if keep_planes:
        there = store.bytes > 0
        used[:, :FULL] = there[:, :FULL]
        used[:, FULL] = used[:, FULL].any() & there[:, FULL]
    return used


def _check_family(planned: Sequence[Planned]) -> None:
    if not planned:
        raise ValueError("a package holds at least one plan")
    if len(planned) == 1:
        return
    plans = [one.plan for one in planned]
    if len(plans) > LIMITS["plans"]:
        limit = LIMITS["plans"]
        raise InputError(f"{len(plans)} plans are more than a package holds ({limit}): ask for fewer with --also")
    if any(plan.on_gpu for plan in plans):
        raise InputError("a package with layers on a GPU holds one plan: leave out --also, or plan with --place cpu")
    if len({plan.table_resident for plan in plans}) > 1:
        raise ValueError("plans of one package differ in whether the embedding table is resident")
    if not all(np.isfinite(plan.quality) for plan in plans):
        raise ValueError("a plan of a family has no finite quality to be chosen by")


def _place(materials: Materials, store: Store, one: Planned, storage: GpuPrecision, plans: int) -> PlacedPlan:
    """One of so many plans, placed; verified as if it were alone."""
    plan = one.plan
    placement = place_extents(plan, store)
    table = len(materials.embeddings) if plan.table_resident else 0
    buffers = (placement.preload_bytes, placement.working_bytes, table)
    placed, arena = regions(materials.sizes, *buffers, weights_first=plan.on_gpu)
    verify_extents(plan, store, placement)
    verify_regions(placed, arena)
    claimed = claim(materials, plan, placement, storage, plans)
    return PlacedPlan(plan, placement, placed, arena, claimed, one.predicted_us, list(one.timeline), one.forecast)


def _check_allocations(gpu: Gpu, placement: Placement, parts: GpuParts) -> None:
    weights = placement.preload_bytes + placement.working_bytes
    for what, size in (("weights", weights), ("activations", parts.state.state_bytes)):
        if size > gpu.max_alloc_bytes:
            raise TargetError(
                f"the {what} of this plan are one buffer of {size / 2**20:.1f} MiB, but {gpu.name} allows"
                f" {gpu.max_alloc_bytes / 2**20:.0f} MiB: plan for less memory, or place the layers with --place cpu"
            )


def _check_launches(gpu: Gpu, program: GpuProgram) -> None:
    for launch in program.launches:
        for what, size, limit in (
            ("work-items in a group", int(np.prod(launch["local"])), gpu.facts["work_group"].value),
            ("bytes of local memory", int(launch["local_bytes"]), gpu.facts["local_memory_bytes"].value),
        ):
            if size > limit:
                raise TargetError(
                    f"kernel {launch['name'].decode()} takes {size} {what}, but {gpu.name} allows {limit:.0f}:"
                    " place the layers with --place cpu"
                )
