"""Evaluation files: what is read, what is refused and in which words, how it is tokenised and scored."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stic.compiler.frontend.reading import Reading
from stic.compiler.frontend.similarity import cosine, crossed, paired
from stic.compiler.importance.examples import (
    Examples,
    built_in_examples,
    check_calibration,
    encode,
    open_tokenizer,
    read_examples,
)
from stic.compiler.importance.scoring import Metric, score, spearman
from stic.runtime.errors import InputError

Write = Callable[[str], Path]
NAMES = ("negative", "positive")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text to a file and returns its path."""

    def make(text: str) -> Path:
        path = tmp_path / "examples.tsv"
        path.write_bytes(text.encode())
        return path

    return make


@pytest.mark.parametrize(
    ("text", "kind", "texts", "targets"),
    [
        ("sentence\tlabel\na b\t1\nc\t0\n", "classification", (("a b", None), ("c", None)), [1, 0]),
        ("question\tsentence\tlabel\nq\ts\t1\n", "classification", (("q", "s"),), [1]),
        ("sentence1\tsentence2\tlabel\na\tb\t0\n", "classification", (("a", "b"),), [0]),
        ("score\tsentence1\tsentence2\n4.5\ta\tb\n-1\tc\td\n", "similarity", (("a", "b"), ("c", "d")), [4.5, -1]),
        ("sentence\na\n", "unlabelled", (("a", None),), None),
        ("text\na\n", "unlabelled", (("a", None),), None),
        ("a film\nno header\n", "unlabelled", (("a film", None), ("no header", None)), None),
        ("question\tsentence\nq\ts\n", "unlabelled", (("q", "s"),), None),
        ("sentence1\tsentence2\na\tb\n", "unlabelled", (("a", "b"),), None),
        ("index\tLabel\t Sentence \n7\t1\ta\n", "classification", (("a", None),), [1]),
        ("score\tsentence\n1\ta\n", "unlabelled", (("a", None),), None),
        ('\ufeffsentence\tlabel\r\nhe said "no\t1\r\n\r\n', "classification", (('he said "no', None),), [1]),
        ("sentence\tlabel\ra\x85b\t1\r", "classification", (("a\x85b", None),), [1]),
    ],
)
def test_columns(text: str, kind: str, texts: tuple, targets: list | None, write: Write) -> None:
    examples = read_examples(write(text))
    assert examples.kind == kind and examples.texts == texts and len(examples) == len(texts)
    assert (examples.targets is None) == (targets is None)
    if targets is not None:
        np.testing.assert_array_equal(examples.targets, targets)


def test_a_very_long_text(write: Write) -> None:
    long = "word " * 40_000
    assert read_examples(write(f"sentence\tlabel\n{long}\t1\n")).texts[0][0] == long.strip()


