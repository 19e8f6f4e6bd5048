import io
import re

import numpy as np
import pytest
from rich.console import Console

from stic.compiler.frontend.reading import VECTOR, Reading, shares
from stic.compiler.report.answers import print_answers, said


def printed(texts, outputs, reading=VECTOR, tokens=(), width=100):
    written = io.StringIO()
    console = Console(file=written, width=width, markup=False)
    print_answers(console, texts, [np.asarray(output, np.float32) for output in outputs], reading, tokens)
    return written.getvalue()


def test_classes_are_named():
    text = printed(["fine", "awful"], [[0.0, 3.0], [1.0, -1.0]], Reading("classes", ("negative", "positive")))
    lines = text.splitlines()
    assert "positive  0.953" in lines[1] and "negative  0.881" in lines[2]


def test_a_score_is_the_sigmoid_of_its_logit():
    assert shares("score", np.array([0.0, 1e4, -1e4], np.float32)) == pytest.approx([0.5, 1.0, 0.0])
    reading = Reading("score", ("LABEL_0",))
    assert "0.818  1.5000  text" in printed(["text"], [[1.5]], reading)
    assert said(reading, np.array([1.5], np.float32))["score"] == pytest.approx(0.8176, abs=1e-4)


@pytest.mark.parametrize("width", [30, 80])
@pytest.mark.parametrize(("kind", "expected"), [("labels", "0.881"), ("values", "2.0000")])
def test_every_label_has_its_number_at_any_width(kind, expected, width):
    names = tuple(f"label{number}" for number in range(12))
    text = printed(["text"], [[2.0] * 12], Reading(kind, names), width=width)
    assert text.count(expected) == 12 and all(name in text for name in names) and "text" in text


def test_tokens_have_a_label_each():
    reading, output = Reading("classes", ("O", "B-PER")), np.array([[3.0, 0.0], [0.0, 3.0]], np.float32)
    lines = printed(["Ann"], [output], reading, [["the", "ann"]]).splitlines()
    assert lines[0] == "Ann" and "O      0.953  the" in lines[2] and "B-PER  0.953  ann" in lines[3]
    assert [entry["label"] for entry in said(reading, output, ["the", "ann"])] == ["O", "B-PER"]


@pytest.mark.parametrize("width", [40, 80, 110])
@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 9, 12, 13, 30, 300])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_keep_their_numbers(similarity, count, width):
    vectors = np.random.default_rng(3).normal(size=(count, 8)) * 30
    text = printed(["a sentence " * 9] * count, vectors, Reading(similarity=similarity), width=width)
    assert len(re.findall(r"\d\.\d{3}\b", text)) in (count, count * count)
    assert max(map(len, text.splitlines()[: count + 1])) <= width


def test_several_vectors_are_compared():
    text = printed(["one", "two"], [[3.0, 0.0], [3.0, 4.0]])
    assert text.count("0.600") == 2 and text.count("1.000") == 2


def test_a_zero_vector_is_like_nothing():
    assert "nan" not in printed(["one", "two"], [[0.0, 0.0], [3.0, 4.0]])


def test_one_vector_is_summarised():
    assert "8 numbers: 0.0000, 1.0000" in printed(["text"], [np.arange(8)])
    assert "3 x 2 numbers" in printed(["text"], [np.zeros((3, 2))])


def test_texts_keep_their_brackets():
    assert "[bold]" in printed(["[bold]"], [[0.0, 1.0]], Reading("classes", ("a", "b")))
