"""Perplexity, multiple choice and last words, by a model whose probabilities are known."""

import itertools
import math

import numpy as np
import pytest

from stic.compiler.language.perplexity import perplexity
from stic.compiler.language.questions import choose, last_words, read_passages, read_questions
from stic.compiler.language.scoring import share
from stic.runtime.errors import InputError

VOCABULARY = 256


class Bigram:
    """The next byte is the one above with probability 1/2, else any."""

    context = 64

    def __init__(self):
        self.calls = []

    def logits(self, ids, first=0):
        self.calls.append((len(ids), first))
        rows = np.full((len(ids) - first, VOCABULARY), math.log(0.5 / (VOCABULARY - 1)), np.float32)
        rows[np.arange(len(rows)), (np.asarray(ids[first:]) + 1) % VOCABULARY] = math.log(0.5)
        return rows


def encode(text):
    return list(text.encode())


def test_perplexity_of_a_text_that_is_foreseen_is_two():
    found = perplexity(Bigram(), list(range(64)), 16)
    assert found.value == pytest.approx(2.0, rel=1e-5)
    assert found.n == 4 * 15


@pytest.mark.parametrize("limit, windows", [(None, 6), (64, 4), (63, 3), (5, 1)])
def test_windows_do_not_overlap_and_the_rest_is_left_out(limit, windows):
    scorer = Bigram()
    perplexity(scorer, list(range(100)), 16, limit)
    assert len(scorer.calls) == windows


def test_perplexity_weighs_tokens_alike():
    ids = [*range(8), 3, 1, 4, 1, 5, 9, 2, 6]
    probability = [0.5 if b == a + 1 else 0.5 / 255 for a, b in itertools.pairwise(ids)]
    found = perplexity(Bigram(), ids, 16)
    assert found.value == pytest.approx(math.exp(-np.log(probability).mean()), rel=1e-5)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("ids, window, said", [([1], 8, "two tokens"), ([1, 2], 1, "--window"), ([1] * 99, 65, "64")])
def test_what_cannot_be_measured_is_refused(ids, window, said):
    with pytest.raises(InputError, match=said):
        perplexity(Bigram(), ids, window)


def write(tmp_path, text):
    path = tmp_path / "items.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_likeliest_choice_for_its_length_is_taken(tmp_path):
    path = write(tmp_path, 'question\tchoice0\tchoice1\tchoice2\tanswer\nx\tzzz\t!"#$\t\t1\ny\tzz\t!"#\t\t0\n')
    items = read_questions(path)
    assert [len(item.choices) for item in items] == [2, 2]
    assert choose(Bigram(), encode, items).value == 0.5


def test_only_what_is_scored_is_asked_for(tmp_path):
    items = read_questions(write(tmp_path, "question\tchoice0\tchoice1\tanswer\nab\tcd\tce\t0\n"))
    scorer = Bigram()
    choose(scorer, encode, items, "{question}")
    assert scorer.calls == [(4, 1), (4, 1)]  # "ab cd" without its last token; rows for " ", "c" and "d"


def test_last_words_are_right_where_every_token_is_the_likeliest(tmp_path):
    items = read_passages(write(tmp_path, 'context\ttarget\na\x1f\t!"#\nabc\tdef\n'))
    assert last_words(Bigram(), encode, items).value == 0.5


def test_a_long_passage_is_cut_in_front(tmp_path):
    items = read_passages(write(tmp_path, f"context\ttarget\n{'a' * 200}\tbc\n"))
    scorer = Bigram()
    last_words(scorer, encode, items)
    assert scorer.calls == [(64, 61)]


@pytest.mark.parametrize(
    "read, text, said",
    [
        (read_questions, "", "is empty"),
        (read_questions, "question\tchoice0\tchoice1\tanswer\n", "no items"),
        (read_questions, "question\tanswer\nx\t0\n", "needs question"),
        (read_questions, "question\tchoice0\tchoice1\tanswer\nx\ta\tb\t2\n", "line 2: answer '2'"),
        (read_questions, "question\tchoice0\tchoice1\tanswer\n\nx\ta\t0\n", "line 3 has 3 columns"),
        (read_passages, "question\ttarget\nx\ty\n", "context and target"),
        (read_passages, "context\ttarget\nx\t \n", "line 2: context or target"),
    ],
)
def test_damaged_files_are_refused_by_line(tmp_path, read, text, said):
    with pytest.raises(InputError, match=said):
        read(write(tmp_path, text))


def test_the_interval_of_a_share_holds_it():
    found = share(30, 40)
    assert found.low == pytest.approx(0.598, abs=1e-3) and found.high == pytest.approx(0.858, abs=1e-3)
    assert 0 <= share(0, 5).low < 1e-9 and share(5, 5).high > 1 - 1e-9
