"""The model's activation on vectors of float32, by OpenCL's built-in functions, once for each neuron and token.

`erf` is within 16 ulp and `exp` within 3 (OpenCL C 1.2, 7.4); results are rounded to the stored precision afterwards.
"""

from __future__ import annotations

from stic.schedules.shape import KernelShape
from stic.schedules.tir import Expr, T, bind, f32

_TANH_SCALE, _CUBIC = -1.5957691216057308, 0.044715  # -2 sqrt(2 / pi)


def activated(shape: KernelShape, x: Expr, lanes: int) -> Expr:
    """The activation of `lanes` values."""
    x, dtype = bind(x), f"float32x{lanes}"
    if shape.activation == "relu":
        return T.call_extern(dtype, "fmax", x, f32(0.0, lanes))
    if shape.activation == "gelu":  # x Phi(x)
        return x * (f32(0.5, lanes) + f32(0.5, lanes) * T.call_extern(dtype, "erf", x * f32(0.5**0.5, lanes)))
    # 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3); an infinite divisor gives 0
    exponent = bind(x * (f32(_TANH_SCALE, lanes) + f32(_TANH_SCALE * _CUBIC, lanes) * (x * x)))
    return x / (f32(1.0, lanes) + T.call_extern(dtype, "exp", exponent))
