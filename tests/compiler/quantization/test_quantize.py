"""Quantisation: nested codes, tables, scales and outliers, and the published yardstick."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stic.compiler.model import Array, Embeddings, Head, Layer, Linear, Model, Norm
from stic.compiler.offers import QUANTIZERS
from stic.compiler.quantization.codebook import LEAVES, Tree, fit_tree
from stic.compiler.quantization.gobo import OUTLIER_Z, dictionary
from stic.compiler.quantization.moments import input_moments, random_tokens, tapped_states
from stic.compiler.quantization.nested import PRIORITY, fit_nested
from stic.compiler.quantization.quantize import (
    QuantizedModel,
    _damped,
    bytes_per_weight,
    dequantize,
    outlier_rate,
    quantize,
    store_bytes,
    uniform,
)
from stic.compiler.quantization.rounding import round_jointly
from stic.compiler.sharding import ShardedModel, shard, shard_matrices
from stic.runtime.errors import InputError
from stic.runtime.format import JOINED, LEVEL_BITS, MATRICES


def make_sharded(hidden: int, heads: int, head_dim: int, ffn: int, seed: int = 0) -> ShardedModel:
    """One layer of heavy-tailed weights whose rows differ in size, as trained ones do."""
    rng = np.random.default_rng(seed)

    def linear(rows: int, columns: int) -> Linear:
        weight = rng.standard_t(5, (rows, columns)) * rng.lognormal(-3, 0.5, (rows, 1))
        return Linear(weight.astype(np.float32), np.zeros(rows, np.float32))

    def norm() -> Norm:
        return Norm(np.ones(hidden, np.float32), np.full(hidden, 0.3, np.float32), 1e-12)

    width = heads * head_dim
    query, key, value = (linear(width, hidden) for _ in range(3))
    layer = Layer(query, key, value, linear(hidden, width), norm(), linear(ffn, hidden), linear(hidden, ffn), norm())
    word = rng.standard_normal((50, hidden)).astype(np.float32)
    embeddings = Embeddings(word, np.zeros((40, hidden), np.float32), None, norm())
    return shard(Model("random", heads, "gelu", embeddings, (layer,), Head("tokens"), head_dim**-0.5))


@pytest.fixture(scope="module")
def sharded() -> ShardedModel:
    return make_sharded(80, 4, 20, 200)


@pytest.fixture(scope="module", params=QUANTIZERS)
def quantized(request: pytest.FixtureRequest, sharded: ShardedModel) -> QuantizedModel:
    return quantize(sharded, request.param)


def _error(quantized: QuantizedModel, bits: int) -> float:
    total = 0.0
    for index in range(quantized.sharded.geometry.slices):
        weights = shard_matrices(quantized.sharded, 0, index)
        total += sum(
            float(np.square(dequantize(quantized, 0, index, name, bits) - weights[name]).sum())
            for name in MATRICES["layer"]
        )
    return total


def test_codes_tables_and_scales_have_their_form(quantized: QuantizedModel) -> None:
    g = quantized.sharded.geometry
    for index in range(g.slices):
        for name in MATRICES["layer"]:
            matrix = quantized.matrix(0, index, name)
            rows = g.used(name, index)[0]
            for bits in LEVEL_BITS:
                codes, lut = matrix.codes_at(bits), matrix.luts[bits]
                assert codes.dtype == np.uint8 and codes.shape == g.matrix_shape(name)
                assert codes.max() < 1 << bits
                assert lut.dtype == np.int8 and lut.shape == (1 << bits,)
                assert np.abs(lut.astype(int)).max() <= 127
                assert (np.diff(lut.astype(int)) >= 0).all()
            assert matrix.scale.dtype == np.float32 and (matrix.scale[~rows] == 0).all()
            if name in JOINED:
                np.testing.assert_array_equal(matrix.scale, quantized.matrix(0, 0, name).scale)


def test_error_falls_with_every_bit(quantized: QuantizedModel) -> None:
    errors = [_error(quantized, bits) for bits in (2, 3, 4, 5, 6, 7, 8, 16, 32)]
    assert all(finer < coarser for coarser, finer in pairwise(errors))
    assert errors[-1] == 0
    shards = [shard_matrices(quantized.sharded, 0, index) for index in range(4)]
    energy = sum(float(np.square(weights).sum()) for matrices in shards for weights in matrices.values())
    assert errors[0] < 0.2 * energy and errors[6] < 2e-3 * energy


def test_nested_codes_are_prefixes(sharded: ShardedModel) -> None:
    matrix = quantize(sharded).matrix(0, 1, "up")
    for fewer, more in pairwise(LEVEL_BITS):
        np.testing.assert_array_equal(matrix.codes_at(fewer), matrix.codes_at(more) >> 1)


def test_outliers_are_exact_and_sorted(quantized: QuantizedModel) -> None:
    kept = 0
    for index in range(4):
        weights = shard_matrices(quantized.sharded, 0, index)
        for name in MATRICES["layer"]:
            o = quantized.matrix(0, index, name).outliers
            kept += len(o)
            expected = weights[name][o.rows, o.columns].astype(np.float16)
            np.testing.assert_array_equal(o.values, expected)
            np.testing.assert_array_equal(dequantize(quantized, 0, index, name, 2)[o.rows, o.columns], expected)
            places = o.rows.astype(np.int64) * weights[name].shape[1] + o.columns
            assert (np.diff(places) > 0).all()
    assert kept > 0
    assert all(0 < rate < 0.03 for rate in outlier_rate(quantized).values())


def test_the_code_at_an_outlier_is_the_middle_one(quantized: QuantizedModel) -> None:
    for name in MATRICES["layer"]:
        matrix = quantized.matrix(0, 1, name)
        o = matrix.outliers
        assert len(o) > 0
        for bits in LEVEL_BITS:
            assert (matrix.codes_at(bits)[o.rows, o.columns] == 1 << (bits - 1)).all()
    with pytest.raises(ValueError, match="another code than"):
        replace(matrix, codes={bits: codes ^ np.uint8(1) for bits, codes in matrix.codes.items()})


def test_codes_around_outliers_are_chosen_as_if_those_were_exact(sharded: ShardedModel) -> None:
    """Joint rounding sees no error at an outlier, whatever its weight: the other codes do not depend on it."""
    weights = [shard_matrices(sharded, 0, 0)["up"][np.ix_(*sharded.geometry.used("up", 0))]]
    moments = [_damped(input_moments(sharded)[0, "up"][0], weights[0].shape[1])]
    _, (fit,) = fit_nested(weights, moments, 0.01)
    assert fit.outlier.any()
    moved = [np.where(fit.outlier, 10 * weights[0], weights[0])]
    _, (other,) = fit_nested(moved, moments, 0.01)
    np.testing.assert_array_equal(other.outlier, fit.outlier)
    np.testing.assert_array_equal(other.codes[8][~fit.outlier], fit.codes[8][~fit.outlier])


def test_dequantize_is_scale_times_table(quantized: QuantizedModel) -> None:
    matrix = quantized.matrix(0, 2, "down")
    rows, columns = quantized.sharded.geometry.used("down", 2)
    expected = matrix.scale[:, None] * matrix.luts[5].astype(np.float32)[matrix.codes_at(5)]
    expected[matrix.outliers.rows, matrix.outliers.columns] = matrix.outliers.values
    got = dequantize(quantized, 0, 2, "down", 5)
    np.testing.assert_array_equal(got[np.ix_(rows, columns)], expected[np.ix_(rows, columns)])
    exact = dequantize(quantized, 0, 2, "down", 5, exact_tables=True)
    assert 0 < np.abs(exact - got).max() <= 0.51 * matrix.scale.max()


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 18), st.integers(1, 50), st.sampled_from(QUANTIZERS))
def test_padding_never_matters(hidden: int, heads: int, head_dim: int, ffn: int, quantizer: str) -> None:
    sharded = make_sharded(hidden, heads, head_dim, ffn, seed=hidden)
    result = quantize(sharded, "gobo" if quantizer == "gobo" else "nested")
    for index in range(heads):
        weights = shard_matrices(sharded, 0, index)
        for name in MATRICES["layer"]:
            rows, columns = sharded.geometry.used(name, index)
            for bits in (2, 8):
                got = dequantize(result, 0, index, name, bits)
                assert np.isfinite(got).all()
                assert not got[~rows].any() and not got[:, ~columns].any()
            assert np.abs(got - weights[name]).max() <= 0.5 * max(np.abs(weights[name]).max(), 1e-6)
            o = result.matrix(0, index, name).outliers
            assert rows[o.rows].all() and columns[o.columns].all()


def test_constant_and_zero_weights_survive() -> None:
    sharded = make_sharded(16, 2, 8, 32)
    layer = sharded.model.layers[0]
    layer.ffn_in.weight[:] = 0
    layer.output.weight[:] = 0.25
    for quantizer in QUANTIZERS:
        result = quantize(sharded, quantizer)
        for bits in (2, 8):
            assert not dequantize(result, 0, 0, "up", bits).any()
            used = np.ix_(*sharded.geometry.used("out", 0))
            np.testing.assert_allclose(dequantize(result, 0, 0, "out", bits)[used], 0.25, rtol=0.01)


def test_the_tree_beats_greedy_splitting_where_it_counts() -> None:
    values = np.random.default_rng(1).standard_normal(20000).astype(np.float32)
    ones = np.ones_like(values)

    def loss(rounds: int) -> float:
        tree = fit_tree(values, ones, PRIORITY, rounds)
        codes = tree.codes(values)
        return sum(
            PRIORITY[bits] * float(np.square(values - tree.centroids[bits][codes >> (8 - bits)]).mean())
            for bits in LEVEL_BITS
        )

    assert loss(8) < loss(1)
    tree = fit_tree(values, ones, PRIORITY)
    assert len(tree.thresholds) == LEAVES - 1 and (np.diff(tree.thresholds) >= 0).all()
    error2 = np.square(values - tree.centroids[2][tree.codes(values) >> 6]).mean()
    assert error2 < 1.05 * 0.1175  # the best four levels for a unit normal leave 0.1175 (Max, 1960)


@pytest.mark.parametrize("spread", [0.0, 1e-38, 1e-9, 1.0, 1e30])
@pytest.mark.parametrize("crowd", [1, 8, 9, 100])
def test_codes_count_the_thresholds_below(spread: float, crowd: int) -> None:
    rng = np.random.default_rng(crowd)
    thresholds = np.sort(rng.standard_normal(LEAVES - 1)) * spread
    thresholds[40 : 40 + crowd] = thresholds[40]
    tree = Tree(thresholds, {})
    values = np.concatenate((thresholds, rng.standard_normal(2000) * spread, [0, -spread * 9, spread * 9]))
    found = tree.codes(values.astype(np.float32).reshape(2, -1))
    expected = (thresholds.astype(np.float32) <= values.astype(np.float32)[:, None]).sum(axis=1)
    np.testing.assert_array_equal(found.ravel(), expected)


def test_joint_rounding_lowers_the_error_of_outputs() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((40, 64)).astype(np.float32)
    inputs = (rng.standard_normal((500, 64)) + 1.5).astype(np.float32)
    moments = inputs.T @ inputs / len(inputs)
    tree = fit_tree(values.ravel(), np.ones(values.size, np.float32), PRIORITY)
    nobody = np.zeros(values.shape, np.bool_)
    joint = round_jointly(values, tree, moments, nobody, PRIORITY)

    def output_error(codes: Array, bits: int) -> float:
        error = values - tree.centroids[bits][codes >> (8 - bits)]
        return float(np.einsum("nk,kj,nj->", error, moments, error))

    nearest = tree.codes(values)
    for bits in LEVEL_BITS:
        assert output_error(joint, bits) < (0.8 if bits < 7 else 2.0) * output_error(nearest, bits)
    frozen = ~nobody
    np.testing.assert_array_equal(round_jointly(values, tree, moments, frozen, PRIORITY), nearest)


def test_moments_are_those_of_the_inputs(sharded: ShardedModel) -> None:
    seen = []

    def tap(layer: int, name: str, x: Array) -> Array:
        if name == "up":
            seen.append(x)
        return x

    for ids in random_tokens(sharded.model):
        tapped_states(sharded.model, ids[None], None, None, tap)
    x = np.concatenate(seen)
    moments = input_moments(sharded)
    np.testing.assert_allclose(moments[0, "up"][0], x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    assert moments[0, "down"].shape == (4, 50, 50) and moments[0, "out"].shape == (4, 20, 20)


def test_gobo_dictionaries_are_independent_and_beat_their_start() -> None:
    values = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
    for bits in (2, 3, 6):
        table = dictionary(values, bits)
        count = 1 << bits
        start = np.array([part.mean() for part in np.array_split(np.sort(values), count)])

        def l1(entries: Array) -> float:
            return float(np.abs(values[:, None] - entries[None, :]).min(axis=1).sum())

        assert table.shape == (count,) and (np.diff(table) >= 0).all()
        assert l1(table) < l1(start)


def test_gobo_outliers_are_those_of_the_gaussian(sharded: ShardedModel) -> None:
    weights = shard_matrices(sharded, 0, 0)["qkv"][np.ix_(*sharded.geometry.used("qkv", 0))]
    expected = int((np.abs(weights - weights.mean()) > OUTLIER_Z * weights.std()).sum())
    assert len(quantize(sharded, "gobo").matrix(0, 0, "qkv").outliers) == expected


def test_gobo_takes_no_moments_and_progress_is_told(sharded: ShardedModel) -> None:
    told: list[tuple[int, int]] = []
    given = quantize(sharded, "gobo", moments=input_moments(sharded), progress=lambda *at: told.append(at))
    assert told == [(1, 1)]
    assert set(given.matrix(0, 0, "up").codes) == set(LEVEL_BITS)
    assert set(quantize(sharded).matrix(0, 0, "up").codes) == {8}


def test_bytes_count_everything(sharded: ShardedModel) -> None:
    nested, gobo = quantize(sharded), quantize(sharded, "gobo")
    for bits in (2, 4, 8):
        assert bytes_per_weight(nested, bits) > bits / 8
        assert bytes_per_weight(gobo, bits) > bits / 8
    assert bytes_per_weight(nested, 16) >= 2
    assert store_bytes(nested, LEVEL_BITS) == store_bytes(nested, (8,))
    assert store_bytes(gobo, (2, 4)) > store_bytes(gobo, (4,))


def test_wrong_requests_are_refused(sharded: ShardedModel) -> None:
    with pytest.raises(InputError, match="nested, gobo"):
        quantize(sharded, "other")
    with pytest.raises(InputError, match="9 bits"):
        dequantize(quantize(sharded, "gobo"), 0, 0, "up", 9)
    broken = make_sharded(16, 1, 4, 8)
    broken.model.layers[0].ffn_out.weight[0, 0] = np.nan
    with pytest.raises(InputError, match="layer 0, down"):
        quantize(broken, "gobo")


def test_uniform_model_carries_the_dequantised_weights(quantized: QuantizedModel) -> None:
    g = quantized.sharded.geometry
    model = uniform(quantized, 3)
    expected = dequantize(quantized, 0, 3, "up", 3)[: len(g.neurons(3)), : g.hidden]
    np.testing.assert_array_equal(model.layers[0].ffn_in.weight[g.neurons(3)], expected)
