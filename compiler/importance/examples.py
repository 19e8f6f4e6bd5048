"""Evaluation and calibration files: what they hold, how they are tokenised, and how outputs are scored.

A file is tab-separated, UTF-8, with a header line and no quoting (a quotation mark is text). Recognised columns, others
being ignored:

    sentence, label                  classification (SST-2)
    question, sentence, label        classification of a pair (QNLI)
    sentence1, sentence2, label      classification of a pair (RTE, MRPC)
    score, sentence1, sentence2      similarity (STS-B): cosine of two embeddings against a human score
    label, or score, any text        ranking, where the model gives one number for a text or a pair
    label, any text                  labels, where the model's labels stand each for itself: those of a row, with commas
    any of these without the label or score, or one column of text with or without a header: no labels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stic.compiler.frontend.reading import Reading
from stic.compiler.importance.tokens import Coded, Pair, Tables, tokenise
from stic.runtime.errors import InputError

Kind = Literal["classification", "similarity", "ranking", "labels", "unlabelled"]

BUILT_IN = "sentences.txt"
LABELLED = "sentence + label; question + sentence + label; sentence1 + sentence2 + label; score + sentence1 + sentence2"
ACCEPTED = f"{LABELLED}; or one column of text"
# What a file may be called for that the model's reading makes into another kind.
_TASKS: dict[Kind, tuple[Kind, ...]] = {"ranking": ("classification", "similarity"), "labels": ("classification",)}
HEADERS = ("sentence", "text")  # names of a lone column that are not themselves a text


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts and, for labelled kinds, what a model should make of them."""

    kind: Kind
    texts: tuple[Pair, ...]  # the second text is None where an example has one only
    targets: NDArray[np.float64] | None  # (examples,): class numbers, or scores; labels: (examples, labels) of 0 and 1
    source: str  # where they come from, for people

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sequences(self) -> tuple[Pair, ...]:
        """What the encoder sees, one entry an input; of a similarity pair first all first texts, then all second."""
        if self.kind != "similarity":
            return self.texts
        return tuple((a, None) for a, _ in self.texts) + tuple((b or "", None) for _, b in self.texts)

    def pick(self, rows: Sequence[int] | NDArray[np.intp]) -> Examples:
        """Return these examples only, in this order."""
        targets = None if self.targets is None else self.targets[np.asarray(rows, np.intp)]
        return Examples(self.kind, tuple(self.texts[int(row)] for row in rows), targets, self.source)

    def prompted(self, prompt: str) -> Examples:
        """Return these examples with `prompt` before every text that the encoder sees alone."""
        apart = self.kind == "similarity"
        texts = tuple(
            (prompt + a, None if b is None else prompt + b) if apart or b is None else (a, b) for a, b in self.texts
        )
        return replace(self, texts=texts) if prompt else self


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of similar length, padded to the longest."""

    rows: NDArray[np.intp]  # (n,): which of `Examples.sequences`
    ids: NDArray[np.int32]  # (n, tokens); padding is 0
    mask: NDArray[np.bool_]  # (n, tokens): False at padding, which is at the end
    types: NDArray[np.int32]  # (n, tokens): token types, 1 in the second text of a pair

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.mask.sum())


def read_examples(
    path: Path, task: Kind | None = None, labels: Sequence[str] | None = None, reading: Reading | None = None
) -> Examples:
    """Read an evaluation or calibration file.

    `task` demands that kind of file. `labels` are the names of the model's classes, in the order of its outputs;
    without them, class names that are not numbers are numbered in sorted order. `reading` says how the model's outputs
    are read, which makes a file for ranking or for labels of one for classification; its names replace `labels`.
    Raises InputError.
    """
    reading = reading or Reading("classes" if labels else "vector", tuple(labels or ()))
    rows = _rows(path)
    header = [name.strip().lower() for name in rows[0]]
    if len(header) == 1 and header[0] != "label":
        texts = [row[0].strip() for row in (rows[1:] if header[0] in HEADERS else rows)]
        found = Examples("unlabelled", tuple((text, None) for text in texts if text), None, str(path))
    else:
        found = _table(path, header, rows[1:], reading)
    if not len(found):
        raise InputError(f"{path} holds no examples: its header is all there is; give it one example a line")
    if task is not None and task not in _TASKS.get(found.kind, (found.kind,)):
        raise InputError(f"{path} is a file for {found.kind}, by its columns {', '.join(header)}, not for {task}")
    return found


def built_in_examples() -> Examples:
    """Return the calibration sentences that come with stic: everyday English of many topics and lengths, unlabelled."""
    text = resources.files("stic.compiler").joinpath(BUILT_IN).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return Examples("unlabelled", tuple((line, None) for line in lines), None, "built-in sentences")


def check_calibration(examples: Examples) -> Examples:
    """Return the examples, or raise InputError if their labels are all alike and so cannot tell good from bad."""
    if examples.targets is not None and len(np.unique(examples.targets, axis=0)) < 2:
        what = "class" if examples.kind in ("classification", "labels") else "score"
        raise InputError(
            f"{examples.source}: all {len(examples)} examples have the same {what}, so the loss says nothing about "
            f"the model; calibrate with examples of every {what}, or drop the column to calibrate without labels"
        )
    return examples


def encode(
    examples: Examples,
    tokenizer: Path | Tokenizer,
    max_length: int,
    batch_tokens: int = 512,
    tables: Tables | None = None,
) -> tuple[Batch, ...]:
    """Tokenise every sequence, cut it to `max_length` tokens, and batch by length, shortest first.

    A batch holds at most `batch_tokens` tokens with padding, or one sequence. Raises InputError if the tokenizer file
    is missing or is none, and for a text that the model with these tables cannot take (`tokens.tokenise`).
    """
    coder = open_tokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
    coded = tokenise(coder, examples.sequences, tables, max_length)
    lengths = [len(one.ids) for one in coded]
    batches: list[Batch] = []
    rows: list[int] = []
    for row in sorted(range(len(coded)), key=lambda i: (lengths[i], i)):
        if rows and (len(rows) + 1) * lengths[row] > batch_tokens:
            batches.append(_batch(rows, coded))
            rows = []
        rows.append(row)
    batches.append(_batch(rows, coded))
    return tuple(batches)


def open_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer.json. Raises InputError."""
    if not path.is_file():
        raise InputError(f"no tokenizer at {path}; put the model's tokenizer.json there")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise InputError(f"{path} is not a tokenizer that the tokenizers package reads: {error}") from error


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"no file at {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    # str.splitlines also cuts at characters that are text in some corpora, such as U+0085
    lines = text.replace("\r\n", "\n").split("\n")
    rows = [line.split("\t") for line in lines if line.strip()]
    if not rows:
        raise InputError(f"{path} is empty; give it a header line and one example a line. Columns accepted: {ACCEPTED}")
    return rows


