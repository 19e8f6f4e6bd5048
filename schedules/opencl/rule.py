"""Which OpenCL kernels a GPU gets.

Products of weights have rules for each family (`gemm.py`: ordered, the first that answers wins). The others serve every
GPU, with sizes for its family where these matter; last stand those that have no schedule of their own, which TVM's
dlight schedules (`convert.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.opencl.attention import scores, softmax, values
from stic.schedules.opencl.convert import narrow, widen
from stic.schedules.opencl.embed import embed
from stic.schedules.opencl.gemm import gemm_kernels
from stic.schedules.opencl.norm import add_norm
from stic.schedules.opencl.program import Kernel, Program, assemble
from stic.schedules.opencl.quantize import quantize
from stic.schedules.shape import KernelShape

EVERY_GPU: tuple[Callable[[Style, KernelShape, GpuPrecision], Kernel], ...] = (
    embed,
    quantize,
    scores,
    softmax,
    values,
    add_norm,
    widen,
    narrow,
)


def program_for(style: Style, shape: KernelShape, storage: GpuPrecision, q: int) -> Program:
    """Every kernel of one model for one family of GPUs; the same text for the same arguments.

    storage: precision of activations in memory; q: columns of a row that lie together in the weights, 4 or 8.
    """
    return assemble([*gemm_kernels(style, shape, storage, q), *(rule(style, shape, storage) for rule in EVERY_GPU)])
