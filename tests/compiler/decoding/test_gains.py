"""What bits of a decoder are worth: the estimate against the measurement, sums against plans, and going on."""

from dataclasses import replace

import numpy as np
import pytest

from stic.compiler.decoding.gain_jobs import Measured
from stic.compiler.decoding.gains import GainSettings, measure_gains, plan_sums, random_plans, worthless
from stic.compiler.decoding.mixtures import exact_assignment, mixture_losses, with_block
from stic.compiler.importance.jobs import Workers
from stic.compiler.importance.log import EvaluationLog
from stic.compiler.importance.scoring import spearman
from stic.runtime.errors import InputError
from tests.compiler.decoding.conftest import BITS, SHORT

SETTINGS = GainSettings(BITS)


def measure(quantized, settings=SETTINGS, folder=None, progress=lambda done, total: None, workers=None):
    return measure_gains(
        Measured(quantized, SHORT), settings, EvaluationLog(folder, "key"), workers or Workers(1), progress
    )


def test_the_estimate_ranks_as_the_measurement(quantized):
    exact = measure(quantized, replace(SETTINGS, exact=True))
    base = exact_assignment(quantized)
    for number in (0, 5):
        losses = mixture_losses(quantized, SHORT, [with_block(base, number, b) for b in BITS], 1)
        assert np.nansum(exact.raw[number], axis=0) == pytest.approx(losses)
    estimate = measure(quantized)
    blocks = slice(0, len(base) - 1)
    assert estimate.evaluations * len(BITS) == exact.evaluations * 2
    found, wanted = (gains.gain[blocks].sum(axis=1)[:, 1:].ravel() for gains in (estimate, exact))
    assert spearman(found, wanted) > 0.9
    assert np.abs(np.log(found / wanted)).max() < 0.2


def test_gains_rise_and_slices_share_them(quantized):
    gain = measure(quantized).gain
    for number, shape in enumerate(quantized.shapes[:-1]):
        assert (gain[number, : shape.slices] == gain[number, 0]).all() and not gain[number, shape.slices :].any()
    assert (np.diff(gain, axis=2) >= 0).all() and (gain[:, 0, -1] > 0).all() and not gain[..., 0].any()


@pytest.mark.parametrize("head_bits", [(), (8,)])
def test_a_head_whose_bits_are_decided_is_worth_nothing(quantized, head_bits):
    found = measure(replace(quantized, head_bits=head_bits), replace(SETTINGS, plans=2))
    assert not found.gain[-1].any() and found.gain[0, 0, -1] > 0


def test_sums_of_gains_order_plans_as_their_losses(quantized):
    found = measure(quantized, replace(SETTINGS, plans=24))
    (additivity,) = found.additivity
    assert additivity.plans == 24 and additivity.rho > 0.8 and found.rho == additivity.rho
    plans = random_plans(quantized, replace(SETTINGS, plans=24))
    losses = mixture_losses(quantized, SHORT, plans, 1)
    assert additivity.rho == pytest.approx(spearman(np.array([plan_sums(p, found).sum() for p in plans]), -losses))


def test_what_was_stopped_goes_on_where_it_was(quantized, tmp_path):
    """Parts that were written down are not measured again, and the answer is that of one run."""
    settings, told = replace(SETTINGS, plans=70), []

    def stop(done, total):
        told.append((done, total))
        if done > 0.75 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(quantized, settings, tmp_path, stop)
    again = []
    found = measure(quantized, settings, tmp_path, lambda done, total: again.append((done, total)))
    assert 0 < again[0][0] < told[-1][0] and again[-1][0] == again[-1][1] == told[0][1]
    assert [done for done, _ in again] == sorted(done for done, _ in again)
    once = measure(quantized, settings)
    assert np.array_equal(found.gain, once.gain) and found.rho == once.rho
    known = []
    measure(quantized, settings, tmp_path, lambda done, total: known.append(done / total))
    assert known == [1.0]


def test_a_cluster_measures_the_same(quantized, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        found = measure(quantized, workers=Workers(dask=cluster.scheduler_address))
        elsewhere = replace(quantized, folder=tmp_path / "none")
        with pytest.raises(InputError, match=r"a worker has no .*none: let STIC_CACHE name a folder"):
            measure(elsewhere, workers=Workers(dask=cluster.scheduler_address))
    assert np.allclose(found.gain, measure(quantized).gain, rtol=1e-3, atol=1e-6)


def test_a_planner_that_uses_none_gets_none(quantized):
    assert not worthless(quantized, BITS).gain.any()
