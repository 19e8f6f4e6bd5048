"""stic_gate, stic_softcap, stic_add: what a decoder does to single numbers, in place.

    gate[16], up[16] -> gate[16] = act(gate) * up      one vector a step
    x[16]            -> x[16] = c tanh(x / c)
    x[16], y[16]     -> x[16] = x + y

Instructions a native vector, loop included: silu 22 on AVX-512, 26 on NEON, bound by its division, 9 products and fma;
softcap the same but for one product; add 5, bound by loads. Activations are those of activation.py.
"""

from __future__ import annotations

from stic.schedules.cpu.activation import function_of
from stic.schedules.cpu.vector_math import softcap as capped
from stic.schedules.shape import DecoderShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, bind, kernel, load, loop, store
from stic.targets.target import Target


def gate(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_gate(f32* gate, f32* up, i32 count16): gate = act(gate) * up, count16 vectors of 16.

    gate and up are rows of the same tokens, as the two projections of the block left them; up is left unchanged
    (Shazeer, arXiv 2002.05202).
    """
    function = function_of(shape)

    def body(gates: Buffer, up: Buffer, count: Expr) -> None:
        with loop(count) as i:
            store(gates, i * LANES, bind(function(bind(load(gates, i * LANES)))) * load(up, i * LANES))

    return kernel("stic_gate", [("gate", "float32"), ("up", "float32"), ("count", "scalar")], body)


def softcap(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_softcap(f32* x, i32 count16): x = c tanh(x / c), c the cap of the logits, count16 vectors of 16."""
    cap = shape.logits_cap
    assert cap is not None

    def body(x: Buffer, count: Expr) -> None:
        with loop(count) as i:
            store(x, i * LANES, capped(load(x, i * LANES), cap))

    return kernel("stic_softcap", [("x", "float32"), ("count", "scalar")], body)


def add(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_add(f32* x, f32* y, i32 count16): x += y, count16 vectors of 16."""

    def body(x: Buffer, y: Buffer, count: Expr) -> None:
        with loop(count) as i:
            store(x, i * LANES, load(x, i * LANES) + load(y, i * LANES))

    return kernel("stic_add", [("x", "float32"), ("y", "float32"), ("count", "scalar")], body)
