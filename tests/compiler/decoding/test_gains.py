"""What bits of a decoder are worth: measured side by side, the same as one variant after another."""

import numpy as np
import pytest

from stic.compiler.decoder.forward import Run, embed, read_block, run_block, run_vocabulary
from stic.compiler.decoding.cut import cut_decoder
from stic.compiler.decoding.gains import JUDGED, TOKENS, WINDOWS, divergence, measure_gains, no_gains
from stic.compiler.decoding.quantize import quantize_decoder
from stic.compiler.decoding.stacks import stacks_of
from tests.compiler.decoding.test_quantize import IDS, make_decoder

BITS = (2, 4, 8)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return quantize_decoder(cut_decoder(make_decoder()), BITS, BITS, IDS, tmp_path_factory.mktemp("codes"), 1)


@pytest.fixture(scope="module")
def gains(quantized):
    return measure_gains(quantized, BITS, IDS, 1)


def reads_of(stacks):
    """What the engine's products read."""
    return lambda _, name, rows: stacks.activations(rows, name)


def alone(quantized, number, bits):
    """The loss of one variant, computed by itself."""
    decoder, ids = quantized.cut.decoder, IDS[-WINDOWS:, :TOKENS]
    step = max(1, ids.size // JUDGED)
    found = []
    for block in (None, number):
        run, x = Run(decoder.architecture, ids.shape), embed(decoder, ids)
        for k in range(len(quantized.shapes) - 1):
            weights = read_block(decoder, k)
            if k == block:
                weights = {**weights, **quantized.dequantized(k, bits)}
                x = run_block(run, k, weights, x, reads_of(stacks_of(quantized.cut, k)))
            else:
                x = run_block(run, k, weights, x)
        found.append(run_vocabulary(decoder, x.reshape(-1, x.shape[-1])[::step]))
    return divergence(*found)


@pytest.mark.parametrize("number", [0, 1, 4, 7])
def test_variants_side_by_side_are_what_they_are_alone(quantized, gains, number):
    for j, bits in enumerate(BITS):
        assert gains.loss[number, j] == pytest.approx(alone(quantized, number, bits), rel=1e-3, abs=1e-6)


def test_fewer_bits_lose_more(gains):
    assert (gains.loss[:, 0] > gains.loss[:, 1]).all() and (gains.loss[:, 1] > gains.loss[:, 2]).all()
    assert (np.diff(gains.gain, axis=2) >= 0).all() and not gains.gain[..., 0].any()


def test_slices_share_what_their_block_is_worth(quantized, gains):
    for number, shape in enumerate(quantized.shapes):
        worth = gains.loss[number, 0] - gains.loss[number]
        assert gains.gain[number].sum(axis=0) == pytest.approx(worth)
        assert not gains.gain[number, shape.slices :].any()


def test_a_planner_that_uses_none_gets_none(quantized):
    assert not no_gains(quantized, BITS).gain.any()


def test_a_distribution_is_no_distance_from_itself():
    logits = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    assert divergence(logits, logits) == 0 and divergence(logits, logits[::-1]) > 0