@pytest.mark.parametrize(
    ("values", "labels", "targets"),
    [
        (("1", "0"), None, [1, 0]),
        (("1", "0"), NAMES, [1, 0]),
        (("positive", "negative"), NAMES, [1, 0]),
        (("positive", "negative"), NAMES[::-1], [0, 1]),
        (("yes", "no"), None, [1, 0]),
        (("yes", "no"), NAMES, [1, 0]),
        (("other", "other"), ("other", "1"), [0, 0]),
    ],
)
def test_labels(values: tuple[str, ...], labels: tuple[str, ...] | None, targets: list[int], write: Write) -> None:
    text = "".join(f"a\t{value}\n" for value in values)
    found = read_examples(write("sentence\tlabel\n" + text), labels=labels).targets
    assert found is not None and found.tolist() == targets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; give it a header line"),
        ("\n \n", "is empty; give it a header line"),
        ("sentence\tlabel\n", "holds no examples: its header is all there is"),
        ("text\n", "holds no examples: its header is all there is"),
        ("label\n1\n", "has the columns label; accepted are sentence [+] label;"),
        ("a\tb\tlabel\n1\t2\t3\n", "has the columns a, b, label; accepted are"),
        ("sentence\tlabel\na\t1\nb\n", "row 3 has 1 columns, the header 2; separate by tabs"),
        ("sentence\tlabel\na\t1\tb\n", "row 2 has 3 columns, the header 2; separate by tabs"),
        ("sentence\tlabel\na\t1\nb\tgood\n", "row 3: the label 'good' is not like the others"),
        ("sentence\tlabel\na\tgood\nb\t\n", "row 3: the label '' is not like the others"),
        ("sentence\tlabel\na\t2\n", "row 2: the label '2' is none of the model's: negative, positive"),
        ("sentence\tlabel\na\tnegative\nb\tnegativ\n", "row 3: the label 'negativ' is none of the model's"),
        ("score\tsentence1\tsentence2\n1\ta\tb\nhigh\ta\tb\n", "row 3: the score 'high' is not a number"),
        ("score\tsentence1\tsentence2\nnan\ta\tb\n", "row 2: the score 'nan' is not a number"),
    ],
)
def test_what_is_refused(text: str, message: str, write: Write) -> None:
    path = write(text)
    with pytest.raises(InputError, match=message) as caught:
        read_examples(path, labels=NAMES)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file at .*missing"):
        read_examples(tmp_path / "missing.tsv")
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_examples(tmp_path)
    (tmp_path / "latin.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(InputError, match=r"latin\.tsv is not UTF-8 text \(byte 18\); save it as UTF-8"):
        read_examples(tmp_path / "latin.tsv")


def test_a_file_of_another_kind(write: Write) -> None:
    path = write("sentence\tlabel\na\t1\n")
    assert read_examples(path, "classification").kind == "classification"
    with pytest.raises(InputError, match="is a file for classification, by its columns sentence, label, not for simi"):
        read_examples(path, "similarity")


@pytest.mark.parametrize(
    ("text", "what"),
    [("sentence\tlabel\na\t1\nb\t1\n", "class"), ("score\tsentence1\tsentence2\n3\ta\tb\n3\tc\td\n", "score")],
)
def test_calibration_needs_labels_that_differ(text: str, what: str, write: Write) -> None:
    with pytest.raises(InputError, match=f"all 2 examples have the same {what}.*without labels"):
        check_calibration(read_examples(write(text)))
    for good in (read_examples(write("sentence\tlabel\na\t1\nb\t0\n")), built_in_examples()):
        assert check_calibration(good) is good


def test_built_in_sentences() -> None:
    examples = built_in_examples()
    assert examples.kind == "unlabelled" and len(set(examples.texts)) == len(examples) > 50


def test_batches_are_sorted_padded_and_masked(tiny_dir: Path) -> None:
    words = "the cat sings here and a dog runs there very good movie is great".split()
    rng = np.random.default_rng(0)
    texts = tuple((" ".join(rng.choice(words, n)), None) for n in rng.integers(1, 30, 40))
    examples = Examples("unlabelled", texts, None, "random")
    batches = encode(examples, tiny_dir / "tokenizer.json", 20, batch_tokens=100)
    coder = open_tokenizer(tiny_dir / "tokenizer.json")
    coder.enable_truncation(20)
    lengths = []
    for batch in batches:
        assert batch.ids.shape == batch.mask.shape == batch.types.shape
        assert batch.ids.size <= 100 and not batch.types.any()
        assert batch.mask.any(axis=0).all() and not batch.ids[~batch.mask].any()
        for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=True):
            assert ids[mask].tolist() == coder.encode(texts[row][0]).ids
            assert mask[: mask.sum()].all()
            lengths.append(int(mask.sum()))
        assert batch.tokens == int(batch.mask.sum())
    assert lengths == sorted(lengths) and max(lengths) == 20
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == list(range(40))


def test_a_sequence_longer_than_a_batch_stands_alone(tiny_dir: Path) -> None:
    examples = Examples("unlabelled", (("a dog runs here", None), ("the cat", None)), None, "two")
    batches = encode(examples, tiny_dir / "tokenizer.json", 20, batch_tokens=1)
    assert [batch.rows.tolist() for batch in batches] == [[1], [0]]


def test_pairs_have_token_types(tiny_dir: Path) -> None:
    examples = Examples("classification", (("a dog", "the cat runs"),), np.array([1.0]), "pair")
    (batch,) = encode(examples, tiny_dir / "tokenizer.json", 20)
    assert batch.types.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    similar = Examples("similarity", (("a dog", "the cat runs"),), np.array([1.0]), "pair")
    assert similar.sequences == (("a dog", None), ("the cat runs", None))
    for batch in encode(similar, tiny_dir / "tokenizer.json", 20):
        assert not batch.types.any()


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer at .*; put the model's tokenizer\.json there"):
        open_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="is not a tokenizer"):
        open_tokenizer(tmp_path / "tokenizer.json")


def test_picking_keeps_texts_and_targets_together() -> None:
    examples = Examples("classification", (("a", None), ("b", None), ("c", None)), np.array([0.0, 1, 2]), "three")
    picked = examples.pick([2, 0])
    assert picked.texts == (("c", None), ("a", None))
    assert picked.targets is not None and picked.targets.tolist() == [2, 0]


@pytest.mark.parametrize("seed", range(8))
def test_spearman_equals_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 40).astype(np.float64), rng.integers(0, 9, 40).astype(np.float64)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_spearman_of_a_constant_is_not_a_number() -> None:
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_accuracy() -> None:
    examples = Examples("classification", (("a", None),) * 4, np.array([0.0, 1, 1, 0]), "four")
    logits = np.array([[2, 1], [0, 1], [3, 1], [1, 0]], np.float32)
    found = score(logits, examples)
    assert (found.name, found.value, found.n) == ("accuracy", 0.75, 4)
    assert score(np.array([[-1], [2], [0.5], [1]], np.float32), examples).value == 0.75


