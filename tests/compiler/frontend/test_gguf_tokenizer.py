"""A GGUF file's tokenizer cuts and merges as the model's own does."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from stic.compiler.frontend.gguf_file import GgufFile
from stic.compiler.frontend.gguf_pre import PRES
from stic.compiler.frontend.gguf_tokenizer import read_tokenizer
from stic.runtime.errors import UnsupportedModelError
from tests.compiler.frontend import gguf_files

CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = "I'LL say: 12345 times, ÉCOLE! HelloWorld\n\n  ok\t ... a/b\u0301 你好"


def opened(folder, **keys):
    """The tokenizer of a file of these keys (None: left out), and what is said beside it."""
    path = gguf_files.write(
        folder / "m.gguf",
        keys.pop("arch", "llama"),
        {key: value for key, value in keys.items() if value is not None},
        {},
    )
    found = read_tokenizer(GgufFile(path))
    return None if found.json is None else Tokenizer.from_buffer(found.json), found


def byte_level(**changes):
    return gguf_files.tokens(300) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def test_tokens_that_are_no_text_are_special(tmp_path):
    kinds = [3, 3, 4, *[1] * 297]
    tokenizer, found = opened(tmp_path, **byte_level(token_type=kinds))
    assert found.special == {"<unk>": 0, "<s>": 1}
    added = {token["content"]: token["special"] for token in json.loads(found.json)["added_tokens"]}
    assert added == {"<unk>": True, "<s>": True, "</s>": False}
    assert tokenizer.encode("!</s>", add_special_tokens=False).tokens == ["!", "</s>"]


def test_merges_are_in_their_order(tmp_path):
    keys = byte_level(merges=["# $", "! \"", "!\" #"])  # fmt: skip
    keys["tokenizer.ggml.tokens"] = ["#$", '!"#', *keys["tokenizer.ggml.tokens"][2:]]
    tokenizer, _ = opened(tmp_path, **keys | {"tokenizer.ggml.token_type": None})
    assert tokenizer.encode('!"#$').tokens == ['!"', "#$"]


@pytest.mark.parametrize(
    ("pre", "pattern"), [("llama-bpe", CL100K), ("qwen2", CL100K.replace("{1,3}", "")), ("tekken", CASED)]
)
def test_text_is_cut_as_the_models_own_pattern_cuts_it(pre, pattern, tmp_path):
    tokenizer, _ = opened(tmp_path, **byte_level(pre=pre))
    own = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    assert tokenizer.pre_tokenizer.pre_tokenize_str(TEXT) == own.pre_tokenize_str(TEXT)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["x", "Ġ123", "Ġy", "!"]),
        ("smollm", ["x", "Ġ", "1", "2", "3", "Ġy", "!"]),
        ("llama-bpe", ["x", "Ġ", "123", "Ġy", "!"]),
        ("qwen2", ["x", "Ġ", "1", "2", "3", "Ġy", "!"]),
        ("gpt-4o", ["x", "Ġ", "123", "Ġy", "!"]),
    ],
)
def test_digits(pre, pieces, tmp_path):
    tokenizer, _ = opened(tmp_path, **byte_level(pre=pre))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("x 123 y!")] == pieces


@pytest.mark.parametrize("pre", PRES)
def test_every_way_to_cut_is_a_tokenizer(pre, tmp_path):
    tokenizer, found = opened(tmp_path, **byte_level(pre=pre))
    assert tokenizer.encode(TEXT).ids and found.add_bos == PRES[pre].bos
    assert (tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids) == PRES[pre].composed


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("keys", [gguf_files.sentence_pieces(), byte_level(), byte_level(pre="llama-bpe")])
def test_the_file_says_whether_prompts_begin_with_bos(keys, said, tmp_path):
    assert opened(tmp_path, **keys | {"tokenizer.ggml.add_bos_token": said})[1].add_bos == said


def test_prompts_of_sentence_piece_begin_with_bos(tmp_path):
    assert opened(tmp_path, **gguf_files.sentence_pieces())[1].add_bos


def test_better_scores_merge_first(tmp_path):
    pieces = gguf_files.sentence_pieces(("ab", "bc", "abc"))
    assert opened(tmp_path, **pieces)[0].encode("abc").tokens == ["▁", "abc"]
    scores = [*pieces["tokenizer.ggml.scores"][:-3], -2.0, -1.0, -9.0]
    without = pieces | {"tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": [1] * (len(scores) - 1) + [5]}
    assert opened(tmp_path, **without)[0].encode("abc").tokens == ["▁", "a", "bc"]  # an unused token is not made


def test_letters_without_a_token_are_bytes(tmp_path):
    tokenizer, _ = opened(tmp_path, **gguf_files.sentence_pieces())
    found = tokenizer.encode("hello é")
    assert found.tokens == ["▁hello", "▁", "<0xC3>", "<0xA9>"] and tokenizer.decode(found.ids) == "hello é"


@pytest.mark.parametrize("spaced", [True, False])
def test_a_space_goes_before_text_where_the_file_says_so(spaced, tmp_path):
    tokenizer, _ = opened(tmp_path, **gguf_files.sentence_pieces(), **{"tokenizer.ggml.add_space_prefix": spaced})
    found = tokenizer.encode("hello<s>hello", add_special_tokens=False)
    first = "▁hello" if spaced else "h"
    assert found.tokens[0] == first and found.tokens[found.tokens.index("<s>") + 1] == first
    assert tokenizer.decode(tokenizer.encode(" hello").ids) == " hello"


def test_tokens_of_phi_3_take_the_spaces_behind_them(tmp_path):
    keys = gguf_files.sentence_pieces() | {"arch": "phi3"}
    tokens = opened(tmp_path, **keys)[0].encode("</s>  \n hello<s> h", add_special_tokens=False).tokens
    assert [token.rstrip() for token in tokens[:2]] == ["</s>", "▁hello"] and tokens[-2:] == ["▁", "▁h"]


WORDS = ("ab", "ba", "aba", "▁a", "▁ab", "abab", "bb", "▁b")


@given(text=st.text("ab ", max_size=20))
def test_as_llama_cpp_merges(text, tmp_path_factory):
    """Which has a queue of neighbours, the best score first, then the leftmost; written here as a loop."""
    tokenizer, _found = _WORDS.setdefault(
        "it", opened(tmp_path_factory.mktemp("w"), **gguf_files.sentence_pieces(WORDS))
    )
    scores = {word: -float(number) for number, word in enumerate(WORDS)}
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [(scores[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    assert tokenizer.encode(text).tokens == parts


_WORDS: dict = {}


def test_the_same_bpe_made_by_hand(tmp_path):
    keys = byte_level()
    names = keys["tokenizer.ggml.tokens"]
    own = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [("!", '"')]))
    own.pre_tokenizer, own.normalizer = pre_tokenizers.ByteLevel(False), normalizers.Sequence([])
    assert opened(tmp_path, **keys)[0].encode(TEXT).ids == own.encode(TEXT).ids


@pytest.mark.parametrize("model", ["none", "no_vocab", None])
def test_a_file_may_have_no_tokenizer(model, tmp_path):
    assert opened(tmp_path, **{"tokenizer.ggml.model": model})[0] is None


def test_empty_tokens_have_a_name(tmp_path):
    names = ["", "", *byte_level()["tokenizer.ggml.tokens"][2:]]
    assert opened(tmp_path, **byte_level(tokens=names, token_type=None))[1].tokens[:2] == ["[EMPTY_0]", "[EMPTY_1]"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (byte_level(model="t5"), r"its tokenizer is of kind 't5'; gpt2 .* and llama .* are supported"),
        (byte_level(pre="new-one"), r"cuts text as 'new-one' \(.*\), which is not known; known are gpt-2"),
        (byte_level(pre=None), "cuts text as 'default'"),
        (byte_level(tokens=None), "tokenizer.ggml.tokens is not there; expected a list of texts"),
        (byte_level(tokens=["a"] * 300), "'a' is in it twice"),
        (byte_level(tokens="abc"), "expected a list of texts"),
        (byte_level(merges=None), "tokenizer.ggml.merges is not there"),
        (byte_level(merges=["ab"]), "a merge is two tokens with a space between"),
        (byte_level(merges=["a b c"]), "a merge is two tokens"),
        (byte_level(token_type=[1, 2]), "tokenizer.ggml.token_type is a list of 2; expected 300 numbers"),
        (byte_level(add_bos_token=7), "tokenizer.ggml.add_bos_token is 7; expected true or false"),
        (gguf_files.sentence_pieces() | {"tokenizer.ggml.scores": None}, "tokenizer.ggml.scores is not there"),
        (gguf_files.sentence_pieces() | {"tokenizer.ggml.scores": [0.0]}, "scores is a list of 1"),
        (
            gguf_files.sentence_pieces() | {"tokenizer.ggml.scores": [float("nan")] * 295},
            "a score is NaN or infinite",
        ),
        (gguf_files.sentence_pieces() | {"tokenizer.ggml.unknown_token_id": 9999}, "expected the id of one of"),
        (gguf_files.sentence_pieces() | {"tokenizer.ggml.remove_extra_whitespaces": True}, "spaces are kept"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(keys, said, tmp_path):
    with pytest.raises(UnsupportedModelError, match=said):
        opened(tmp_path, **keys)
