"""Matrices in groups: codes, tables, ratios and scales; error fed forward; what is refused."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stic.compiler.model import Array
from stic.compiler.quantization.feedback import BLOCK, Spread, descend, feed_forward, nearest
from stic.compiler.quantization.grouped import GroupedMatrix, column_groups, quantize_grouped
from stic.runtime.errors import InputError

BITS = (2, 3, 4, 5, 6, 8)


def heavy(rows: int, columns: int, seed: int = 0) -> Array:
    """Heavy-tailed weights whose rows differ in size, as trained ones do."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(5, (rows, columns)) * rng.lognormal(-3, 0.5, (rows, 1))
    return weight.astype(np.float32)


def correlated(columns: int, seed: int = 1) -> Array:
    """Second moments of inputs with a mean, a few directions in common, and some features that are much larger."""
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(0, 0.5, columns)
    sizes[:: max(columns // 3, 1)] *= 10
    inputs = (rng.standard_normal((4 * columns, columns)) + rng.standard_normal((4 * columns, 1)) + 0.3) * sizes
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def loss(weight: Array, found: Array, moments: Array) -> float:
    """The mean square error of the output, relative to the output's."""
    error = weight - found
    return float(((error @ moments) * error).sum() / ((weight @ moments) * weight).sum())


@pytest.fixture(scope="module")
def weight() -> Array:
    return heavy(48, 152)


@pytest.fixture(scope="module")
def moments() -> Array:
    return correlated(152)


@pytest.fixture(scope="module")
def quantized(weight: Array, moments: Array) -> GroupedMatrix:
    return quantize_grouped(weight, moments, BITS, column_groups([152], 64))


def test_groups_are_counted_from_each_slice() -> None:
    assert column_groups([3, 5], 2).tolist() == [0, 0, 1, 2, 2, 3, 3, 4]
    assert np.bincount(column_groups([152], 64)).tolist() == [64, 64, 24]
    assert column_groups([64, 64], 64).tolist() == [0] * 64 + [1] * 64
    assert np.bincount(column_groups([80], 128)).tolist() == [80]


@pytest.mark.parametrize("bits", BITS)
def test_codes_tables_ratios_and_scales_have_their_form(quantized: GroupedMatrix, weight: Array, bits: int) -> None:
    codes, table, ratios = quantized.codes[bits], quantized.tables[bits], quantized.ratios[bits]
    assert codes.dtype == np.uint8 and codes.shape == weight.shape and codes.max() < 1 << bits
    assert table.dtype == np.int8 and table.shape == (1 << bits,) and np.abs(table.astype(int)).max() == 127
    assert (np.diff(table.astype(int)) >= 0).all()
    assert ratios.dtype == np.uint8 and ratios.shape == (48, 3) and ratios.min() >= 1
    assert quantized.scale.dtype == np.float32 and (quantized.scale > 0).all()


def test_error_falls_with_every_bit(quantized: GroupedMatrix, weight: Array, moments: Array) -> None:
    losses = [loss(weight, quantized.dequantize(bits), moments) for bits in BITS]
    assert all(finer < 0.5 * coarser for coarser, finer in pairwise(losses))
    assert losses[0] < 0.05 and losses[-1] < 1e-4


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_correlations_are_used(quantized: GroupedMatrix, weight: Array, moments: Array, bits: int) -> None:
    alone = quantize_grouped(weight, np.diag(np.diag(moments)), (bits,), quantized.groups)
    assert loss(weight, quantized.dequantize(bits), moments) < 0.6 * loss(weight, alone.dequantize(bits), moments)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_groups_serve_matrices_whose_columns_differ_in_size(bits: int) -> None:
    weight = heavy(32, 192) * np.repeat(np.float32([1, 20, 5]), 64)
    moments = np.eye(192, dtype=np.float32)
    grouped = quantize_grouped(weight, moments, (bits,), column_groups([192], 64)).dequantize(bits)
    whole = quantize_grouped(weight, moments, (bits,), column_groups([192], 192)).dequantize(bits)
    small = slice(0, 64)
    errors = [np.square(found - weight)[:, small].sum() for found in (grouped, whole)]
    assert errors[0] < 0.3 * errors[1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 8]), st.integers(1, 70), st.integers(1, 12))
