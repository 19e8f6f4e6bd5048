"""Shapes of decoders that tests share, because a machine compiles the kernels of a shape once for all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stic.schedules.shape import DecoderShape

# They differ in everything that has a kernel of its own.
GATED = DecoderShape(
    hidden=52,
    head_dim=64,
    activation="silu",
    gated=(True,),
    norms=("rms",),
    epsilon=1e-5,
    row_type="int8",
    multiplier=1.0,
    positions=False,
    rotary=True,
    cache="float16",
)
LEARNED = DecoderShape(
    hidden=40,
    head_dim=40,
    activation="gelu_tanh",
    gated=(False,),
    norms=("layer",),
    epsilon=1e-6,
    row_type="float16",
    multiplier=1.0,
    positions=True,
    rotary=False,
    cache="int8",
)
CAPPED = DecoderShape(
    hidden=32,
    head_dim=16,
    activation="gelu",
    gated=(False, True),
    norms=("layer", "rms"),
    epsilon=1e-5,
    row_type="float16",
    multiplier=5.5,
    positions=False,
    rotary=True,
    cache="float16",
    cap=4.0,
    logits_cap=30.0,
)
BOTH = replace(CAPPED, head_dim=128, activation="relu", row_type="int8", positions=True, cache="int8")
WIDE = replace(GATED, head_dim=80, cache="int8")
SHAPES = {"gated": GATED, "learned": LEARNED, "capped": CAPPED, "both": BOTH, "wide": WIDE}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether all bits are the same."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.ascontiguousarray(b).tobytes()
