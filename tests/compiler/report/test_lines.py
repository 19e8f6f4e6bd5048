"""Files of sentences, and files of answers that appear whole or not at all."""

import json

import numpy as np
import pytest

from stic.compiler.report.lines import AnswerFile, count_lines, read_lines
from stic.runtime.errors import InputError


def test_sentences_and_pairs(tmp_path):
    path = tmp_path / "texts"
    path.write_bytes("\ufeffone\r\ntwo\tthree\nlast \u0085 line".encode())
    assert list(read_lines(path)) == [("one", None), ("two", "three"), ("last \u0085 line", None)]
    assert count_lines(path) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"a\n\nb\n", "line 2 is blank"),
        (b"a\n \t \n", "line 2 is blank"),
        (b"a\tb\nc\t\n", "line 2 is blank, or half of it"),
        (b"a\tb\tc\n", "line 1 has 2 tabs"),
        (b"a\n\xff\n", "line 2 is not UTF-8"),
    ],
)
def test_lines_that_are_no_sentences(tmp_path, data, message):
    (tmp_path / "texts").write_bytes(data)
    with pytest.raises(InputError, match=message):
        count_lines(tmp_path / "texts")


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            list(read_lines(path))


@pytest.mark.parametrize("rows", [1, 1000])
def test_an_array_of_answers(tmp_path, rows):
    vectors = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    with AnswerFile(tmp_path / "o.npy") as file:
        for vector in vectors:
            file.add({}, vector, None)
    assert np.array_equal(np.load(tmp_path / "o.npy"), vectors)


def test_answers_as_lines(tmp_path):
    with AnswerFile(tmp_path / "o.jsonl") as file:
        file.add({"text": "\u00e9"}, np.array([1.5], np.float32), {"score": 0.5})
    assert json.loads((tmp_path / "o.jsonl").read_text("utf-8")) == {
        "text": "\u00e9",
        "output": [1.5],
        "answer": {"score": 0.5},
    }


@pytest.mark.parametrize("name", ["o.npy", "o.jsonl"])
def test_a_failure_leaves_what_stood_there(tmp_path, name):
    (tmp_path / name).write_text("before")
    with pytest.raises(RuntimeError), AnswerFile(tmp_path / name) as file:
        file.add({}, np.ones(3, np.float32), None)
        raise RuntimeError
    assert (tmp_path / name).read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_places_that_cannot_be_written(tmp_path):
    for path, message in ((tmp_path / "none" / "o.npy", "cannot be written"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=message), AnswerFile(path):
            pass