def test_what_can_be_represented_is_exact_at_8_bits(seed: int, group: int, columns: int, rows: int) -> None:
    """Whole multiples of a group's unit, its largest weight 127 of them, the row's largest unit 255 row scales."""
    rng = np.random.default_rng(seed)
    groups = column_groups([columns], group)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    steps = rng.integers(-127, 128, (rows, columns)).astype(np.float32)
    steps[:, starts] = 127
    units = rng.integers(1, 256, (rows, len(starts))).astype(np.float32)
    units[:, 0] = 255
    weight = np.ldexp(units[:, groups] * steps, -12).astype(np.float32)
    found = quantize_grouped(weight, np.eye(columns, dtype=np.float32), (8,), groups)
    np.testing.assert_allclose(found.dequantize(8), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_rows_and_groups_of_zeros_stay_zero(bits: int) -> None:
    weight = heavy(6, 100)
    weight[2] = 0
    weight[4, 64:] = 0
    found = quantize_grouped(weight, correlated(100), (bits,), column_groups([100], 64))
    dequantized = found.dequantize(bits)
    assert found.scale[2] == 0 and found.ratios[bits][4, 1] == 0
    assert (dequantized[2] == 0).all() and (dequantized[4, 64:] == 0).all()
    assert loss(weight, dequantized, correlated(100)) < 0.3


@pytest.mark.parametrize("moments", [np.zeros((40, 40)), np.diag(np.arange(40) % 2), np.ones((40, 40))])
def test_inputs_that_are_never_seen_do_no_harm(moments: NDArray[np.float64]) -> None:
    weight = heavy(5, 40)
    found = quantize_grouped(weight, moments.astype(np.float32), (3,), column_groups([40], 64)).dequantize(3)
    assert np.isfinite(found).all() and np.abs(found).max() < 4 * np.abs(weight).max()


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (16, 3), (3, BLOCK + 1)])
def test_any_shape(shape: tuple[int, int]) -> None:
    weight = heavy(*shape)
    found = quantize_grouped(weight, correlated(shape[1]), (2, 4), column_groups([shape[1]], 64))
    assert loss(weight, found.dequantize(4), correlated(shape[1])) < 0.1


def test_bitwidths_do_not_depend_on_each_other(weight: Array, moments: Array, quantized: GroupedMatrix) -> None:
    """And the same weights give the same codes again."""
    alone = quantize_grouped(weight, moments, (3,), quantized.groups)
    np.testing.assert_array_equal(alone.codes[3], quantized.codes[3])
    np.testing.assert_array_equal(alone.ratios[3], quantized.ratios[3])
    np.testing.assert_array_equal(alone.scale, quantized.scale)


def test_parts_are_what_was_cut() -> None:
    weight, moments = heavy(8, 160), correlated(160)
    whole = quantize_grouped(weight, moments, (3,), column_groups([80, 80], 64))
    part = whole.part(slice(2, 6), slice(80, 160))
    np.testing.assert_array_equal(part.dequantize(3), whole.dequantize(3)[2:6, 80:])
    assert np.bincount(part.groups).tolist() == [64, 16] and part.ratios[3].shape == (4, 2)
    with pytest.raises(ValueError, match="whole groups"):
        whole.part(slice(0, 8), slice(0, 70))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["weights", "inputs"])
def test_numbers_that_are_not_finite_are_refused(value: float, which: str) -> None:
    weight, moments = heavy(4, 8), correlated(8)
    (weight if which == "weights" else moments)[1, 1] = value
    with pytest.raises(InputError, match=f"NaN or infinite {which}"):
        quantize_grouped(weight, moments, (4,), column_groups([8], 64))


def test_bits_that_are_not_there_are_refused(quantized: GroupedMatrix) -> None:
    with pytest.raises(InputError, match="has no 7 bits: try one of 2, 3, 4, 5, 6, 8"):
        quantized.dequantize(7)


@given(st.lists(st.integers(-127, 127), min_size=2, max_size=40, unique=True), st.integers(0, 2**32 - 1))
def test_nearest_is_nearest(entries: list[int], seed: int) -> None:
    table = np.sort(np.array(entries, np.float32))
    values = np.random.default_rng(seed).normal(0, 80, 50).astype(np.float32)
    distance = np.abs(values[:, None] - table)
    np.testing.assert_array_equal(distance[np.arange(50), nearest(values, table)], distance.min(axis=1))


@pytest.mark.parametrize("columns", [5, BLOCK, 2 * BLOCK + 7])
def test_each_step_lowers_the_loss(columns: int) -> None:
    """Rounding to nearest, error fed forward, one sweep, two sweeps."""
    weight, moments = heavy(20, columns).T.copy(), correlated(columns) + 0.01 * np.eye(columns, dtype=np.float32)
    table = np.float32([-127, -40, 40, 127])
    unit = np.broadcast_to(np.abs(weight).max(axis=0) / 127, weight.shape)

    def lost(codes: NDArray[np.uint8]) -> float:
        return loss(weight.T, (unit * table[codes]).T, moments)

    fed = feed_forward(weight, unit, table, Spread.of(moments))
    once = descend(weight, unit, table, moments, fed, 1)
    twice = descend(weight, unit, table, moments, fed, 2)
    assert lost(twice) <= lost(once) <= lost(fed) < lost(nearest(weight / unit, table))


def test_a_sweep_leaves_no_code_that_alone_could_be_better() -> None:
    weight, moments = heavy(4, 30).T.copy(), correlated(30) + 0.01 * np.eye(30, dtype=np.float32)
    table = np.float32([-127, -40, 40, 127])
    unit = np.broadcast_to(np.abs(weight).max(axis=0) / 127, weight.shape)
    codes = descend(weight, unit, table, moments, feed_forward(weight, unit, table, Spread.of(moments)), 50)

    def lost(tried: NDArray[np.uint8]) -> float:
        return loss(weight.T, (unit * table[tried]).T, moments)

    best = lost(codes)
    for column in range(30):
        for code in range(4):
            other = codes.copy()
            other[column, 1] = code
            assert lost(other) >= best * (1 - 1e-5)
