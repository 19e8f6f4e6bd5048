"""Text to tokens and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from stic.compiler.decoder.model import Text
from stic.compiler.text.tokens import Coder
from stic.runtime.errors import InputError
from tests.compiler.text import small

TEXTS = ("", "hello", " hello  hello", "Café 你好 🎉", "a\nb\t\r\n", "e\u0301", "\u0000", "<s>x</s>", "naïve — “quote”")
both = pytest.mark.parametrize("kind", small.KINDS)


@both
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_decoded_is_what_the_tokenizers_package_decodes(kind, text):
    tokenizer = small.KINDS[kind]()
    coder = small.coder(tokenizer)
    ids = coder.encode(text)
    assert coder.decode(ids) == tokenizer.decode(ids)
    assert coder.decode(ids, special=True) == tokenizer.decode(ids, skip_special_tokens=False)
    if kind == "byte level":
        assert coder.decode(ids) == text


@both
@given(text=st.text())
def test_every_text_comes_back(kind, text):
    coder = small.coder(small.KINDS[kind]())
    assert coder.decode(coder.encode(text)) == text


@both
def test_names_of_special_tokens_are_tokens_only_when_that_is_asked_for(kind):
    coder = small.coder(small.KINDS[kind]())
    assert coder.token("<|end|>") in coder.encode("a<|end|>", special=True)
    assert coder.token("<|end|>") not in coder.encode("a<|end|>")
    assert coder.decode(coder.encode("a<|end|>")) == "a<|end|>"


@both
def test_a_prompt_begins_with_bos_once(kind):
    coder = small.coder(small.KINDS[kind](), add_bos=True)
    ids = coder.prompt("hello")
    assert ids[0] == coder.bos and ids[1:] == coder.encode("hello")
    assert coder.prompt("<s>hello", special=True).count(coder.bos) == 1
    assert coder.bos not in small.coder(small.KINDS[kind]()).prompt("hello")


def test_bos_may_be_known_by_its_name_alone():
    tokenizer = small.byte_level()
    text = Text(small.content(tokenizer), bos="<s>", add_bos=True)
    assert Coder(text, small.architecture(tokenizer.get_vocab_size(), bos=None), "m").prompt("")[0] == 0


def test_padding_and_truncation_of_the_file_are_not_used():
    tokenizer = small.byte_level()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    assert small.coder(tokenizer).decode(small.coder(tokenizer).encode("hello hello")) == "hello hello"


TOKENIZER = small.byte_level()


@pytest.mark.parametrize(
    ("text", "architecture", "said"),
    [
        (Text(), small.architecture(300), "has no tokenizer"),
        (Text(b"{"), small.architecture(300), "tokenizer is damaged"),
        (Text(b"\xff\xfe"), small.architecture(300), "tokenizer is damaged"),
        (Text(b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'), small.architecture(300), "damaged"),
        (Text(small.content(TOKENIZER)), small.architecture(300, stops=(300,)), "token 300 begins or ends text"),
        (Text(small.content(TOKENIZER)), small.architecture(300, bos=301), "token 301 begins or ends text"),
        (Text(small.content(TOKENIZER), add_bos=True), small.architecture(300, bos=None), "set its bos token"),
        (Text(small.changed(TOKENIZER, decoder=None)), small.architecture(300), "decodes by nothing"),
        (
            Text(small.changed(TOKENIZER, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})),
            small.architecture(300),
            "decodes by WordPiece",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(text, architecture, said):
    with pytest.raises(InputError, match=said):
        Coder(text, architecture, "the model")


def test_a_text_that_needs_rows_the_model_lacks_is_refused_by_its_token():
    coder = Coder(Text(small.content(TOKENIZER)), small.architecture(100), "the model")
    assert coder.encode("!")
    with pytest.raises(InputError, match=r"token 'Ġhello' has id .* but the model has 100 rows"):
        coder.encode(" hello")


def test_half_a_character_of_utf16_is_refused():
    with pytest.raises(InputError, match="the tokenizer of the model fails on the text"):
        small.coder(small.byte_level()).encode("a\ud800b")


def test_ids_that_the_tokenizer_lacks_are_no_text():
    assert small.coder(small.byte_level()).decode([10**6]) == ""


@pytest.mark.parametrize(
    ("scheme", "text"), [("always", "hello hello"), ("first", "hello hello"), ("never", " hello hello")]
)
def test_metaspace_is_known_as_a_decoder(scheme, text):
    tokenizer = small.sentence_piece()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    coder = small.coder(tokenizer)
    ids = coder.encode("hello hello")
    assert coder.decode(ids) == text == tokenizer.decode(ids)
