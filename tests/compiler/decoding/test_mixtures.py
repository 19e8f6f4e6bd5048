"""Models with bits of their own by slice: side by side, the same as one after another."""

import numpy as np
import pytest

from stic.compiler.decoder.forward import Run, embed, read_block, run_block, run_vocabulary
from stic.compiler.decoding.head import EXACT, Head, divergence, log_softmax
from stic.compiler.decoding.mixtures import Block, exact_assignment, mixture_losses, with_block
from stic.compiler.decoding.stacks import stacks_of
from tests.compiler.decoding.conftest import BITS, SHORT


def alone(quantized, assignment):
    """The loss of one assignment, computed by itself; blocks have one bitwidth, but for the head."""
    decoder, found = quantized.cut.decoder, []
    for bits in (exact_assignment(quantized), assignment):
        run, x = Run(decoder.architecture, SHORT.shape), embed(decoder, SHORT)
        for number, row in enumerate(bits[:-1]):
            own = {} if row[0] == EXACT else quantized.dequantized(number, row[0])
            x = run_block(run, number, read_block(decoder, number) | own, x)
        x = x.reshape(-1, x.shape[-1])
        exact = bits[-1][0] == EXACT
        logits = run_vocabulary(decoder, x) if exact else Head(quantized).logits(x, bits[-1])
        found.append(log_softmax(logits))
    return divergence(*found)


def test_side_by_side_is_what_each_is_alone(quantized):
    exact = exact_assignment(quantized)
    uniform = tuple((3,) * len(row) for row in exact)
    plans = [with_block(exact, n, b) for n in (0, 1, 4, 7) for b in BITS]
    plans += [uniform, with_block(uniform, 3, 8), with_block(exact, len(exact) - 1, 2), exact]
    found = mixture_losses(quantized, SHORT, plans, 2)
    wanted = [alone(quantized, plan) for plan in plans]
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert wanted[-1] == 0 and min(wanted[:-1]) > 0


@pytest.mark.parametrize("number", [0, 1])
def test_slices_have_bits_of_their_own(quantized, number):
    """Each weight is that of its slice's bits, and what slices multiply is the sum of what each does."""
    block, shape = Block(quantized, number), quantized.shapes[number]
    row = tuple(BITS[index % len(BITS)] for index in range(shape.slices))
    assert len(set(row)) > 1
    mixed = block.mixed(row)
    for role, (axis, owners) in stacks_of(quantized.cut, number).owners().items():
        assert mixed[role].shape[axis] == len(owners) and set(owners) == set(range(shape.slices))
        for index, bits in enumerate(row):
            own = (owners == index,) if axis == 0 else (slice(None), owners == index)
            assert np.array_equal(mixed[role][own], block.at(bits)[role][own])
    for role in set(block.exact) - set(stacks_of(quantized.cut, number).owners()):
        assert mixed[role] is block.exact[role]


def test_a_slice_of_the_vocabulary_alone(quantized):
    """Its loss is that of whole distributions with just its logits changed."""
    head, slices = Head(quantized), quantized.shapes[-1].slices
    x = np.random.default_rng(3).standard_normal((6, quantized.cut.decoder.architecture.hidden)).astype(np.float32)
    found = head.slice_losses(x, BITS)
    exact = log_softmax(head.logits(x, (EXACT,) * slices))
    for index, place in np.ndindex(found.shape):
        row = tuple(BITS[place] if n == index else EXACT for n in range(slices))
        assert found[index, place] == pytest.approx(
            divergence(exact, log_softmax(head.logits(x, row))), rel=1e-3, abs=1e-6
        )
    assert np.array_equal(head.logits(x, (EXACT,) * slices), run_vocabulary(quantized.cut.decoder, x))


def test_a_distribution_is_no_distance_from_itself():
    logits = log_softmax(np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32))
    assert divergence(logits, logits) == 0 and divergence(logits, logits[::-1]) > 0
