"""stic_embed: rows of the embedding tables -> normalised activations, tokens in lanes.

A work-item gathers a feature of 8 tokens: 3 scalar loads each, once for every walk of the norm (`norm.py`), where
neighbouring strips read neighbouring features. Bound by the latency of the loads; but a run does this once for n * H
values, of which every layer multiplies each with 12 H weights.
"""

from __future__ import annotations

from stic.runtime.gpu_format import GpuPrecision, Style
from stic.schedules.opencl.norm import layer_norm
from stic.schedules.opencl.program import Kernel, Launch
from stic.schedules.opencl.reduction import ITEMS, LOCAL_BYTES, WIDTH, share
from stic.schedules.opencl.source import load_real, load_vector
from stic.schedules.shape import KernelShape
from stic.schedules.tir import LANES, Buffer, Expr, T, bind, bits, cast, kernel, load, local, pick, store


def embed(style: Style, shape: KernelShape, storage: GpuPrecision) -> Kernel:
    """(rows: u8, types: i32, trunk: f32, trunk: f16, x: S, n, row_stride, position_at, token_type_at, gamma_at,
    beta_at): word row * its scale + position row + type row, then LayerNorm. A unit is a tile.

    rows (n, row_stride): H int8, float32 scale at byte round_up(H, 4). Positions and token types are found in halfs of
    the trunk (.., HP), gamma and beta in floats. Lanes past n are zero before the norm. x (ceil(n / 16), HP, 16).
    """
    scale_at = -(-shape.hidden // 4) * 4

    def body(
        rows: Buffer,
        types: Buffer,
        trunk: Buffer,
        halfs: Buffer,
        x: Buffer,
        n: Expr,
        row_stride: Expr,
        position_at: Expr,
        token_type_at: Expr,
        gamma_at: Expr,
        beta_at: Expr,
    ) -> None:
        floats, words = (WIDTH, "float32"), (WIDTH, "int32")
        with share((n + LANES - 1) // LANES) as part:
            with local(floats, floats, words, words, words) as (values, scales, row, place, kind):
                first = bind(part.unit * LANES + part.lane)
                for i in range(WIDTH):
                    token = bind(T.min(first + i, n - 1))
                    store(row, i, token * row_stride, 1)
                    store(place, i, position_at + token * shape.padded_hidden, 1)
                    store(kind, i, token_type_at + types[token] * shape.padded_hidden, 1)
                    scale = bits(bind(load_vector(rows, row[i] + scale_at, 4)), "float32")
                    store(scales, i, scale, 1)

                def read(h: Expr) -> Expr:
                    for i in range(WIDTH):
                        word = cast(bits(rows[row[i] + h], "int8"), "float32")
                        position, sort = (bind(load_real(halfs, at[i] + h, 1)) for at in (place, kind))
                        value = word * scales[i] + (position + sort)
                        store(values, i, pick(first + i < n, value, T.float32(0.0)), 1)
                    return bind(load(values, 0, WIDTH))

                layer_norm(part, read, x, trunk, gamma_at, beta_at, shape, shape.embed_epsilon)

    pointers = [
        ("rows", "uint8"),
        ("types", "int32"),
        ("trunk", "float32"),
        ("halfs", "float16"),
        ("x", storage),
    ]
    names = ("n", "row_stride", "position_at", "token_type_at", "gamma_at", "beta_at")
    launch = Launch("stic_embed", (ITEMS,), (1,), LOCAL_BYTES)
    return Kernel(kernel(launch.name, [*pointers, *((name, "scalar") for name in names)], body), launch)
