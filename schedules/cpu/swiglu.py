"""stic_swiglu: the gated activation of decoders' feed-forward layers, in place.

    gate[16], up[16] -> gate[16] = silu(gate) * up      one vector a step

Instructions a native vector, loop included: 22 on AVX-512, 26 on NEON; bound by silu's division, 9 products and fma.
"""

from __future__ import annotations

from stic.schedules.cpu.vector_math import silu
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, bind, kernel, load, loop, store
from stic.targets.target import Target


def swiglu(target: Target, shape: KernelShape) -> PrimFunc:
    """void stic_swiglu(f32* gate, f32* up, i32 count16): gate = gate / (1 + exp(-gate)) * up, count16 vectors of 16.

    gate and up are rows of the same tokens, as the two projections of the layer left them; up is left unchanged
    (Shazeer, arXiv 2002.05202).
    """

    def body(gate: Buffer, up: Buffer, count: Expr) -> None:
        with loop(count) as i:
            value = silu(bind(load(gate, i * LANES)))
            store(gate, i * LANES, value * load(up, i * LANES))

    return kernel("stic_swiglu", [("gate", "float32"), ("up", "float32"), ("count", "scalar")], body)
