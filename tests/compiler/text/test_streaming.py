"""An answer as it comes: whole characters, no stop strings, and together the text of all tokens."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stic.compiler.text.streaming import Stream
from tests.compiler.text import small

CODERS = {name: small.coder(make()) for name, make in small.KINDS.items()}
both = pytest.mark.parametrize("kind", CODERS)


def streamed(stream, ids):
    return [*map(stream.push, ids), stream.flush()]


@both
@given(text=st.text())
@example(text="Café 你好 🎉")
@example(text=" leading and trailing ")
def test_parts_are_whole_characters_and_make_the_text(kind, text):
    coder = CODERS[kind]
    ids = coder.encode(text)
    parts = streamed(coder.stream(), ids)
    assert "".join(parts) == coder.decode(ids) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


@both
@given(ids=st.lists(st.integers(0, 270)))
def test_any_ids_make_the_text_that_all_of_them_make(kind, ids):
    """Ids that no text has, too: bytes that are no UTF-8 become U+FFFD, once what follows shows that they are."""
    coder = CODERS[kind]
    seen = b"".join(coder._pieces.bytes(one) for one in ids if not coder._pieces.special(one))
    text = seen.decode("utf-8", "replace")
    text = text.removeprefix(" ") if kind == "sentence piece" else text
    assert "".join(streamed(coder.stream(), ids)) == text


@both
def test_a_character_is_given_by_its_last_token(kind):
    coder = CODERS[kind]
    ids = coder.encode("🎉")[-4:]
    stream = coder.stream()
    assert [stream.push(one) for one in ids] == ["", "", "", "🎉"]
    assert stream.flush() == ""


@both
def test_half_a_character_at_the_end_is_flushed(kind):
    coder = CODERS[kind]
    stream = coder.stream()
    assert stream.push(coder.encode("🎉")[-4]) == ""
    assert stream.flush() == "\ufffd"


def test_one_space_at_the_beginning_belongs_to_no_text_of_sentence_piece():
    coder = CODERS["sentence piece"]
    assert streamed(coder.stream(), [coder.token("▁hello"), coder.token("▁hello")]) == ["hello", " hello", ""]


def test_tokens_that_are_no_text_are_shown_only_when_that_is_asked_for():
    coder = CODERS["byte level"]
    ids = [coder.token("<s>"), *coder.encode("hello"), coder.token("<|end|>")]
    assert "".join(streamed(coder.stream(), ids)) == "hello"
    assert "".join(streamed(coder.stream(special=True), ids)) == "<s>hello<|end|>"


class Letters:
    """Tokens that are characters."""

    strips = False

    def special(self, token):
        return False

    def bytes(self, token):
        return chr(token).encode()


def cut(text, stops):
    """The text before the stop string that is complete first; of several, the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(text=st.text("abc"), stops=st.lists(st.text("abc", max_size=4), max_size=3))
@example(text="abcab", stops=["abd", "b", "abc"])
def test_stop_strings_end_the_text_before_themselves(text, stops):
    stream = Stream(Letters(), stops)
    parts = streamed(stream, map(ord, text))
    assert ("".join(parts), stream.stopped) == cut(text, stops)


@given(text=st.text("abc"), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_no_more_is_held_back_than_may_be_a_stop_string(text, stops):
    stream, given_so_far = Stream(Letters(), stops), ""
    for number, letter in enumerate(text, 1):
        given_so_far += stream.push(ord(letter))
        if stream.stopped:
            return
        held = text[len(given_so_far) : number]
        assert not held or any(stop.startswith(held) for stop in stops)


@both
def test_a_stop_string_may_span_tokens(kind):
    coder = CODERS[kind]
    stream = coder.stream(stops=["\nUser:"])
    parts = [stream.push(one) for one in coder.encode("fine.\nUser: and more")]
    assert "".join(parts) == "fine." and stream.stopped and stream.flush() == ""
