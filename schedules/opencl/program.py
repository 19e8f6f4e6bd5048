"""An OpenCL program: kernels, how each is launched, and the text of all of them.

The text is compiled on the device, with two definitions that say what of it is needed:

    -D STIC_DOT=n      arithmetic: 0 float; else int8, with products by 1 cl_khr_integer_dot_product,
                       2 cl_arm_integer_dot_product, 3 cl_qcom_dot_product8, 4 plain OpenCL C
    -D STIC_WIDTHS=n   bit b: weights of b bits occur; bit 16: float16 weights; bit 17: float32 weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stic.schedules.opencl.source import lower
from stic.schedules.tir import PrimFunc

HALF_WEIGHTS, FLOAT_WEIGHTS = 16, 17  # bits of STIC_WIDTHS beside those of 2 to 8 bits
FLOAT, INT8 = "STIC_DOT == 0", "STIC_DOT != 0"  # conditions of kernels that one arithmetic alone needs
_PREAMBLE = Path(__file__).with_name("preamble.cl")


def width_condition(width: int) -> str:
    """The condition of a kernel for weights of `width`: 2 to 8 bits, HALF_WEIGHTS or FLOAT_WEIGHTS."""
    return f"(STIC_WIDTHS >> {width}) & 1"


@dataclass(frozen=True)
class Launch:
    """How a kernel is started: ceil(units / group) work-groups of `local` work-items along each axis.

    What a unit is depends on the kernel: a tile, a row, a key.
    """

    name: str
    local: tuple[int, ...]  # 1 to 3 axes
    group: tuple[int, ...]  # units that one work-group computes along each axis, as many axes
    local_bytes: int = 0  # local memory of a work-group

    def __post_init__(self) -> None:
        if not 1 <= len(self.local) <= 3 or len(self.local) != len(self.group):
            raise ValueError(f"{self.name}: {self.local} work-items for {self.group} units are not 1 to 3 axes")
        if min(*self.local, *self.group, 1) < 1 or self.local_bytes < 0:
            raise ValueError(f"{self.name}: sizes of a launch must be positive")

    def global_size(self, units: Sequence[int]) -> tuple[int, ...]:
        """Work-items along each axis for so many units."""
        return tuple(-(-n // g) * size for n, g, size in zip(units, self.group, self.local, strict=True))


@dataclass(frozen=True)
class Kernel:
    """One function of a program; `condition` is the preprocessor expression under which it is compiled ("": always)."""

    function: PrimFunc
    launch: Launch
    condition: str = ""


@dataclass(frozen=True)
class Program:
    """kernels.cl and its launches, one for each name: kernels of one name stand under conditions that exclude each
    other, and are launched alike."""

    text: str
    launches: tuple[Launch, ...]


def assemble(kernels: Sequence[Kernel]) -> Program:
    """Write the preamble and the kernels, in their order. Raises ValueError if one name has two launches."""
    launches: dict[str, Launch] = {}
    parts = [_PREAMBLE.read_text()]
    for kernel in kernels:
        name = kernel.launch.name
        if launches.setdefault(name, kernel.launch) != kernel.launch:
            raise ValueError(f"two kernels {name} are launched in different ways")
        text = lower(kernel.function)
        parts.append(f"#if {kernel.condition}\n{text}#endif\n" if kernel.condition else text)
    return Program("\n".join(parts), tuple(launches.values()))
