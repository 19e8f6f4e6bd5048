"""What an int8 cache loses, and which form of keys and values a budget is given."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from stic.compiler.decoding.cache_loss import Int8Cache, int8_loss
from stic.compiler.decoding.stages import choose_cache
from stic.compiler.plan import Budget
from stic.compiler.stage import Tell
from stic.runtime.arithmetic import quantize
from stic.runtime.errors import InfeasibleError
from tests.compiler.decoding.test_quantize import IDS, make_decoder
from tests.compiler.planner.test_blocks import problem, uniform


def test_keys_and_values_are_rounded_as_the_engine_rounds_them():
    decoder, rng = make_decoder(), np.random.default_rng(0)
    cache = Int8Cache(decoder.architecture, 1, 8)
    key, value = (rng.standard_normal((1, 2, 5, 16)).astype(np.float32) for _ in range(2))
    value[0, 1, 3] = 0
    for held, given in zip(cache.extend(0, key, value), (key, value), strict=True):
        for head in range(2):
            codes, scale = quantize(np.ascontiguousarray(given[0, head].T))
            np.testing.assert_allclose(held[0, head].T, codes * scale, atol=1e-6)


def test_an_int8_cache_loses_little_but_something():
    assert 0 < int8_loss(make_decoder(), IDS[:2]) < 0.01


NARROW, WIDE = SimpleNamespace(name="int8"), SimpleNamespace(name="float16")


@pytest.mark.parametrize(
    ("loss", "narrow", "wide", "chosen"),
    [
        (1e-9, 2, 4, NARROW),  # a loss that is too small to count
        (0.5, 4, 4, WIDE),  # memory for everything
        (0.5, 4, 2, NARROW),  # what float16 takes costs more bits than it is worth
        (0.5, 4, None, NARROW),  # float16 does not fit
        (0.5, None, None, NARROW),  # nothing fits, which the planner says
    ],
)
def test_the_better_plan_decides(loss, narrow, wide, chosen):
    p, notes = problem(Budget()), []
    bits = {id(p): narrow}

    def posed(materials):
        if materials is NARROW:
            return p
        other = replace(p)
        bits[id(other)] = wide
        return other

    def solve(asked):
        if bits[id(asked)] is None:
            raise InfeasibleError("no plan")
        return uniform(asked, bits[id(asked)], False)

    found = choose_cache(NARROW, loss, lambda _: WIDE, posed, solve, 0.005, Tell(lambda *_: None, notes.append))
    assert found is chosen
    assert not notes or chosen.name in notes[0].split(":")[0] or "are int8" in notes[0]
