"""Text that gains are measured on: none that codes are fitted to, where there is enough."""

import numpy as np
import pytest

from stic.compiler.decoding import stages
from stic.compiler.decoding.stages import HELD, HELD_TOKENS, Windows, calibrate
from stic.compiler.frontend.decoders import read_decoder
from stic.compiler.options import ImportanceOptions
from stic.compiler.stage import Tell
from stic.compiler.text.tokens import Coder
from tests.compiler.commands import small_decoder

TELL = Tell(lambda done, total: None, lambda note: None)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return read_decoder(small_decoder.write(tmp_path_factory.mktemp("held") / "model"))


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_windows_between_those_that_codes_are_fitted_to(decoder, windows, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(str(n) for n in range(1500)))
    ids = Coder(decoder.text, decoder.architecture, decoder.name).encode(path.read_text())
    length = small_decoder.CONTEXT
    found = calibrate(decoder, ImportanceOptions(calibration=path, tokens=windows * length), TELL)
    assert found.ids.shape == (windows, length) and found.held is not None
    assert found.held.shape[1] == min(HELD_TOKENS, length) and 1 <= len(found.held) <= HELD
    text = " ".join(map(str, ids))
    fitted = [text.index(" ".join(map(str, window))) for window in found.ids]
    for window in found.held:
        first, last = (text.index(" ".join(map(str, window))) + n for n in (0, len(" ".join(map(str, window)))))
        assert all(
            last <= at or first >= at + len(" ".join(map(str, w))) for at, w in zip(fitted, found.ids, strict=True)
        )


def test_a_text_without_room_is_used_twice(decoder, tmp_path):
    (tmp_path / "text.txt").write_text("a" * (2 * small_decoder.CONTEXT))
    found = calibrate(decoder, ImportanceOptions(calibration=tmp_path / "text.txt"), TELL)
    assert found.held is not None and np.array_equal(found.held, found.ids[-HELD:, :HELD_TOKENS])


def test_a_model_that_writes_writes_more_only_when_it_is_needed(decoder, monkeypatch):
    seeds = []

    def written(decoder, windows, length, tell, seed=0):
        seeds.append(seed)
        return np.zeros((windows, length), np.int64)

    monkeypatch.setattr(stages, "_written", written)
    assert calibrate(decoder, ImportanceOptions(), TELL) and seeds == [0]
    windows = Windows(np.zeros((2, 300), np.int64), "text that the model wrote")
    assert stages.held_out(decoder, windows, TELL).shape == (HELD, HELD_TOKENS) and seeds == [0, 1]
