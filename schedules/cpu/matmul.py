"""stic_matmul_f16, stic_matmul_f32: float weights x float32 activations, y += w x.

                     token tile
    row n    w[k] -> [ acc n   ]      AVX-512: 16 rows x 1 zmm, 16 multiply-adds with the weight broadcast from memory
    row n+1  w[k] -> [ acc n+1 ]      and 1 load of x a feature; AVX2: 4 rows x 2 ymm; NEON: 4 rows x 4 q.
     ..

Float16 weights are converted 16 features at a time into a block on the stack (16 conversions for 256 multiply-adds
of 16 lanes). Bound by the multiply-adds with 512-bit vectors, by the broadcasts elsewhere.
"""

from __future__ import annotations

from stic.runtime.format import TILE
from stic.schedules.cpu.isa import float_rows
from stic.schedules.shape import DecoderShape, KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, bind, cast, f32, kernel, load, local, loop, splat, store
from stic.targets.target import Target

_BLOCK = 16  # features converted at once


def _matmul(name: str, dtype: str, rows: int) -> PrimFunc:
    """void NAME(w (16, ks), f32* x, f32* y, i32 ks, i32 x_rows, i32 y_rows, i32 tiles); ks is a multiple of 16."""

    def body(w: Buffer, x: Buffer, y: Buffer, ks: Expr, x_rows: Expr, y_rows: Expr, tiles: Expr) -> None:
        with loop(tiles) as tile, loop(TILE // rows) as group:
            with local((rows * LANES, "float32"), (rows * _BLOCK, "float32")) as (acc, wide):
                for r in range(rows):
                    store(acc, r * LANES, f32(0.0))
                with loop(ks // _BLOCK) as block:
                    starts = [bind((group * rows + r) * ks + block * _BLOCK) for r in range(rows)]
                    if dtype == "float16":
                        for r, start in enumerate(starts):
                            store(wide, r * _BLOCK, cast(load(w, start, _BLOCK), f"float32x{_BLOCK}"))
                    with loop(_BLOCK) as k:
                        value = bind(load(x, (tile * x_rows + block * _BLOCK + k) * LANES))
                        for r, start in enumerate(starts):
                            weight = wide[r * _BLOCK + k] if dtype == "float16" else w[start + k]
                            store(acc, r * LANES, load(acc, r * LANES) + splat(weight) * value)
                for r in range(rows):
                    at = bind((tile * y_rows + group * rows + r) * LANES)
                    store(y, at, load(y, at) + load(acc, r * LANES))

    scalars = [(label, "scalar") for label in ("ks", "x_rows", "y_rows", "tiles")]
    return kernel(name, [("w", dtype), ("x", "float32"), ("y", "float32"), *scalars], body)


def matmul_f16(target: Target, shape: KernelShape | DecoderShape) -> PrimFunc:
    """Weights in float16."""
    return _matmul("stic_matmul_f16", "float16", float_rows(target))


def matmul_f32(target: Target, shape: KernelShape | DecoderShape) -> PrimFunc:
    """Weights in float32."""
    return _matmul("stic_matmul_f32", "float32", float_rows(target))
