"""Which kernel a target gets: for every symbol an ordered tuple of rules, the first that answers wins.

A rule is a function (target, shape) -> PrimFunc, or None for "not mine"; the last rule of a tuple takes any target.
Adding an instruction set means adding its rule to the tuples it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stic.schedules.cpu.activation import activation
from stic.schedules.cpu.attention import attention
from stic.schedules.cpu.dot import dot_portable
from stic.schedules.cpu.dot_avx2 import dot_avx2
from stic.schedules.cpu.dot_neon import dot_sdot, dot_smull
from stic.schedules.cpu.dot_vnni import dot_vnni
from stic.schedules.cpu.embed import embed
from stic.schedules.cpu.matmul import matmul_f16, matmul_f32
from stic.schedules.cpu.norm import add_norm
from stic.schedules.cpu.outlier import bias, outlier_mask, outliers
from stic.schedules.cpu.quantize import quantize
from stic.schedules.cpu.unpack import WIDTHS, unpack_portable
from stic.schedules.cpu.unpack_avx2 import unpack_avx2
from stic.schedules.cpu.unpack_avx512 import unpack_avx512
from stic.schedules.cpu.unpack_neon import unpack_neon
from stic.schedules.shape import KernelShape
from stic.schedules.tir import PrimFunc
from stic.targets.target import Target

Rule = Callable[[Target, KernelShape], PrimFunc | None]
UnpackRule = Callable[[Target, KernelShape, int], PrimFunc | None]

DOT: tuple[Rule, ...] = (dot_vnni, dot_avx2, dot_sdot, dot_smull, dot_portable)
UNPACK: tuple[UnpackRule, ...] = (unpack_avx512, unpack_avx2, unpack_neon, unpack_portable)
# Written on vectors of 16 lanes, which LLVM splits: one rule serves every CPU.
EVERY_CPU: tuple[Rule, ...] = (
    embed,
    quantize,
    activation,
    outlier_mask,
    outliers,
    matmul_f16,
    matmul_f32,
    bias,
    attention,
    add_norm,
)


def _first(answers: Iterable[PrimFunc | None]) -> PrimFunc:
    return next(answer for answer in answers if answer is not None)


def kernels_for(target: Target, shape: KernelShape) -> tuple[PrimFunc, ...]:
    """Return every function of kernels.so for this target and model, one PrimFunc a symbol."""
    dot = _first(rule(target, shape) for rule in DOT)
    unpack = [_first(rule(target, shape, width) for rule in UNPACK) for width in WIDTHS]
    return (dot, *unpack, *(_first((rule(target, shape),)) for rule in EVERY_CPU))