def _table(path: Path, header: list[str], rows: list[list[str]], reading: Reading) -> Examples:
    columns = {name: number for number, name in enumerate(header)}
    pairs = (("sentence1", "sentence2"), ("question", "sentence"), ("sentence",))
    texts = next((names for names in pairs if columns.keys() >= set(names)), None)
    if texts is None:
        raise InputError(f"{path} has the columns {', '.join(header)}; accepted are {ACCEPTED}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number} has {len(row)} columns, the header {len(header)}; separate by tabs")
    pairs_of_text = tuple(
        (row[columns[texts[0]]].strip(), row[columns[texts[1]]].strip() if len(texts) > 1 else None) for row in rows
    )
    if "score" in columns and (len(texts) > 1 or reading.ranks):
        scores = [_score(path, number, row[columns["score"]]) for number, row in enumerate(rows, 2)]
        return Examples("ranking" if reading.ranks else "similarity", pairs_of_text, np.array(scores), str(path))
    if "label" in columns:
        values = [row[columns["label"]].strip() for row in rows]
        if reading.ranks:
            return Examples("ranking", pairs_of_text, _grades(path, values), str(path))
        if reading.kind == "labels":
            return Examples("labels", pairs_of_text, _several(path, values, reading.names), str(path))
        return Examples("classification", pairs_of_text, _classes(path, values, reading.names), str(path))
    return Examples("unlabelled", pairs_of_text, None, str(path))


def _score(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, row {number}: the score {text!r} is not a number")
    return value


def _grades(path: Path, values: list[str]) -> NDArray[np.float64]:
    """Numbers to rank by; of two names the second in sorted order is 1."""
    try:
        grades = np.array([float(value) for value in values])
    except ValueError:
        grades = _classes(path, values, ())
        if grades.max() > 1:
            raise InputError(
                f"{path} has {int(grades.max()) + 1} class names, but the model gives one score: use numbers to rank by"
            ) from None
    if not np.isfinite(grades).all():
        raise InputError(f"{path}, row {2 + int(np.argmin(np.isfinite(grades)))}: the label is not a finite number")
    return grades


def _several(path: Path, values: list[str], names: Sequence[str]) -> NDArray[np.float64]:
    """(rows, labels): 1 for each label, by name or number, that a row lists with commas; an empty row has none."""
    found = np.zeros((len(values), len(names)))
    for row, value in enumerate(values):
        for one in filter(None, map(str.strip, value.split(","))):
            number = names.index(one) if one in names else int(one) if one.isdecimal() else len(names)
            if number >= len(names):
                known = ", ".join(names)
                raise InputError(f"{path}, row {row + 2}: the label {one!r} is none of the model's: {known}")
            found[row, number] = 1
    return found


def _classes(path: Path, values: list[str], labels: Sequence[str]) -> NDArray[np.float64]:
    if all(value.isdecimal() for value in values):
        numbers = [int(value) for value in values]
        allowed = list(range(len(labels))) if labels else None
    else:
        names = list(labels) if labels and set(values) & set(labels) else sorted(set(values) - {""})
        if any(value.isdecimal() for value in values) or "" in values:
            row = next(i for i, v in enumerate(values, 2) if not v or v.isdecimal() != values[0].isdecimal())
            raise InputError(f"{path}, row {row}: the label {values[row - 2]!r} is not like the others; use class "
                             "numbers or class names throughout")  # fmt: skip
        numbers = [names.index(value) if value in names else -1 for value in values]
        allowed = list(range(len(names)))
    for row, number in enumerate(numbers, 2):
        if allowed is not None and number not in allowed:
            known = ", ".join(labels) if labels else str(len(allowed))
            raise InputError(f"{path}, row {row}: the label {values[row - 2]!r} is none of the model's: {known}")
    return np.array(numbers, np.float64)


def _batch(rows: list[int], coded: list[Coded]) -> Batch:
    longest = max(len(coded[row].ids) for row in rows)
    ids = np.zeros((len(rows), longest), np.int32)
    types = np.zeros_like(ids)
    mask = np.zeros(ids.shape, np.bool_)
    for place, row in enumerate(rows):
        length = len(coded[row].ids)
        ids[place, :length] = coded[row].ids
        types[place, :length] = coded[row].types
        mask[place, :length] = True
    return Batch(np.array(rows, np.intp), ids, mask, types)