def test_similarity_ranks_cosines() -> None:
    rng = np.random.default_rng(1)
    examples = Examples("similarity", (("a", "b"),) * 12, rng.integers(0, 4, 12).astype(np.float64), "twelve")
    vectors = rng.standard_normal((24, 5)).astype(np.float32)
    vectors[3] = 0
    cosines = cosine(vectors[:12], vectors[12:])
    assert cosines[3] == 0 and np.abs(cosines).max() <= 1
    found = score(vectors, examples)
    assert found.name == "spearman"
    assert found.value == pytest.approx(stats.spearmanr(cosines, examples.targets).statistic, abs=1e-12)


def test_outputs_that_cannot_be_scored() -> None:
    examples = Examples("classification", (("a", None),) * 2, np.array([0.0, 2]), "two")
    with pytest.raises(InputError, match="two has class 2, the model only 2 outputs"):
        score(np.zeros((2, 2), np.float32), examples)
    for shape in ((3, 2), (2, 4, 3)):
        with pytest.raises(InputError, match=r"one vector per sequence, 2 in all; got shape.*use a model with pooling"):
            score(np.zeros(shape, np.float32), examples)
    with pytest.raises(InputError, match="x has no labels to score against; columns accepted: sentence"):
        score(np.zeros((1, 2), np.float32), Examples("unlabelled", (("a", None),), None, "x"))


SCORE, LABELS = Reading("score", ("LABEL_0",)), Reading("labels", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("text", "outputs", "name", "value"),
    [
        ("sentence\tlabel\nx\t1\ny\t0\nz\t0\n", [2, 1, 3], "auc", 0.5),
        ("sentence1\tsentence2\tlabel\nx\tp\t1\ny\tp\t0\n", [-5, -6], "auc", 1.0),
        ("sentence\tlabel\nx\t1\ny\t0\n", [1, 1], "auc", 0.5),
        ("sentence\tlabel\nx\tyes\ny\tno\n", [0, 1], "auc", 0.0),
        ("sentence\tlabel\nx\t0\ny\t1\nz\t2.5\n", [1, 2, 3], "spearman", 1.0),
        ("score\tsentence1\tsentence2\n5\tx\tp\n1\ty\tp\n", [1, 2], "spearman", -1.0),
        ("score\tsentence\n5\tx\n1\ty\n", [1, 0], "spearman", 1.0),
    ],
)
def test_one_score_ranks(text: str, outputs: list[float], name: str, value: float, write: Write) -> None:
    examples = read_examples(write(text), reading=SCORE)
    found = score(np.array(outputs, np.float32)[:, None], examples)
    assert found.name == name and found.value == pytest.approx(value) and examples.kind == "ranking"


def test_labels_are_found_one_by_one(write: Write) -> None:
    examples = read_examples(write("sentence\tlabel\nx\ta, c\ny\t\nz\t1\n"), reading=LABELS)
    assert examples.targets is not None and examples.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    outputs = np.array([[1, -1, -1], [-1, 1, -1], [-1, 1, -1]], np.float32)
    assert score(outputs, examples) == Metric("f1", pytest.approx(2 * 2 / (3 + 3)), 3)
    with pytest.raises(InputError, match="row 2: the label 'd' is none of the model's: a, b, c"):
        read_examples(write("sentence\tlabel\nx\td\n"), reading=LABELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\tlabel\nx\ta\ny\tb\nz\tc\n", "3 class names, but the model gives one score"),
        ("sentence\tlabel\nx\tnan\ny\t1\n", "row 2: the label is not a finite number"),
        ("sentence\tlabel\nx\t1\ny\t1\n", "same label everywhere"),
    ],
)
def test_what_cannot_rank_is_refused(text: str, message: str, write: Write) -> None:
    with pytest.raises(InputError, match=message):
        score(np.zeros((2, 1), np.float32), read_examples(write(text), reading=SCORE))


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_agree(kind: str) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 4))
    assert np.diag(crossed(a, b, kind)) == pytest.approx(paired(a, b, kind))
    assert paired(a, a, kind) == pytest.approx({"cosine": np.ones(5), "dot": (a * a).sum(1)}.get(kind, np.zeros(5)))


def test_a_prompt_goes_before_texts_that_stand_alone() -> None:
    pairs = (("x", "y"), ("z", None))
    assert Examples("classification", pairs, None, "t").prompted("q: ").texts == (("x", "y"), ("q: z", None))
    assert Examples("similarity", (("x", "y"),), None, "t").prompted("q: ").sequences == (
        ("q: x", None),
        ("q: y", None),
    )
