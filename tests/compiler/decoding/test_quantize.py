"""A decoder quantised block by block on its own stream: what it makes up for, what is kept, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from stic.compiler.decoder.forward import Run, embed, read_block, run_block
from stic.compiler.decoder.model import Array, Decoder
from stic.compiler.decoding.cut import cut_decoder
from stic.compiler.decoding.quantize import QuantizedDecoder, _loaded, quantize_decoder
from stic.compiler.importance.jobs import Workers
from stic.compiler.quantization import targets
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

RMS = Norms(input=Norm("rms", 1e-5))
HIDDEN, VOCABULARY, LAYERS = 48, 64, 4
ALONE = Workers(1)
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 64))


class Drawn:
    """Weights by block and role, the same at every reading; `spoilt` has a NaN."""

    def __init__(self, architecture: Architecture, spoilt: tuple[int, str] | None = None) -> None:
        rng = np.random.default_rng(5)
        self.held = {}
        for tensor in tensors(architecture):
            if not tensor.optional:
                drawn = rng.standard_t(5, tensor.shape) / tensor.shape[-1] ** 0.5
                gamma = tensor.role.endswith("gamma")
                self.held[tensor.block, tensor.role] = (1 + 0.1 * drawn if gamma else drawn).astype(np.float32)
        if spoilt is not None:
            self.held[spoilt].flat[3] = np.nan

    def read(self, block: int | None, role: str) -> Array | None:
        found = self.held.get((block, role))
        return None if found is None else found.copy()

    def rows(self, role: str, first: int, count: int) -> Array:
        return self.held[None, "embedding"][first : first + count]


def make_decoder(spoilt: tuple[int, str] | None = None) -> Decoder:
    layer = (Attention(4, 2, 12, RMS, rotary=0), FeedForward(80, "silu", True, RMS))
    blocks = (*layer * LAYERS, Vocabulary(VOCABULARY, RMS, tied=True))
    rotary = Rotary((1.0, 0.3, 0.1))
    architecture = Architecture("llama", HIDDEN, VOCABULARY, 128, Embedding(), blocks, (rotary,))
    return Decoder("drawn", architecture, Drawn(architecture, spoilt))


def stream(decoder: Decoder, ids: np.ndarray, quantized: QuantizedDecoder | None = None, bits: int = 0) -> Array:
    """The stream before the head."""
    run, x = Run(decoder.architecture, ids.shape), embed(decoder, ids)
    for number in range(2 * LAYERS):
        weights = read_block(decoder, number)
        x = run_block(run, number, weights | (quantized.dequantized(number, bits) if quantized else {}), x)
    return x


def test_a_level_is_found_again(tmp_path: Path) -> None:
    cut = cut_decoder(make_decoder())
    once = quantize_decoder(cut, (4,), (4,), IDS, tmp_path, ALONE)
    weights = [once.dequantized(number, 4) for number in range(2 * LAYERS)]
    again = quantize_decoder(cut, (4,), (4,), 0 * IDS, tmp_path, ALONE)  # nothing is calibrated anew
    for number, by_role in enumerate(weights):
        for role, weight in by_role.items():
            np.testing.assert_array_equal(again.dequantized(number, 4)[role], weight)


def test_drafts_are_the_same_from_any_number_of_processes_and_in_any_company(tmp_path: Path) -> None:
    cut, told = cut_decoder(make_decoder()), list[tuple[int, int]]()
    two = quantize_decoder(cut, (2, 4), (3, 4), IDS, tmp_path / "two", Workers(2), lambda *now: told.append(now))
    one = quantize_decoder(cut, (2, 4, 8), (4,), IDS, tmp_path / "one", ALONE)
    for number in range(2 * LAYERS):
        for role, weight in two.dequantized(number, 4).items():
            np.testing.assert_array_equal(one.dequantized(number, 4)[role], weight)
    for here, there in zip(two.head(4), one.head(4), strict=True):
        np.testing.assert_array_equal(here, there)
    assert told == [(n + 1, told[-1][1]) for n in range(len(told))] and told[-1][0] == told[-1][1]


def test_what_is_gone_or_damaged_is_made_anew(tmp_path: Path) -> None:
    cut = cut_decoder(make_decoder())
    first = quantize_decoder(cut, (2, 4), (4,), IDS, tmp_path, ALONE)
    codes = first.level(1, 0, "up", 4).codes
    first.path(1, 2).unlink()
    first.path(1, 4).write_bytes(b"no archive")
    _loaded.cache_clear()
    with pytest.raises(InputError, match="run the command again"):
        first.level(1, 0, "up", 4)
    assert first.missing() == {1}
    again = quantize_decoder(cut, (2, 4), (4,), IDS, tmp_path, ALONE)
    np.testing.assert_array_equal(again.level(1, 0, "up", 4).codes, codes)


@pytest.mark.parametrize("bits", [2, 3])
def test_what_was_lost_is_made_up_for(tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged on tokens that nothing was calibrated on."""
    decoder = make_decoder()
    cut, others = cut_decoder(decoder), np.random.default_rng(9).integers(0, VOCABULARY, (4, 64))
    exact = stream(decoder, others)
    errors = []
    for share in (targets.SHARE, 0.0):
        monkeypatch.setattr(targets, "SHARE", share)
        quantized = quantize_decoder(cut, (bits,), (), IDS, tmp_path / str(share), ALONE)
        errors.append(np.square(stream(decoder, others, quantized, bits) - exact).mean())
    assert errors[0] < errors[1]


def test_weights_that_are_not_finite_are_refused_by_block(tmp_path: Path) -> None:
    cut = cut_decoder(make_decoder(spoilt=(2, "key")))
    with pytest.raises(InputError, match=r"drawn, block 2: .*NaN or infinite"):
        quantize_decoder(cut, (3,), (3,), IDS, tmp_path, ALONE)
