"""SmolLM2-135M-Instruct as a GGUF file: what it is, its tokens and chats as transformers has them, what it computes."""

import csv

import numpy as np
import pytest

from stic.compiler.decoder.forward import logits
from stic.compiler.frontend.gguf import read_gguf
from stic.compiler.text.template import ChatTemplate
from stic.compiler.text.tokens import Coder
from stic.runtime.architecture import Attention, Embedding, FeedForward, Norm, Norms, Vocabulary

LENGTH = 512
PERPLEXITY = 20.3123  # of the first 512 tokens of WikiText-2's test split; of the first 8 x 512 it is 30.15


@pytest.fixture(scope="module")
def decoder(smollm2_file):
    return read_gguf(smollm2_file)


@pytest.fixture(scope="module")
def coder(decoder):
    return Coder(decoder.text, decoder.architecture, decoder.name)


@pytest.fixture(scope="module")
def oracle(smollm2_file):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    return transformers.AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)


@pytest.fixture(scope="module")
def prompts(data_dir):
    """Every prompt of the evaluation data."""
    found = []
    for path in sorted((data_dir / "prompts").glob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            found += [row[key] for row in rows for key in ("prompt", "follow_up", "input") if row.get(key)]
    assert len(found) > 400
    return found


def test_what_it_is(decoder):
    norms = Norms(input=Norm("rms", 1e-5))
    found = decoder.architecture
    assert found.blocks == (Attention(9, 3, 64, norms, rotary=0), FeedForward(1536, "silu", True, norms)) * 30 + (
        Vocabulary(49152, norms, tied=True),
    )
    assert (found.family, found.hidden, found.vocabulary, found.context) == ("llama", 576, 49152, 8192)
    assert (found.embedding, found.bos, found.stops) == (Embedding(), 1, (2,))
    wanted = 100_000.0 ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(found.rotaries[0].frequencies, wanted, rtol=1e-7)
    assert (decoder.text.bos, decoder.text.eos, decoder.text.add_bos) == ("<|im_start|>", "<|im_end|>", False)


def test_tokens_of_every_prompt_are_those_of_transformers(coder, oracle, prompts):
    for prompt in [*prompts, "Café 你好 🎉", "e\u0301 I'LL  don't"]:
        ids = coder.encode(prompt)
        assert ids == oracle.encode(prompt, add_special_tokens=False)
        assert coder.decode(ids) == prompt
        stream = coder.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == prompt


def test_digits_stand_alone(coder):
    """As in the model's tokenizer.json. What transformers makes of a GGUF file is GPT-2's cut, for every `pre`."""
    ids = coder.encode("12  34")
    assert [coder.decode([one]) for one in ids] == ["1", "2", "  ", "3", "4"]


def test_chats_of_every_prompt_are_those_of_transformers(decoder, coder, oracle, prompts):
    template = ChatTemplate(decoder.text, decoder.name)
    for number, prompt in enumerate(prompts):
        chat = [{"role": "user", "content": prompt}]
        if number % 2:
            chat += [{"role": "assistant", "content": "Well."}, {"role": "user", "content": prompts[number - 1]}]
        if number % 3 == 0:
            chat = [{"role": "system", "content": "Be brief."}, *chat]
        wanted = oracle.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert coder.encode(template.render(chat), special=True) == wanted


def test_perplexity(decoder, coder, data_dir):
    text = (data_dir / "lm" / "wikitext2_test.txt").read_text(encoding="utf-8")
    ids = np.array(coder.encode(text[:10_000])[:LENGTH])
    found = logits(decoder, ids[None, :-1])[0].astype(np.float64)
    top = found.max(axis=-1, keepdims=True)
    losses = np.log(np.exp(found - top).sum(axis=-1)) + top[:, 0] - found[np.arange(LENGTH - 1), ids[1:]]
    assert np.exp(np.mean(losses)) == pytest.approx(PERPLEXITY, rel=1e-4)
