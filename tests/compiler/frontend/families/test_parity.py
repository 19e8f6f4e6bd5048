"""Every family computes what transformers does, in both spellings of its configuration, at once and in chunks."""

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stic.compiler.decoder.forward import logits  # noqa: E402
from stic.compiler.frontend.decoders import read_decoder  # noqa: E402
from tests.compiler.frontend.families.models import CASES, build, expected, gap, in_chunks, save, tokens  # noqa: E402

CLOSE = 1e-4


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("case", CASES)
def test_logits(case, version, tmp_path):
    if case in ("gemma2-all-slide", "gemma3_text-cap") and version == 4:
        pytest.skip("version 4 has no layer_types")
    model, ids = build(case), tokens()
    decoder = read_decoder(save(model, tmp_path / case, version))
    wanted = expected(model, ids)
    assert gap(logits(decoder, ids), wanted) < CLOSE
    assert gap(in_chunks(decoder, ids), wanted) < CLOSE
    assert decoder.architecture.stops == (2,) and decoder.architecture.bos == 1
