import io

import numpy as np
import pytest
from rich.console import Console

from stic.compiler.report.answers import print_answers, probabilities


def printed(texts, outputs, labels=()):
    written = io.StringIO()
    console = Console(file=written, width=100, markup=False)
    print_answers(console, texts, [np.asarray(output, np.float32) for output in outputs], labels)
    return written.getvalue()


def test_classes_are_named():
    text = printed(["fine", "awful"], [[0.0, 3.0], [1.0, -1.0]], ("negative", "positive"))
    lines = text.splitlines()
    assert "positive  0.953" in lines[1] and "negative  0.881" in lines[2]


def test_one_logit_is_two_classes():
    assert probabilities(np.array([0.0], np.float32)) == pytest.approx([0.5, 0.5])
    assert probabilities(np.array([1e4], np.float32)) == pytest.approx([0.0, 1.0])


def test_several_vectors_are_compared():
    text = printed(["one", "two"], [[3.0, 0.0], [3.0, 4.0]])
    assert text.count("0.600") == 2 and text.count("1.000") == 2


def test_a_zero_vector_is_like_nothing():
    assert "nan" not in printed(["one", "two"], [[0.0, 0.0], [3.0, 4.0]])


def test_one_vector_is_summarised():
    assert "8 numbers: 0.0000, 1.0000" in printed(["text"], [np.arange(8)])
    assert "3 x 2 numbers" in printed(["text"], [np.zeros((3, 2))])


def test_texts_keep_their_brackets():
    assert "[bold]" in printed(["[bold]"], [[0.0, 1.0]], ("a", "b"))
