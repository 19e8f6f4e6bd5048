"""Products whose columns share scales by groups, of every target: the bits of `stic.runtime.arithmetic_decoder`.

Needs apache-tvm and a C compiler; the aarch64 targets also need qemu-aarch64 and aarch64-linux-gnu-gcc.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stic.runtime import arithmetic_decoder as mirror
from stic.runtime.format import TILE
from stic.schedules.cpu.isa import panel_zero
from stic.schedules.pack import COLUMNS, interleave
from tests.schedules.decoder_cases import GATED, same
from tests.schedules.test_dot import as_panel, grouped, int8s, normal, planes_of, tiles_of

quick = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32 - 1)


def test_a_group_is_the_same_everywhere() -> None:
    assert COLUMNS == mirror.GROUP


def groups_in(k: int) -> int:
    return -(-k // COLUMNS)


def ratios(rng: np.random.Generator, k: int) -> np.ndarray:
    """(groups, 16 rows)"""
    return rng.integers(0, 256, (groups_in(k), TILE)).astype(np.uint8)


def activations(machine: Any, rng: np.random.Generator, k: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Codes (k, 16) of one slice and tile, and what stic_quantize_grouped makes of them: q, offset, scale."""
    codes, scale = int8s(rng, k, TILE), np.abs(normal(rng, groups_in(k), TILE))
    sums = np.stack([codes[group].astype(np.int32).sum(0) for group in mirror.groups_of(k)])
    offset = (-panel_zero(machine.target) * sums).astype(np.int32)
    return codes, [grouped(codes, interleave(machine.target)), offset, scale]


@quick
@given(seed=seeds)
def test_quantize(machine: Any, seed: int) -> None:
    rng, q, zero = np.random.default_rng(seed), interleave(machine.target), panel_zero(machine.target)
    inputs, calls = [], []
    for k in (16, 48, 64, 80, 16 * int(rng.integers(5, 60))):
        x = normal(rng, k, TILE) * 10 ** rng.uniform(-30, 30, (groups_in(k), 1)).repeat(COLUMNS, 0)[:k]
        x[: k // 2, 3], x[:, 5] = 0, x[:, 5] * 1e-38
        x = x.astype(np.float32)
        outputs = [np.ones((k // q, TILE, q), np.int8), np.ones((groups_in(k), TILE), np.float32)]
        inputs.append(x)
        calls.append(("stic_quantize_grouped", [x, *outputs, np.ones((groups_in(k), TILE), np.int32), k]))
    for x, (_, codes, scale, offset) in zip(inputs, machine.run(calls, GATED), strict=True):
        expected, expected_scale = mirror.quantize_grouped(x)
        assert (codes == grouped(expected.astype(np.int8), q)).all()
        assert same(scale, expected_scale)
        sums = [expected[group].sum(0) for group in mirror.groups_of(len(x))]
        assert (offset == -zero * np.stack(sums)).all()


def check_dot(machine: Any, rng: np.random.Generator, tokens: int, widths: list[int]) -> None:
    """Slices of these numbers of columns, one call after the other, then outputs."""
    tiles, y_rows = tiles_of(tokens), TILE * int(rng.integers(1, 3))
    acc, y = np.zeros((tiles, TILE, TILE), np.float32), normal(rng, tiles, y_rows, TILE)
    expected = acc.copy()
    for k in widths:
        weights, ratio = int8s(rng, TILE, k), ratios(rng, k)
        before, behind = 16 * int(rng.integers(0, 3)), 16 * int(rng.integers(0, 3))  # what other slices take of a tile
        parts = [activations(machine, rng, k) for _ in range(tiles)]
        x = np.stack([np.pad(part[0], ((before * TILE, behind * TILE), (0, 0))) for part in flat(parts)])
        offset, scale = (np.stack([part[1][i] for part in parts]) for i in (1, 2))
        arguments = [as_panel(machine, weights), x.reshape(-1)[before * TILE :], offset, scale, ratio, acc]
        x_tile, g_tile = (before + k + behind) * TILE, groups_in(k) * TILE
        acc = machine.run([("stic_dot_grouped", [*arguments, k, x_tile, g_tile, tiles])], GATED)[0][5]
        for t, (codes, (_, _, of_tokens)) in enumerate(parts):
            expected[t] = mirror.add_grouped(expected[t], weights, ratio.T, codes.astype(np.int32), of_tokens)
        assert same(acc, expected)
    scale, bias = normal(rng, TILE), normal(rng, TILE)
    cleared, _, _, out = machine.run([("stic_dot_grouped_finish", [acc, scale, bias, y, y_rows, tiles])], GATED)[0]
    assert not cleared.any() and same(out[:, TILE:], y[:, TILE:])
    assert same(out[:, :TILE], np.stack([mirror.finish_grouped(part, scale, bias) for part in expected]))


def flat(parts: list[tuple[np.ndarray, list[np.ndarray]]]) -> list[tuple[np.ndarray]]:
    """Each tile's q as bytes in one column."""
    return [(part[1][0].reshape(-1, 1),) for part in parts]


@pytest.mark.parametrize("tokens", [1, 16, 17, 33, 64, 100])
def test_dot_shapes(machine: Any, tokens: int) -> None:
    check_dot(machine, np.random.default_rng(tokens), tokens, [16, 64, 80, 112, 192])


@quick
@given(seed=seeds, tokens=st.integers(1, 130), blocks=st.lists(st.integers(1, 14), min_size=1, max_size=3))
def test_dot(machine: Any, seed: int, tokens: int, blocks: list[int]) -> None:
    check_dot(machine, np.random.default_rng(seed), tokens, [TILE * block for block in blocks])


@quick
@given(seed=seeds, tokens=st.integers(1, 8), bits=st.lists(st.integers(2, 8), min_size=1, max_size=4))
def test_rows(machine: Any, seed: int, tokens: int, bits: list[int]) -> None:
    """Slices at different bitwidths, one call after the other, then outputs of few tokens."""
    rng, q = np.random.default_rng(seed), interleave(machine.target)
    room = next(count for count in (1, 2, 4, 8) if count >= tokens)
    acc, expected = np.zeros((room, TILE), np.float32), np.zeros((TILE, tokens), np.float32)
    for bit_count in bits:
        k, pitch = 16 * int(rng.integers(1, 20)), int(rng.choice([8, 16]))
        arguments, weights = planes_of(machine, rng, bit_count, k)
        ratio, (codes, (_, offset, scale)) = ratios(rng, k), activations(machine, rng, k)
        x = grouped(codes, q)[:, :pitch].copy()
        call = [*arguments, x, offset, scale, ratio, acc, k, pitch * q, tokens]
        acc = machine.run([(f"stic_rows_grouped_b{bit_count}", call)], GATED)[0][13]
        few = codes[:, :tokens].astype(np.int32)
        expected = mirror.add_grouped(expected, weights, ratio.T, few, scale[:, :tokens])
        assert same(acc[:tokens], expected.T)
    scale, bias, y = normal(rng, TILE), normal(rng, TILE), np.zeros((TILE, TILE), np.float32)
    cleared, _, _, out = machine.run([("stic_rows_grouped_finish", [acc, scale, bias, y, tokens])], GATED)[0]
    assert not cleared[:tokens].any()
    assert same(out[:, :tokens], mirror.finish_grouped(expected, scale, bias))
