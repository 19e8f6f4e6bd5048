"""A decoder's forward pass: the same by blocks, in chunks, and with weights held; what taps see; how much it holds."""

import tracemalloc

import numpy as np
import pytest

from stic.compiler.decoder.forward import (
    Cache,
    HeldWeights,
    Run,
    embed,
    hidden,
    logits,
    read_block,
    run_block,
    run_vocabulary,
    turns,
)
from stic.compiler.decoder.model import Decoder
from stic.runtime.architecture import (
    Architecture,
    Attention,
    Embedding,
    FeedForward,
    Norm,
    Norms,
    Rotary,
    Vocabulary,
    tensors,
)
from stic.runtime.errors import InputError

RMS, LAYER = Norm("rms", 1e-5), Norm("layer", 1e-5)
HIDDEN, VOCABULARY, TOKENS = 24, 37, 20
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (3, TOKENS))
ROTARY = Rotary((1.0, 0.3, 0.05), 1.1, long=Rotary((0.5, 0.1, 0.01)), switch=TOKENS + 5)


class Random:
    """Weights drawn by block and role; some of the optional ones are absent."""

    def __init__(self, architecture):
        self.listed = {(t.block, t.role): t for t in tensors(architecture)}
        self.asked = []

    def read(self, block, role):
        tensor = self.listed[block, role]
        self.asked.append((block, role))
        random = np.random.default_rng(abs(hash((block or -1, len(role), sum(map(ord, role))))) % 2**32)
        if tensor.optional and random.random() < 0.4:
            return None
        drawn = random.normal(0, tensor.shape[-1] ** -0.5, tensor.shape)
        return (drawn + (role.endswith("gamma"))).astype(np.float32)

    def rows(self, role, first, count):
        key = next(key for key in self.listed if key[1] == role)
        return self.read(*key)[first : first + count]


def attention(**changes):
    return Attention(**{"heads": 4, "key_heads": 2, "head_dim": 8, "norms": Norms(input=RMS), "rotary": 0} | changes)


def feed_forward(**changes):
    return FeedForward(
        **{"neurons": 40, "activation": "silu", "gated": True, "norms": Norms(input=RMS)} | changes
    )  # fmt: skip


BLOCKS = {
    "plain": (attention(), feed_forward()),
    "window": (attention(window=3), feed_forward(), attention(window=7), feed_forward()),
    "caps": (attention(softcap=2.0), feed_forward(activation="gelu_tanh")),
    "post": (attention(norms=Norms(post=LAYER), rotary=None), feed_forward(norms=Norms(post=LAYER), gated=False)),
    "branch": (attention(norms=Norms(branch=RMS)), feed_forward(norms=Norms(RMS, RMS))),
    "parallel": (attention(norms=Norms(LAYER)), feed_forward(norms=Norms(LAYER), parallel=True)),
    "head-norm": (attention(head_norm="head", head_norm_kind=RMS), feed_forward(activation="relu")),
    "head-norms": (attention(head_norm="head", head_norm_kind=LAYER), feed_forward(activation="gelu")),
    "whole-norm": (attention(head_norm="whole", head_norm_kind=RMS, key_heads=1), feed_forward()),
}


def made(name="plain", tied=False, positions=0, softcap=None):
    head = Vocabulary(VOCABULARY, Norms(input=RMS), tied, softcap)
    architecture = Architecture(
        "test", HIDDEN, VOCABULARY, 64, Embedding(1.5, positions), (*BLOCKS[name], head), (ROTARY,)
    )
    return Decoder("random", architecture, Random(architecture))


