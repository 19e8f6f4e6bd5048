"""What decoders have beside products and attention, of every target: the bits of `stic.runtime.arithmetic`; which of it
a shape gets.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stic.runtime import arithmetic
from stic.runtime import arithmetic_decoder as mirror
from stic.runtime.architecture import Architecture, Attention, Embedding, FeedForward, Norm, Norms, Rotary, Vocabulary
from stic.runtime.errors import UnsupportedModelError
from stic.runtime.format import TILE
from stic.schedules.pack import pad16
from stic.schedules.rule import kernels_for
from stic.schedules.shape import DecoderShape
from stic.targets.target import load, names
from tests.schedules.conftest import Again
from tests.schedules.decoder_cases import BOTH, CAPPED, GATED, LEARNED, SHAPES, same

every_shape = pytest.mark.parametrize("name", SHAPES)
EXTREMES = (0.0, -0.0, 1e-45, 1e-38, 0.5, 3.0, 60.0, 87.9, 1e4, 1e30, 3e38)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def spread(rng: np.random.Generator) -> np.ndarray:
    """Numbers of all sizes and both signs, in vectors of 16."""
    values = np.concatenate([np.float32(EXTREMES), rng.standard_normal(501).astype(np.float32) * 20])
    return np.concatenate([values, -values]).astype(np.float32).reshape(-1, TILE)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("in_place", [False, True])
def test_norms(decoder: Any, kind: str, in_place: bool) -> None:
    """Features past a hidden state become zero; those past a head, the next one's, stay."""
    rng, shape = np.random.default_rng(1), CAPPED
    cases, calls = [], []
    for k in (1, 2, 3, 5, 16, 40, 63, 64, 576):
        for padded in (pad16(k), k):
            x, gamma, beta = normal(rng, k + 16, TILE) * 30, normal(rng, k), normal(rng, k)
            y = x if in_place else normal(rng, k + 16, TILE)
            cases.append((x, gamma, beta, y, k, padded))
            more = [gamma] if kind == "rms" else [gamma, beta]
            calls.append((f"stic_{kind}_norm", [x, *more, Again(0) if in_place else y, k, padded]))
    for (x, gamma, beta, y, k, padded), answer in zip(cases, decoder.run(calls, shape), strict=True):
        value = x[:k]
        expected = y.copy()
        expected[k:padded] = 0
        if kind == "rms":
            expected[:k] = arithmetic.rms_norm(value, gamma, shape.epsilon)
        else:
            expected[:k] = arithmetic.layer_norm(value, gamma, beta, shape.epsilon)
        assert same(answer[0 if in_place else -1], expected)
        assert in_place or same(answer[0], x)


@every_shape
def test_gate(decoder: Any, name: str) -> None:
    rng, shape = np.random.default_rng(2), SHAPES[name]
    x = spread(rng)
    up = normal(rng, *x.shape)
    up[np.abs(x) > 1e20] = 1
    calls: list[Any] = []
    if True in shape.gated:
        calls.append(("stic_gate", [x, up, len(x)]))
    if False in shape.gated:
        calls.append(("stic_activation", [x, len(x)]))
    function = arithmetic.activation(shape.activation)
    for (kernel, _), answer in zip(calls, decoder.run(calls, shape), strict=True):
        expected = function(x) * up if kernel == "stic_gate" else function(x)
        assert same(answer[0] + np.float32(0), expected + np.float32(0))  # zeros of either sign
        assert kernel != "stic_gate" or same(answer[1], up)


def test_softcap(decoder: Any) -> None:
    x = spread(np.random.default_rng(3))
    cap = CAPPED.logits_cap
    assert cap is not None
    answer = decoder.run([("stic_softcap", [x, len(x)])], CAPPED)[0][0]
    assert same(answer, arithmetic.softcap(x, cap))


def test_add(decoder: Any) -> None:
    rng = np.random.default_rng(4)
    x, y = normal(rng, 7, TILE), normal(rng, 7, TILE)
    answer = decoder.run([("stic_add", [x, y, 6])], GATED)[0][0]
    assert same(answer[:6], (x + y)[:6]) and same(answer[6:], x[6:])


@pytest.mark.parametrize("features", [2, 10, 16, 20])
@pytest.mark.parametrize("pitch", [20, 32])
def test_rope(decoder: Any, features: int, pitch: int) -> None:
    """Heads of 20 features, of which some turn, every `pitch` rows; what is between heads stays."""
    rng, heads, width = np.random.default_rng(5), 3, 20
    x, positions = normal(rng, heads, pitch, TILE), rng.integers(0, 4096, TILE)
    angles = np.outer(10000.0 ** (-np.arange(0, features, 2) / features), positions)
    turns = np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
    end = (heads - 1) * pitch + width
    data = x.reshape(-1, TILE)[:end]
    answer = decoder.run([("stic_rope", [data, turns, heads, pitch, features])], GATED)[0][0]
    expected = x.copy()
    expected[:, :width] = [mirror.rope(head[:width], turns) for head in x]
    assert same(answer, expected.reshape(-1, TILE)[:end])


