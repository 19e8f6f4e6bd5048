"""stic_activation: the model's activation, in place.

    x[16] -> x[16]      one vector a step. Instructions a native vector, loop included:

                 AVX-512   AVX2   NEON
    gelu           32       37    31.5
    gelu_tanh      22       23    24.8
    relu            3        3     2.5
    silu           22       23    26

gelu is bound by its 17 products and fma, two a cycle; gelu_tanh and silu by their division, 8 products and fma; relu by
stores.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.schedules.cpu import vector_math
from stic.schedules.shape import DecoderShape, KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, kernel, load, loop, store
from stic.targets.target import Target

_FUNCTIONS = {
    "gelu": vector_math.gelu,
    "gelu_tanh": vector_math.gelu_tanh,
    "relu": vector_math.relu,
    "silu": vector_math.silu,
}


def function_of(shape: KernelShape | DecoderShape) -> Callable[[Expr], Expr]:
    """The model's activation, on vectors of 16 float32."""
    return _FUNCTIONS[shape.activation]


def activation(target: Target, shape: KernelShape | DecoderShape) -> PrimFunc:
    """void stic_activation(f32* x, i32 count16): count16 vectors of 16."""
    function = function_of(shape)

    def body(x: Buffer, count: Expr) -> None:
        with loop(count) as i:
            store(x, i * LANES, function(load(x, i * LANES)))

    return kernel("stic_activation", [("x", "float32"), ("count", "scalar")], body)