@pytest.mark.parametrize("name", BLOCKS)
def test_chunks_compute_what_the_whole_does(name):
    decoder = made(name, positions=64)
    cache = Cache(decoder.architecture, len(IDS), TOKENS)
    parts = [logits(decoder, IDS[:, first:end], cache) for first, end in ((0, 1), (1, 2), (2, 13), (13, TOKENS))]
    assert cache.length == TOKENS
    np.testing.assert_allclose(np.concatenate(parts, axis=1), logits(decoder, IDS), atol=2e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_no_token_sees_what_follows(name):
    decoder, other = made(name), IDS.copy()
    other[:, 11:] = (other[:, 11:] + 1) % VOCABULARY
    one, two = logits(decoder, IDS), logits(decoder, other)
    assert np.array_equal(one[:, :11], two[:, :11]) and not np.allclose(one[:, 11:], two[:, 11:])


def test_a_window_hides_what_lies_before_it():
    decoder, other = made("window"), IDS.copy()
    other[:, 0] = (other[:, 0] + 1) % VOCABULARY
    one, two = logits(decoder, IDS), logits(decoder, other)
    reach = (3 - 1) + (7 - 1)  # of two blocks with windows of 3 and 7 tokens, own ones included
    assert not np.allclose(one[:, reach], two[:, reach])
    assert np.array_equal(one[:, reach + 1 :], two[:, reach + 1 :])


def test_a_rewound_cache_computes_the_same_again():
    decoder = made()
    cache = Cache(decoder.architecture, len(IDS), TOKENS)
    logits(decoder, IDS[:, :8], cache)
    one = logits(decoder, IDS[:, 8:], cache)
    cache.length = 8
    assert np.array_equal(logits(decoder, IDS[:, 8:], cache), one)


def test_the_context_of_a_session_chooses_the_rotation():
    decoder = made()
    short, long = (Cache(decoder.architecture, len(IDS), context) for context in (TOKENS + 5, TOKENS + 6))
    assert np.array_equal(logits(decoder, IDS, short), logits(decoder, IDS))
    assert not np.allclose(logits(decoder, IDS, long), logits(decoder, IDS))


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(InputError, match=f"token {token} is none of the {VOCABULARY}"):
        logits(made(), np.array([[3, token]]))


def test_more_tokens_than_there_is_room_for_are_refused():
    decoder = made(positions=TOKENS - 1)
    with pytest.raises(InputError, match="more than the 19"):
        logits(decoder, IDS)
    cache = Cache(decoder.architecture, len(IDS), 8)
    logits(decoder, IDS[:, :6], cache)
    with pytest.raises(InputError, match="9 tokens are more than the 8"):
        logits(decoder, IDS[:, :3], cache)


def test_turns_hold_their_magnitude():
    cosine, sine = turns(ROTARY, np.arange(5))
    assert cosine.shape == (5, 3) and np.allclose(cosine**2 + sine**2, 1.1**2)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_one_at_a_time(name):
    decoder = made(name, tied=True, softcap=3.0)
    run, x = Run(decoder.architecture, IDS.shape), embed(decoder, IDS)
    for number in range(len(decoder.architecture.blocks) - 1):
        before = x.copy()
        after = run_block(run, number, read_block(decoder, number), x)
        assert np.array_equal(x, before)
        x = after
    assert np.array_equal(x, hidden(decoder, IDS))
    found = run_vocabulary(decoder, x)
    assert np.array_equal(found, logits(decoder, IDS)) and np.abs(found).max() < 3


def test_a_tap_sees_and_replaces_what_products_read():
    decoder, seen = made(), []

    def tap(number, product, rows):
        seen.append((number, product, rows.shape))
        return rows * 0 if product == "head" else rows

    bias = decoder.weights.read(2, "head_bias")
    assert np.array_equal(logits(decoder, IDS, tap=tap)[0, 0], np.zeros(VOCABULARY) if bias is None else bias)
    rows = IDS.size
    assert seen == [
        (0, "qkv", (rows, HIDDEN)), (0, "out", (rows, 32)), (1, "up", (rows, HIDDEN)), (1, "down", (rows, 40)),
        (2, "head", (rows, HIDDEN)),
    ]  # fmt: skip


def test_held_weights_are_read_once_and_change_nothing():
    decoder = made()
    wanted = logits(decoder, IDS)
    held = Decoder("held", decoder.architecture, HeldWeights(decoder.weights))
    assert np.array_equal(logits(held, IDS), wanted)
    decoder.weights.asked.clear()
    assert np.array_equal(logits(held, IDS), wanted)
    assert {role for _, role in decoder.weights.asked} <= {"embedding", "head"}
    for role in ("embedding", "head"):
        held.weights.read(None if role == "embedding" else 2, role)
    decoder.weights.asked.clear()
    assert np.array_equal(logits(held, IDS), wanted) and decoder.weights.asked == []


def test_one_block_is_held_at_a_time(tmp_path):
    """Twelve layers in files take less memory than two blocks do in float32."""
    from stic.compiler.frontend.decoders import read_decoder
    from tests.compiler.frontend.families.folders import write

    random, size, neurons, layers = np.random.default_rng(0), 128, 2048, 12
    held = {"model.embed_tokens.weight": random.normal(size=(50, size)), "model.norm.weight": np.ones(size)}
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for part in ("q", "k", "v", "o"):
            held[f"{name}self_attn.{part}_proj.weight"] = random.normal(0, size**-0.5, (size, size))
        for part in ("input", "post_attention"):
            held[f"{name}{part}_layernorm.weight"] = np.ones(size)
        for part, shape in (("gate", (neurons, size)), ("up", (neurons, size)), ("down", (size, neurons))):
            held[f"{name}mlp.{part}_proj.weight"] = random.normal(0, size**-0.5, shape)
    folder = write(
        tmp_path / "model", {name: tensor.astype(np.float16) for name, tensor in held.items()}, hidden_size=size,
        intermediate_size=neurons, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=50, head_dim=32,
    )  # fmt: skip
    del held
    tracemalloc.start()
    logits(read_decoder(folder), np.arange(8)[None])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 4 * 3 * size * neurons < 2 * layers * 3 * size * neurons
