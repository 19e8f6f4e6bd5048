"""Every family, from transformers' model to the engine: at 16 bits it draws the same greedy tokens."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from stic.compiler.decoder.forward import logits  # noqa: E402
from stic.compiler.frontend.decoders import read_decoder  # noqa: E402
from stic.compiler.options import DecoderOptions  # noqa: E402
from stic.runtime.package import Package  # noqa: E402
from stic.runtime.reference_decoder import ReferenceDecoder  # noqa: E402
from stic.runtime.session import Session  # noqa: E402
from tests.compiler.decoding.packages import package_of  # noqa: E402
from tests.compiler.frontend.families.models import CASES, build, save, tokens  # noqa: E402

# One case of what a family computes by itself; the frontend's tests have the others.
ENGINE_CASES = [
    case
    for case in CASES
    if case in ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "phi3", "granite",
                "olmo2", "stablelm", "stablelm-parallel", "gpt2", "opt", "opt-350m", "phi3-partial")
]  # fmt: skip
PROMPT, NEW = 40, 16
NEAR = 2e-2  # of the largest logit: what float16 weights and rows change at most


# A norm over all heads leaves no room for padding.
WHOLE = {"olmo2": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}}


@pytest.mark.parametrize("case", ENGINE_CASES)
def test_greedy_tokens(case, tmp_path):
    decoder = read_decoder(save(build(case, **WHOLE.get(case, {})), tmp_path / case))
    ids = tokens()[0, :PROMPT]
    options = DecoderOptions(context=64, chunk=16, cache="float16")
    path = package_of(decoder, 16, tmp_path, options, ids[None])
    with Session(path) as session:
        found = session.score(ids)
        wanted = logits(decoder, ids[None])[0]
        assert np.abs(found - wanted).max() < NEAR * np.abs(wanted).max()
        text = list(ids)
        for one in session.generate([], NEW):
            known = logits(decoder, np.array([text]))[0, -1]
            near = NEAR * np.abs(known).max()
            assert known[one.token] > known.max() - near  # the same, up to ties
            text.append(one.token)
    assert np.array_equal(found, ReferenceDecoder(Package.open(path)).extend(ids))
