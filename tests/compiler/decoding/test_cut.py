"""How a decoder is cut: slices cover every weight once, and put together give what they were cut from."""

import numpy as np
import pytest

from stic.compiler.decoder.model import Decoder
from stic.compiler.decoding.cut import cut_decoder
from stic.compiler.decoding.stacks import stacks_of
from stic.compiler.decoding.synthetic import random_decoder
from stic.runtime.architecture import Architecture, Attention, Embedding, FeedForward, Norm, Norms, Vocabulary
from stic.runtime.errors import InputError, UnsupportedModelError

RMS = Norms(input=Norm("rms", 1e-5))


def decoder_of(
    heads: int = 6, key_heads: int = 3, head_dim: int = 10, neurons: int = 100, rows: int = 70, gated: bool = True
) -> Decoder:
    blocks = (Attention(heads, key_heads, head_dim, RMS), FeedForward(neurons, "silu", gated, RMS))
    head = Vocabulary(rows, RMS, tied=True)
    return random_decoder(Architecture("llama", 40, rows, 64, Embedding(), (*blocks, head)))


SHAPES = [
    {},
    {"key_heads": 1},
    {"heads": 8, "key_heads": 8, "head_dim": 7},
    {"neurons": 17},
    {"neurons": 1000, "gated": False},
    {"rows": 5000},
]


@pytest.mark.parametrize("sizes", SHAPES)
def test_slices_hold_every_weight_once(sizes):
    decoder = decoder_of(**sizes)
    cut = cut_decoder(decoder)
    for number, roles in enumerate((("query", "key", "value", "output"), ("gate", "up", "down"))):
        stacks = stacks_of(cut, number)
        found = stacks.roles(stacks.read())
        wanted = [role for role in roles if role != "gate" or cut.shapes[number].gated]
        assert sorted(found) == sorted(wanted)
        for role in wanted:
            assert np.array_equal(found[role], decoder.weights.read(number, role))
        for index, matrices in enumerate(cut.slices(number)):
            for name, matrix in matrices.items():
                rows, columns = cut.used(number, name, index)
                assert matrix.shape == cut.shapes[number].matrix(name) == (len(rows), len(columns))
                assert not matrix[~rows].any() and not matrix[:, ~columns].any()


@pytest.mark.parametrize("sizes", SHAPES)
def test_rows_of_the_vocabulary_stand_in_their_order(sizes):
    decoder = decoder_of(**sizes)
    cut = cut_decoder(decoder)
    rows = [m["head"][cut.used(2, "head", n)[0]][:, : decoder.architecture.hidden] for n, m in enumerate(cut.slices(2))]
    assert np.array_equal(np.concatenate(rows), decoder.weights.rows("embedding", 0, decoder.architecture.head.rows))


def test_blocks_alike_share_a_shape():
    first = decoder_of().architecture
    architecture = Architecture("llama", 40, 70, 64, Embedding(), (*first.blocks[:2] * 3, first.head))
    cut = cut_decoder(random_decoder(architecture))
    assert len(cut.kinds) == 3 and len(cut.shapes) == 7
    assert cut.shapes[0] is cut.shapes[2]


def test_slices_that_do_not_divide_the_key_heads_are_refused():
    with pytest.raises(InputError, match="3 key heads, which 2 slices do not divide; try 1, 3"):
        cut_decoder(decoder_of(), 2)


@pytest.mark.parametrize(("key_heads", "head_dim", "slices"), [(4, 16, 4), (4, 8, 2), (6, 8, 3), (3, 16, 3)])
def test_a_norm_over_all_heads_leaves_no_padding(key_heads, head_dim, slices):
    attention = Attention(key_heads, key_heads, head_dim, RMS, head_norm="whole", head_norm_kind=Norm("rms", 1e-5))
    blocks = (attention, Vocabulary(16, RMS, tied=True))
    cut = cut_decoder(random_decoder(Architecture("olmo2", 32, 16, 64, Embedding(), blocks)))
    assert cut.shapes[0].slices == slices


def test_a_norm_over_heads_that_must_be_padded_is_refused():
    attention = Attention(3, 3, 10, RMS, head_norm="whole", head_norm_kind=Norm("rms", 1e-5))
    blocks = (attention, Vocabulary(16, RMS, tied=True))
    with pytest.raises(UnsupportedModelError, match="3 key heads of 10 features"):
        cut_decoder(random_decoder(Architecture("olmo2", 32, 16, 64, Embedding(), blocks)))