@every_shape
@pytest.mark.parametrize("n", [1, 16, 17, 40])
def test_embed_plain(decoder: Any, name: str, n: int) -> None:
    rng, shape = np.random.default_rng(n), replace(SHAPES[name])
    hidden, padded, tiles = shape.hidden, shape.padded_hidden, -(-n // TILE)
    position = normal(rng, n, padded).astype(np.float16)
    if shape.row_type == "int8":
        scale_at = -(-hidden // 4) * 4
        words, scales = rng.integers(-127, 128, (n, hidden)).astype(np.int8), np.abs(normal(rng, n)) / 100
        rows = np.zeros((n, scale_at + 4), np.uint8)
        rows[:, :hidden], rows[:, scale_at:] = words.view(np.uint8), scales[:, None].view(np.uint8)
        kernel, factor = "stic_embed_plain_i8", (np.float32(shape.multiplier) * scales)[:, None]
    else:
        words = normal(rng, n, hidden).astype(np.float16)
        rows = np.full((n, hidden + 2), np.nan, np.float16)
        rows[:, :hidden] = words
        kernel, factor = "stic_embed_plain_f16", np.full((n, 1), shape.multiplier, np.float32)
    x = np.full((tiles, padded, TILE), np.nan, np.float32)
    answer = decoder.run([(kernel, [rows, position, x, n, rows.strides[0]])], shape)[0][2]
    plain, place = words.astype(np.float32), position[:, :hidden].astype(np.float32)
    expected = np.zeros((padded, tiles * TILE), np.float32)
    expected[:hidden, :n] = (arithmetic.fma(plain, factor, place) if shape.positions else plain * factor).T
    assert same(answer + np.float32(0), expected.reshape(padded, tiles, TILE).swapaxes(0, 1) + np.float32(0))


def symbols(target: str, shape: DecoderShape) -> set[str]:
    return {str(function.attrs["global_symbol"]) for function in kernels_for(load(target), shape)}


@pytest.mark.parametrize("target", names())
def test_a_shape_gets_what_it_needs(target: str) -> None:
    always = "quantize_grouped dot_grouped dot_grouped_finish rows_grouped_finish add bias matmul_f16 matmul_f32"
    some = {
        "gated": "rms_norm gate rope embed_plain_i8 cache_store_f16 cached_attention_f16",
        "learned": "layer_norm activation embed_plain_f16 cache_store_i8 cached_attention_i8",
        "both": "rms_norm layer_norm gate activation rope softcap embed_plain_i8 cache_store_i8 cached_attention_i8",
    }
    widths = {f"stic_{kind}_b{bits}" for kind in ("unpack", "rows_grouped") for bits in range(2, 9)}
    for name, needed in some.items():
        expected = widths | {f"stic_{kernel}" for kernel in (*always.split(), *needed.split())}
        assert symbols(target, SHAPES[name]) == expected


@every_shape
def test_objects_need_nothing(decoder: Any, name: str) -> None:
    """The library exports stic_* alone and has no undefined symbol: no libm, no libc, no TVM."""
    tool = "aarch64-linux-gnu-nm" if decoder.emulator else "nm"
    command = [tool, "-D", decoder.kernels(SHAPES[name])]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert listed and all(re.search(r" T stic_\w+$", line) for line in listed.splitlines())


NORM = Norm("rms", 1e-5)


def architecture(*blocks: Attention | FeedForward, cap: float | None = None) -> Architecture:
    head = Vocabulary(100, Norms(input=NORM), True, cap)
    return Architecture("test", 48, 100, 64, Embedding(2.0), (*blocks, head), (Rotary((1.0, 0.1)),))


def test_a_shape_of_an_architecture() -> None:
    attention = Attention(4, 2, 12, Norms(input=NORM), rotary=0, window=8)
    ffn = FeedForward(64, "silu", True, Norms(input=NORM))
    shape = DecoderShape.of(architecture(attention, ffn, attention, ffn, cap=30.0), "int8", "float16")
    assert shape == replace(
        GATED, hidden=48, head_dim=12, multiplier=2.0, logits_cap=30.0, row_type="int8", cache="float16"
    )


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Attention(4, 2, 16, Norms(input=NORM)), "head_dim"),
        (Attention(4, 2, 12, Norms(input=Norm("rms", 1e-6))), "epsilon"),
        (Attention(4, 2, 12, Norms(input=NORM), softcap=50.0), "cap of scores"),
    ],
)
def test_what_kernels_have_once(other: Attention, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        DecoderShape.of(architecture(Attention(4, 2, 12, Norms(input=NORM)), other), "int8", "float16")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("activation", "swish"), ("row_type", "int4"), ("cache", "int4"), ("norms", ("batch",)), ("epsilon", 0.0)),
        *(("cap", 0.0), ("logits_cap", -1.0), ("hidden", 0), ("head_dim", 0)),
    ],
)
def test_refusals(field: str, value: Any) -> None:
    with pytest.raises(ValueError):
        replace(BOTH, **{field: value})
    assert LEARNED != BOTH
