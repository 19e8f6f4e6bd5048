"""Products of weights and activations for every bitwidth: which kernel a GPU gets for which."""

from __future__ import annotations

from collections.abc import Callable

from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.cpu.unpack import WIDTHS
from stic.schedules.opencl import gemm_adreno, gemm_mali
from stic.schedules.opencl.gemv import gemv
from stic.schedules.opencl.product import FULL, Product
from stic.schedules.opencl.program import Kernel
from stic.schedules.shape import KernelShape

Rule = Callable[[Style, Product], Kernel | None]


def _adreno(style: Style, product: Product) -> Kernel | None:
    return gemm_adreno.gemm(product) if style == "adreno" and product.width not in FULL else None


def _registers(style: Style, product: Product) -> Kernel:
    return gemm_mali.gemm(product)


def _few_tokens(style: Style, product: Product) -> Kernel:
    return gemv(product)


RULES: tuple[tuple[Rule, ...], ...] = ((_adreno, _registers), (_few_tokens,))


def gemm_kernels(style: Style, shape: KernelShape, storage: GpuPrecision, q: int) -> list[Kernel]:
    """stic_gemm_* and stic_gemv_* for 2 to 8 bits in both arithmetics, and for float16 and float32 weights.

    q: columns of a row that lie together in the planes, 4 or 8.
    """
    products = [Product(width, integers, q, storage, shape) for width in WIDTHS for integers in (False, True)]
    products += [Product(width, False, q, storage, shape) for width in FULL]
    answers = ((rule(style, product) for rule in rules) for product in products for rules in RULES)
    return [next(kernel for kernel in some if kernel is not None) for some in answers]
