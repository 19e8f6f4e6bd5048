"""Mutations of GGUF files, for STIC_FUZZ_SECONDS (default 10): each is read, or refused with a sentence."""

import os
import random
import re
import resource
import struct
import time

import pytest

from stic.compiler.frontend.gguf import read_gguf
from stic.compiler.text.template import ChatTemplate
from stic.compiler.text.tokens import Coder
from stic.runtime.architecture import tensors
from stic.runtime.errors import SticError
from tests.compiler.frontend import gguf_files

SEED, SLOWEST_S, MOST_MIB = 20261201, 20, 512
CHAT = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
HOSTILE = (0, 1, 2, 3, 7, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)

REALS = (0.0, -1.0, 1.0, 1e-45, 1e-30, 0.5, 1e30, 3e38, float("inf"), float("nan"))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    """Files of every tokenizer, and of architectures with keys of their own."""
    folder = tmp_path_factory.mktemp("seeds")
    byte_level = gguf_files.tokens(40) | {"tokenizer.chat_template": CHAT}
    pieces = gguf_files.sentence_pieces()
    count = len(pieces["tokenizer.ggml.tokens"])
    made = [
        gguf_files.random_model(folder / "a.gguf", "llama", 40, byte_level),
        gguf_files.random_model(folder / "b.gguf", "gemma2", count, pieces),
        gguf_files.random_model(folder / "c.gguf", "qwen2", 40, byte_level | {"rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}),
        gguf_files.random_model(folder / "d.gguf", "granite", 40, {"embedding_scale": 2.0, "attention.scale": 0.5,
            "residual_scale": 0.5, "logit_scale": 4.0}),
    ]  # fmt: skip
    for path in made:
        use(path)
    return [path.read_bytes() for path in made]


def use(path) -> None:
    """All that a reader does with a model."""
    decoder = read_gguf(path)
    for tensor in tensors(decoder.architecture):
        decoder.weights.read(tensor.block, tensor.role)
    decoder.weights.rows("embedding", 0, 1)
    if decoder.text.tokenizer is not None:
        coder = Coder(decoder.text, decoder.architecture, "it")
        coder.decode(coder.prompt("Café <s> 🎉", special=True))
    if decoder.text.template is not None:
        ChatTemplate(decoder.text, "it").render([{"role": "user", "content": "x"}])


def mutate(chance: random.Random, whole: bytes) -> bytes:
    """Bytes changed, numbers replaced by hostile ones, parts repeated, left out or exchanged; or an end cut off."""
    data = bytearray(whole)
    head = min(len(data), 4096) if chance.random() < 0.8 else len(data)  # mostly what stands before the weights
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(head)
        kind = chance.randrange(9)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        elif kind == 2:
            data[at : at + 8] = struct.pack("<Q", chance.choice(HOSTILE))
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", chance.choice(HOSTILE) & 0xFFFFFFFF)
        elif kind == 4:
            length = chance.randrange(1, 64)
            data[at:at] = data[at : at + length] if chance.random() < 0.5 else b""
            del data[at : at + chance.randrange(length)]
        elif kind == 5:
            data = data[: chance.randrange(len(data) + 1)] if chance.random() < 0.2 else data
        else:  # what stands behind a name is its type and its value, or the sizes of a tensor
            name = chance.choice([*re.finditer(rb"[a-z0-9_.]{5,}", data[:head])] or [None])
            if name is not None:
                behind = name.end() + chance.choice((0, 4, 4, 4, 8, 12))
                data[behind : behind + 4] = chance.choice(
                    (struct.pack("<I", chance.choice(HOSTILE) & 0xFFFFFFFF), struct.pack("<f", chance.choice(REALS)))
                )
        head = max(min(head, len(data)), 1)
        data = data or bytearray(1)
    return bytes(data)


def test_reader_survives_mutations(seeds, tmp_path):
    chance, path = random.Random(SEED), tmp_path / "m.gguf"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + int(os.environ.get("STIC_FUZZ_SECONDS", "10"))
    runs = refused = 0
    while time.monotonic() < end or not runs:
        path.write_bytes(mutate(chance, chance.choice(seeds)))
        begun = time.process_time()
        try:
            use(path)
        except SticError as error:
            refused += 1
            assert "\n" not in str(error), error
        except BaseException as error:
            raise AssertionError(f"run {runs} of seed {SEED}: {error!r}") from error
        assert time.process_time() - begun < SLOWEST_S, f"run {runs} of seed {SEED} takes too long"
        runs += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < MOST_MIB, f"{runs} files took {grown} MiB"
    assert refused or runs < 10


KEYS = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.sliding_window", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window_pattern", "attn_logit_softcapping", "attention.scale", "rope.freq_base",
    "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "embedding_scale", "logit_scale", "vocab_size", "expert_count",
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.scores", "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type", "tokenizer.ggml.add_bos_token", "tokenizer.chat_template", "general.alignment",
)  # fmt: skip
VALUES = (
    0,
    1,
    2,
    3,
    33,
    2**31,
    2**32 - 1,
    *REALS,
    True,
    "",
    "linear",
    "yarn",
    "longrope",
    [0],
    [1, 1],
    [2, 1],
    ["a b"],
)


@pytest.mark.parametrize("arch", ["gemma2", "granite"])
@pytest.mark.parametrize("key", KEYS)
def test_no_value_of_a_key_is_a_defect(key, arch, tmp_path):
    base = {"embedding_scale": 2.0, "attention.scale": 0.5, "residual_scale": 0.5, "logit_scale": 4.0}
    base = (base if arch == "granite" else {}) | gguf_files.sentence_pieces()
    for value in VALUES:
        path = gguf_files.random_model(tmp_path / "m.gguf", arch, 295, base | {key: value})
        try:
            use(path)
        except SticError as error:
            assert "\n" not in str(error)
