"""stic_rope: rotary position embedding of one tile of queries or keys, in place. Lanes are tokens.

    half-split pairs                          feature i           a
      feature i           [ t0 .. t15 ]  a      -> a cos - b sin      cos, sin of token t's position
      feature i + half    [ t0 .. t15 ]  b      -> b cos + a sin      and of frequency i
      features past 2 half                      -> as they are

One step is a pair of features for 16 tokens: 4 loads, 2 products, 2 fma, 2 stores. Bound by stores where a core does
one 512-bit store a cycle, else by loads; cos and sin, 4 KiB for heads of 64, stay in the first-level cache.
"""

from __future__ import annotations

from stic.schedules.cpu.vector_math import fma, negative
from stic.schedules.shape import DecoderShape
from stic.schedules.tir import LANES, Buffer, Expr, PrimFunc, bind, kernel, load, loop, store
from stic.targets.target import Target


def rope(target: Target, shape: DecoderShape) -> PrimFunc:
    """void stic_rope(f32* x, f32* turns, i32 heads, i32 pitch, i32 features): rotate `heads` heads, `pitch` rows apart.

    x (rows, 16) at the first head. turns (features, 16): cos(position[t] * frequency[i]) in rows 0 .. features / 2 - 1,
    the sines after them, for the 16 tokens of the tile; it serves all blocks with these frequencies. The first
    `features` of a head, an even number, turn: feature i with feature i + features / 2 (Su et al., arXiv 2104.09864, in
    the order of features of Touvron et al., arXiv 2302.13971).
    """

    def body(x: Buffer, turns: Buffer, heads: Expr, pitch: Expr, features: Expr) -> None:
        half = bind(features // 2)
        with loop(heads) as head, loop(half) as i:
            cosine, sine = bind(load(turns, i * LANES)), bind(load(turns, (i + half) * LANES))
            at = bind((head * pitch + i) * LANES)
            a, b = bind(load(x, at)), bind(load(x, at + half * LANES))
            store(x, at, fma(negative(b), sine, bind(a * cosine)))
            store(x, at + half * LANES, fma(a, sine, bind(b * cosine)))

    scalars = [(name, "scalar") for name in ("heads", "pitch", "features")]
    return kernel("stic_rope", [("x", "float32"), ("turns", "float32"), *scalars], body)
