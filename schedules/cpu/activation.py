"""stic_activation: the model's activation, in place.

    x[16] -> x[16]      one vector a step; gelu about 33, gelu_tanh 25, relu 1 instructions a native vector,
                        bound by the chains of exp16, which overlap across steps in an out-of-order core.
"""

from __future__ import annotations

from stic.schedules.cpu import vector_math
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, kernel, load, loop, store
from stic.targets.target import Target

_FUNCTIONS = {"gelu": vector_math.gelu, "gelu_tanh": vector_math.gelu_tanh, "relu": vector_math.relu}


def activation(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_activation(f32* x, i32 count16): count16 vectors of 16."""
    function = _FUNCTIONS[shape.activation]

    def body(x: Buffer, count: Expr) -> None:
        with loop(count) as i:
            store(x, i * LANES, function(load(x, i * LANES)))

    return kernel("stic_activation", [("x", "float32"), ("count", "scalar")], body)
