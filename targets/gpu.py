"""The GPU of a device: which kernels suit it, and what it is made of.

A `[gpu]` table holds `name`, `style` (which kernels: see GPU_STYLES), and facts, each with its source as everywhere in
a target file: the numbers of NUMBERS, `images` (true or false) and `extensions` (a list of OpenCL extensions, those
that kernels can use). A package compiled for a target runs on whatever device it finds: what that one reports is read
when the package is opened. The facts here serve planning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stic.runtime.errors import TargetError
from stic.runtime.gpu_format import GPU_STYLES, Style
from stic.targets.facts import Fact, check_keys, number, sourced

NUMBERS = (
    "max_alloc_bytes",  # largest buffer
    "local_memory_bytes",  # of a work-group; Mali: ordinary memory behind the same caches, so tiling gains nothing
    "work_group",  # work-items of a work-group at most
    "cores",  # shader cores (Mali), shader processors (Adreno)
    "clock_hz",
    "float_macs_per_cycle",  # float32 multiplications with addition, by one core
    "int8_macs_per_cycle",  # of a dot product instruction; without one, what float32 does
    "bytes_per_s",  # of memory, shared with the CPU
)
# Extensions with dot products of four int8, in the order in which the engine tries them.
DOT_EXTENSIONS = ("cl_arm_integer_dot_product_accumulate_int8", "cl_khr_integer_dot_product", "cl_qcom_dot_product8")


@dataclass(frozen=True)
class Extensions:
    """OpenCL extensions of a driver, as far as kernels can use them, and where the list comes from."""

    names: tuple[str, ...]
    source: str
    estimated: bool = False


@dataclass(frozen=True)
class Gpu:
    """A GPU as the compiler sees it."""

    name: str
    style: Style
    facts: Mapping[str, Fact] = field(hash=False)  # all of NUMBERS
    images: bool
    images_source: str
    extensions: Extensions

    def __post_init__(self) -> None:
        if self.style not in GPU_STYLES:
            raise TargetError(f"GPU {self.name}: style {self.style!r} is not one of {', '.join(GPU_STYLES)}")

    @property
    def max_alloc_bytes(self) -> int:
        """Largest buffer."""
        return int(self.facts["max_alloc_bytes"].value)

    @property
    def fp16(self) -> bool:
        """Whether arithmetic in half precision is there; kernels store half, and compute in single precision."""
        return "cl_khr_fp16" in self.extensions.names

    @property
    def integer_dot(self) -> str | None:
        """The extension that int8 products would use; None: float arithmetic."""
        return next((name for name in DOT_EXTENSIONS if name in self.extensions.names), None)


def parse_gpu(label: str, data: Any) -> Gpu:
    """Build a Gpu from the `[gpu]` table of target `label`; unknown, missing or ill-typed fields are refused."""
    if not isinstance(data, dict):
        raise TargetError(f"target {label}: gpu must be a table")
    required = ("name", "style", "images", "extensions", *NUMBERS)
    check_keys(label, "[gpu]", data, required, required)
    for key in ("name", "style"):
        if not isinstance(data[key], str):
            raise TargetError(f"target {label}: gpu.{key} must be a string")
    images, images_source, _ = sourced(label, "gpu.images", data["images"])
    if not isinstance(images, bool):
        raise TargetError(f"target {label}: gpu.images.value must be true or false")
    names, source, estimated = sourced(label, "gpu.extensions", data["extensions"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TargetError(f"target {label}: gpu.extensions.value must be a list of names")
    facts = {key: number(label, f"gpu.{key}", data[key]) for key in NUMBERS}
    return Gpu(data["name"], data["style"], facts, images, images_source, Extensions(tuple(names), source, estimated))
