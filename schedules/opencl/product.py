"""What every product of weights and activations shares: its arguments, its rows, and what it computes.

Kernels are stic_gemm_* for any number of tokens, stic_gemv_* for at most 8; * is b2 .. b8, f16 or f32. Arguments:

    weights         three times, as uint8, uint32 and float16: records of shards as they were read
    codes           uint32, CODES_WORDS an entry: byte offsets of a matrix in `weights`, see `decode.py`
    trunk           float32: scales and biases
    x               (tiles, x_rows, 16), stored precision
    xq, token_scale, token_sum      x as stic_quantize leaves it; only where products are in integers
    y               (tiles, y_rows, 16) float32: results of JOINED rows, and what ACCUMULATE starts from
    out             (tiles, y_rows, 16), stored precision: results of other rows
    entry, slices   a run of slices at one bitwidth: its first entry in `codes`, and how many
    blocks, columns rows of 16 and columns of a slice's matrix
    scale_at, bias_at       in `trunk`, of the run's first row
    n               tokens
    flags           see JOINED, ACCUMULATE, ACTIVATED
    x_first, out_first      first feature of x that the run takes, first row of `out` that it gives

Rows are counted in blocks r of 16. JOINED (out, down): rows belong to the layer, r < blocks, and a result sums up all
slices of the run, each with its own columns of x. Else (qkv, up): rows belong to slices, r < slices * blocks.

    float arithmetic   bias + scale * (sum table[code] * x) + sum over outliers (value - scale * table[middle]) * x
    int8 arithmetic    bias + token_scale * (scale * (sum table[code] * xq) + the same sum of xq)
    full precision     bias + sum w * x

Products of int8 are summed up exactly in int32. Float sums go in a fixed order. `sums.py` holds what one work-item adds
up, `epilogue.py` what follows; the tiles are in `gemm_mali.py`, `gemm_adreno.py` and `gemv.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stic.runtime.format import TILE
from stic.runtime.gpu_format import GpuPrecision
from stic.schedules.opencl.program import FLOAT, FLOAT_WEIGHTS, HALF_WEIGHTS, INT8, Kernel, Launch, width_condition
from stic.schedules.shape import KernelShape
from stic.schedules.tir import Buffer, Expr, T, bind, kernel, pick

JOINED, ACCUMULATE, ACTIVATED = 1, 2, 4
FULL = {HALF_WEIGHTS: "f16", FLOAT_WEIGHTS: "f32"}  # widths beside 2 to 8


@dataclass(frozen=True)
class Product:
    """Which product: how weights are stored, and what multiplies."""

    width: int  # 2 to 8 bits, or a key of FULL
    integers: bool  # int8 activations; never at full precision
    q: int  # columns of a row that lie together in the planes
    storage: GpuPrecision
    shape: KernelShape

    @property
    def suffix(self) -> str:
        """What ends the kernel's name."""
        return FULL.get(self.width, f"b{self.width}")

    @property
    def condition(self) -> str:
        """When the kernel is compiled."""
        condition = width_condition(self.width)
        return condition if self.width in FULL else f"{condition} && {INT8 if self.integers else FLOAT}"

    def kernel(self, launch: Launch, body: Callable[[Arguments], None]) -> Kernel:
        """The kernel `launch.name`; body(arguments: Arguments) emits it."""
        pointers = (
            *(("weights", "uint8"), ("weights32", "uint32"), ("weights16", "float16"), ("codes", "uint32")),
            *(("trunk", "float32"), ("x", self.storage), ("xq", "int8"), ("token_scale", "float32")),
            *(("token_sum", "int32"), ("y", "float32"), ("out", self.storage)),
        )
        scalars = (
            *("entry", "slices", "blocks", "columns", "x_rows", "y_rows", "scale_at", "bias_at", "n", "flags"),
            *("x_first", "out_first"),
        )
        arguments = [*pointers, *((name, "scalar") for name in scalars)]
        function = kernel(launch.name, arguments, lambda *values: body(Arguments(*values)))
        return Kernel(function, launch, self.condition)


@dataclass(frozen=True)
class Arguments:
    """Buffers and scalars of a kernel, in their order."""

    weights: Buffer
    weights32: Buffer
    weights16: Buffer
    codes: Buffer
    trunk: Buffer
    x: Buffer
    xq: Buffer
    token_scale: Buffer
    token_sum: Buffer
    y: Buffer
    out: Buffer
    entry: Expr
    slices: Expr
    blocks: Expr
    columns: Expr
    x_rows: Expr
    y_rows: Expr
    scale_at: Expr
    bias_at: Expr
    n: Expr
    flags: Expr
    x_first: Expr
    out_first: Expr

    def total_blocks(self) -> Expr:
        """Blocks of rows of the run."""
        return bind(self.blocks * pick((self.flags & JOINED) != 0, T.int32(1), self.slices))


class Block:
    """One block of the run's rows: which slices give it, and where their columns are in x."""

    def __init__(self, a: Arguments, number: Expr) -> None:
        joined = bind((a.flags & JOINED) != 0)
        first = bind(pick(joined, T.int32(0), T.truncdiv(number, a.blocks)))  # not //, which asks about signs
        self.row = bind(number * TILE)
        self.within = bind(number - first * a.blocks)
        self.slices = bind(pick(joined, a.slices, T.int32(1)))
        self.entry = bind(a.entry + first)
