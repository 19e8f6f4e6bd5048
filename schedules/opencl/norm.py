"""stic_add_norm: x = LayerNorm(x + y) of tiles of 16 tokens; the norm that stic_embed shares.

A work-group takes a tile (`reduction.py`) and walks three times through its features: sum, squares of what is left
without the mean, result. x + y is added again each time, because it may be stored in half precision only; the second
and third time it comes from the cache. Loads a feature: 3 of x, 3 of y, gamma and beta: bound by memory.
"""

from __future__ import annotations

from collections.abc import Callable

from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.opencl.program import Kernel, Launch
from stic.schedules.opencl.reduction import ITEMS, LOCAL_BYTES, WIDTH, Share, share
from stic.schedules.opencl.source import load_real, load_vector, store_real
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, T, bind, f32, kernel, load, splat, store, when


def layer_norm(
    part: Share,
    read: Callable[[Expr], Expr],
    x: Buffer,
    trunk: Buffer,
    gamma_at: Expr,
    beta_at: Expr,
    shape: KernelShape,
    epsilon: float,
) -> None:
    """Emit x[tile] = LayerNorm(read(feature)) over the true features, and zeros past them."""
    hidden, total = shape.hidden, part.result
    start = bind(part.unit * (shape.padded_hidden * LANES) + part.lane)

    def over_features(term: Callable[[Expr], Expr]) -> Expr:
        store(total, 0, f32(0.0, WIDTH), WIDTH)
        part.rows(hidden, lambda h: store(total, 0, load(total, 0, WIDTH) + term(h), WIDTH))
        return part.reduce(lambda a, b: a + b)

    mean = bind(over_features(read) / f32(hidden, WIDTH))

    def square(h: Expr) -> Expr:
        centred = bind(read(h) - mean)
        return centred * centred

    spread = over_features(square) / f32(hidden, WIDTH) + f32(epsilon, WIDTH)
    inverse = bind(f32(1.0, WIDTH) / T.sqrt(spread))

    def write(h: Expr) -> None:
        gamma, beta = bind(trunk[gamma_at + h]), bind(trunk[beta_at + h])
        normal = (read(h) - mean) * inverse
        store_real(x, start + h * LANES, normal * splat(gamma, WIDTH) + splat(beta, WIDTH), WIDTH)

    part.rows(hidden, write)
    if shape.padded_hidden > hidden:
        with when(part.strip < shape.padded_hidden - hidden):
            store_real(x, start + (part.strip + hidden) * LANES, f32(0.0, WIDTH), WIDTH)


def add_norm(style: Style, shape: KernelShape, storage: GpuPrecision) -> Kernel:
    """(x: S, y: f32, trunk: f32, gamma_at, beta_at, tiles): x, y (tiles, HP, 16). A unit is a tile."""

    def body(x: Buffer, y: Buffer, trunk: Buffer, gamma_at: Expr, beta_at: Expr, tiles: Expr) -> None:
        with share(tiles) as part:

            def read(h: Expr) -> Expr:
                at = bind((part.unit * shape.padded_hidden + h) * LANES + part.lane)
                return bind(load_real(x, at, WIDTH)) + bind(load_vector(y, at, WIDTH))

            layer_norm(part, read, x, trunk, gamma_at, beta_at, shape, shape.norm_epsilon)

    pointers = [("x", storage), ("y", "float32"), ("trunk", "float32")]
    scalars = [(name, "scalar") for name in ("gamma_at", "beta_at", "tiles")]
    launch = Launch("stic_add_norm", (ITEMS,), (1,), LOCAL_BYTES)
    return Kernel(kernel(launch.name, pointers + scalars, body), launch)
