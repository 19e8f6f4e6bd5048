"""A plan of several bitwidths, quantised again: nearer to the model, and made once."""

import shutil

import numpy as np
import pytest

from stic.compiler.decoder.forward import Run, embed, read_block, run_block
from stic.compiler.decoding import apart, quantize
from stic.compiler.decoding import refine as refining
from stic.compiler.decoding.mixtures import Block, exact_assignment
from stic.compiler.decoding.refine import refine
from stic.compiler.decoding.stacks import stacks_of
from tests.compiler.decoding.test_quantize import ALONE, IDS


@pytest.fixture(scope="module")
def plan(quantized):
    """Blocks at 2, 3, 4 and 8 bits, of two bitwidths, and unquantised."""
    rows = [(bits,) * shape.slices for bits, shape in zip((2, 3, 8, 2, 4, 3, 16, 2, 4), quantized.shapes, strict=True)]
    rows[4] = (4, *(3,) * (len(rows[4]) - 1))
    return tuple(rows)


@pytest.fixture(scope="module")
def refined(quantized, plan, tmp_path_factory):
    return refine(quantized, (plan,), IDS, tmp_path_factory.mktemp("fine"), ALONE)


def lost(quantized, plan, codes):
    """How far a plan's stream is from the model's at the end, for texts that nothing is fitted to."""
    decoder, ids = quantized.cut.decoder, np.random.default_rng(9).integers(0, 64, (8, 64))
    streams = []
    for bits in (exact_assignment(quantized), plan):
        run, x = Run(decoder.architecture, ids.shape), embed(decoder, ids)
        for number, row in enumerate(bits[:-1]):
            stacks = stacks_of(quantized.cut, number)
            quantised = set(row) <= {2, 3, 4, 8}
            tap = (lambda _, name, rows, stacks=stacks: stacks.activations(rows, name)) if quantised else None
            weights = read_block(decoder, number) if row[0] == 32 else Block(codes, number).mixed(row)
            x = run_block(run, number, weights, x, tap)
        streams.append(x)
    return float(np.square(streams[1] - streams[0]).mean())


def test_it_is_nearer_to_the_model(quantized, plan, refined):
    assert lost(quantized, plan, refined.fine) < 0.95 * lost(quantized, plan, quantized)


def test_slices_have_other_codes_at_the_plans_bits_alone(quantized, plan, refined):
    for block, row in enumerate(plan[:-1]):
        for index, bits in enumerate(row):
            if bits == 16:
                continue
            name = quantized.shapes[block].matrices[0]
            found, before = (some.level(block, index, name, bits) for some in (refined, quantized))
            assert found.codes.shape == before.codes.shape
            assert np.array_equal(refined.fine.level(block, index, name, bits).codes, found.codes)
            other = next(b for b in (2, 3, 4, 8) if b not in row)
            assert np.array_equal(
                refined.level(block, index, name, other).codes, quantized.level(block, index, name, other).codes
            )
    assert not np.array_equal(refined.level(3, 0, "up", 2).codes, quantized.level(3, 0, "up", 2).codes)


def test_what_was_made_is_not_made_again(quantized, plan, refined, monkeypatch):
    """Nor is a stream run, which nothing is left to be fitted to."""
    for module, name in ((quantize, "quantize_grouped"), (apart, "quantize_grouped"), (refining, "run_block")):
        monkeypatch.setattr(module, name, None)
    told = []
    refine(quantized, (plan,), IDS, refined.fine.folder, ALONE, lambda *now: told.append(now))
    assert told == [(n + 1, len(plan)) for n in range(len(plan))]


@pytest.mark.parametrize("gone", [0, 4, 8])
def test_a_block_that_is_gone_is_made_as_it_was(quantized, plan, refined, tmp_path, gone):
    """Blocks 0 and 4, the second of two bitwidths, lie before others that are there; 8 is the vocabulary."""
    shutil.copytree(refined.fine.folder, tmp_path, dirs_exist_ok=True)
    files = [tmp_path / str(bits) / f"{gone}.npz" for bits in sorted({*plan[gone]})]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    refine(quantized, (plan,), IDS, tmp_path, ALONE)
    assert [path.read_bytes() for path in files] == before


def test_other_plans_and_the_vocabulary_are_no_drafts(quantized, plan, tmp_path):
    """They are quantised for what the exact model reads, in full."""
    other = ((4,) * len(plan[0]), *plan[1:])
    found = refine(quantized, (plan, other), IDS, tmp_path, ALONE)
    last = len(plan) - 1
    for block, name, bits in ((0, "qkv", 4), (last, "head", 4)):
        weight = quantized.weights(block, 0)[name]
        fine, draft = (some.level(block, 0, name, bits) for some in (found, quantized))
        assert not np.array_equal(fine.codes, draft.codes) and fine.codes.shape == weight.shape
    assert np.array_equal(found.level(0, 0, "qkv", 8).codes, quantized.level(0, 0, "qkv", 8).codes)
