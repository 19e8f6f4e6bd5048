"""Questions with choices, and contexts with a last word: files, and how many a model gets right.

Files are tab-separated UTF-8 with a header line and no quoting:

    question, choice0, choice1, ..., answer    multiple choice; `answer` counts from 0, an unused choice is empty
    context, target                            the word that ends a passage (LAMBADA, arXiv 1606.06031)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stic.compiler.language.scoring import Score, Scorer, log_probabilities, share
from stic.compiler.progress import Progress, silent
from stic.runtime.errors import InputError
from stic.runtime.files import read_text

Encode = Callable[[str], list[int]]
QUESTION = "Question: {question}\nAnswer:"  # as lm-evaluation-harness puts ARC and PIQA


@dataclass(frozen=True)
class Question:
    """A question, what may be answered, and which of it is right."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Passage:
    """A passage and the word that follows it."""

    context: str
    target: str


def read_questions(path: Path) -> list[Question]:
    """Read a file of multiple choice. Raises InputError, which names the line."""
    header, rows = _table(path)
    columns = [name for name in header if name.startswith("choice")]
    if "question" not in header or "answer" not in header or len(columns) < 2:
        raise InputError(f"{path} has the columns {', '.join(header)}; multiple choice needs question, choice0,"
                         " choice1, ..., answer")  # fmt: skip
    found = []
    for number, row in rows:
        item = dict(zip(header, row, strict=True))
        choices = tuple(item[name] for name in columns if item[name].strip())
        if not item["answer"].strip().isdecimal() or int(item["answer"]) >= len(choices):
            raise InputError(f"{path}, line {number}: answer {item['answer']!r} is none of {len(choices)} choices,"
                             " counted from 0")  # fmt: skip
        found.append(Question(item["question"], choices, int(item["answer"])))
    return found


def read_passages(path: Path) -> list[Passage]:
    """Read a file of passages. Raises InputError, which names the line."""
    header, rows = _table(path)
    if not {"context", "target"} <= set(header):
        raise InputError(f"{path} has the columns {', '.join(header)}; last words need context and target")
    items = [(number, dict(zip(header, row, strict=True))) for number, row in rows]
    for number, item in items:
        if not item["context"].strip() or not item["target"].strip():
            raise InputError(f"{path}, line {number}: context or target is empty")
    return [Passage(item["context"], item["target"]) for _, item in items]


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows with their line numbers."""
    lines = read_text(path).split("\n")  # str.splitlines ends lines in texts, too
    if not lines[0].strip():
        raise InputError(f"{path} is empty: give it a header and an item a line")
    header = lines[0].split("\t")
    rows = [(number, line.split("\t")) for number, line in enumerate(lines[1:], 2) if line.strip()]
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}, line {number} has {len(row)} columns, its header {len(header)}")
    if not rows:
        raise InputError(f"{path} holds no items: its header is all there is")
    return header, rows


def choose(
    scorer: Scorer, encode: Encode, items: list[Question], form: str = QUESTION, progress: Progress = silent
) -> Score:
    """Accuracy of the choice that is likeliest for its length in bytes (acc_norm of lm-evaluation-harness).

    `form` has {question} in it; a choice follows it after a space. Questions longer than the context are cut in front.
    """
    right = 0
    for done, item in enumerate(items):
        right += likeliest_choice(scorer, encode, item, form) == item.answer
        progress("choice", done + 1, len(items))
    return share(right, len(items))


def likeliest_choice(scorer: Scorer, encode: Encode, item: Question, form: str = QUESTION) -> int:
    """Which choice of a question is likeliest for its length in bytes, as `choose` has it."""
    prompt = form.replace("{question}", item.question)
    values = [_continued(scorer, encode, prompt, f" {choice}")[0] / len(choice.encode()) for choice in item.choices]
    return values.index(max(values))


def last_words(scorer: Scorer, encode: Encode, items: list[Passage], progress: Progress = silent) -> Score:
    """Accuracy of greedy continuation: every token of the last word is the likeliest one."""
    right = 0
    for done, item in enumerate(items):
        right += _continued(scorer, encode, item.context, f" {item.target}")[1]
        progress("lastword", done + 1, len(items))
    return share(right, len(items))


def _continued(scorer: Scorer, encode: Encode, prompt: str, continuation: str) -> tuple[float, bool]:
    """Log probability of a continuation, and whether each of its tokens is the likeliest.

    Both are encoded together; the tokens that they share with the prompt alone are the prompt's.
    """
    whole, alone = encode(prompt + continuation), encode(prompt)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, alone, strict=False)))
    first = min(shared, len(whole) - 1)
    cut = max(0, len(whole) - scorer.context - 1)
    whole, first = whole[cut:], max(1, first - cut)
    logits = scorer.logits(whole[:-1], first - 1)
    following = whole[first:]
    likeliest = bool((logits.argmax(axis=1) == following).all())
    return float(log_probabilities(logits, following).sum()), likeliest
